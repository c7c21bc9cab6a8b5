"""Softmax, normalisation and reductions along the innermost dimensions. One row is computed at a time, so
that it stays in the cache between passes over it; each lane of a vector reduces its share of the row.
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IterVar

from wasmgraph.compiler.schedule.blocks import (
    PEEL,
    axis_sizes,
    blocks,
    conditional,
    extent_of,
    output,
    reduces,
    share,
)
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Vector
from wasmgraph.compiler.sizes import size_of
from wasmgraph.dims import divides, is_closed, is_number, is_one, same
from wasmgraph.targets import Target


def schedule_rows(schedule: Schedule, target: Target, decision: Decision | None = None) -> Scheduled | None:
    """Schedule blocks with the same leading axes (the rows), of which at least one reduces the other
    axes."""
    reducing = [block for block in blocks(schedule) if reduces(schedule, block)]
    last = output(schedule)
    if not reducing or last is None:
        return None
    if reduces(schedule, last):
        last = schedule.cache_write(last, 0, "local")
    leading = axis_sizes(schedule, reducing[0])
    loops = schedule.get_loops(last)
    rows = 0
    while rows < min(len(leading), len(loops)) and same(leading[rows], extent_of(schedule, loops[rows])):
        rows += 1
    if not all(map(is_one, leading[rows:])) or not all(_innermost(schedule, block) for block in reducing):
        return None
    if not isinstance(decision, Vector):
        decision = Vector(row_width(schedule, reducing, target.lanes))
    for block in reducing:
        reduce_in_lanes(schedule, block, decision.width)
    if not rows:
        outer = [schedule.add_unit_loop(loops[0] if loops else last)]
    elif is_closed(leading):
        outer = [schedule.fuse(*loops[:rows])]
    else:
        outer = loops[:rows]  # fused, each row would be divided into its indices
    row = outer[-1]
    name = schedule.get(last).name_hint
    before = [block for block in blocks(schedule) if schedule.get(block).name_hint != name]
    for block in reversed(before):
        schedule.compute_at(block, row, preserve_unit_loops=True)
    for block in before:
        schedule_pass(schedule, block, schedule.get_loops(block)[len(outer) :], decision.width)
    schedule_pass(schedule, last, schedule.get_loops(last)[len(outer) :], decision.width)
    share(schedule, *outer)
    return schedule, decision


def _innermost(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether a block reduces the innermost dimension of a tensor that it reads, of those along which it
    reads more than one element; or only sizes of 1."""
    found = schedule.get(block)
    axes = [axis for axis in found.iter_vars if axis.iter_type != IterVar.DataPar]
    reduced = [axis.var for axis in axes if not is_one(size_of(axis.dom.extent))]
    if not reduced:
        return True
    for region in found.reads:
        places = [
            tirx.analysis.undefined_vars(place.min)
            for place, size in zip(region.region, region.source.shape, strict=True)
            if not is_one(size_of(size))
        ]
        last: list[tirx.Var] = next((variables for variables in reversed(places) if variables), [])
        if any(variable.same_as(axis) for variable in last for axis in reduced):
            return True
    return False


def schedule_pass(schedule: Schedule, block: SBlockRV, own: list[LoopRV], lanes: int) -> None:
    """Schedule one pass over a row; ``own`` are the block's loops inside the loops over rows."""
    if not reduces(schedule, block):
        if own:
            outer, lane = schedule.split(schedule.fuse(*own), [None, lanes])
            schedule.vectorize(lane)
            # If the conditions of padding depend on the row too, LoopPartition divides by negative numbers
            # and gives wrong results.
            if not conditional(schedule, block):
                schedule.annotate(outer, PEEL, 1)
        return
    parallel = [axis.iter_type == IterVar.DataPar for axis in schedule.get(block).iter_vars]
    reduction = [loop for loop, is_parallel in zip(own, parallel, strict=True) if not is_parallel]
    lane = next((loop for loop in own if is_number(extent_of(schedule, loop), lanes) and lanes > 1), None)
    if lane is not None and lane not in reduction:
        schedule.reorder(*reduction, lane)
        schedule.vectorize(lane)
    schedule.decompose_reduction(block, reduction[0])


def row_width(schedule: Schedule, reducing: list[SBlockRV], lanes: int) -> int:
    """The number of elements computed at a time: several vectors if they divide all rows, so that their
    sums do not depend on each other."""
    rows = [extent_of(schedule, schedule.get_loops(block)[-1]) for block in reducing]
    several = (n * lanes for n in (4, 2) if lanes > 1 and all(divides(n * lanes, row) for row in rows))
    return next(several, lanes)


def reduce_in_lanes(schedule: Schedule, block: SBlockRV, lanes: int) -> None:
    """Give every lane its own partial result, if vectors divide the innermost dimension."""
    loops = schedule.get_loops(block)
    spatial = len(axis_sizes(schedule, block))
    innermost = extent_of(schedule, loops[-1])
    reduction = schedule.fuse(*loops[spatial:])
    # TVM fails to rfactor a block whose result is a scalar.
    if spatial and lanes > 1 and divides(lanes, innermost):
        _, lane = schedule.split(reduction, [None, lanes])
        schedule.rfactor(lane, spatial)
