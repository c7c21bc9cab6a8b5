"""Pooling and reductions that keep the data's innermost dimension: each vector of channels is reduced in a
register.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from wasmgraph.compiler.schedule.blocks import (
    PEEL,
    axis_sizes,
    blocks,
    conditional,
    extent_of,
    inline_between,
    output,
    reduces,
    share,
    vectorize,
    vectorize_copy,
)
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Vector
from wasmgraph.dims import product, same
from wasmgraph.targets import Target


def schedule_reduction(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Schedule one reducing block over NHWC-like data, with element-wise blocks before and after it."""
    order, last = blocks(schedule), output(schedule)
    reducing = [block for block in order if reduces(schedule, block)]
    if len(reducing) != 1 or last is None:
        return None
    acc = reducing[0]
    block = schedule.get(acc)
    spatial = [axis for axis in block.iter_vars if axis.iter_type == 0]
    if not spatial:
        return None
    innermost = spatial[-1].var
    reads = [
        region.region[-1].min for region in block.reads if not region.source.same_as(block.writes[0].source)
    ]
    if len(reads) != 1 or not reads[0].same_as(innermost):
        return None  # the innermost dimension is reduced, which would need shuffles
    for producer in order[: order.index(acc)]:
        vectorize_copy(schedule, producer, target.lanes)
    if last is acc or schedule.get(last).name_hint == block.name_hint:
        last = schedule.cache_write(acc, 0, "local")
    elif not same(product(axis_sizes(schedule, acc)), product(axis_sizes(schedule, last))):
        return _apart(schedule, acc, target)  # each turn of the last block would reduce again
    else:
        schedule.set_scope(acc, 0, "local")
    inline_between(schedule, acc, last)
    loops = schedule.get_loops(last)
    extent = extent_of(schedule, loops[-1])
    chosen = (
        decision
        if isinstance(decision, Vector)
        else Vector(extent if isinstance(extent, int) and extent < 4 * target.lanes else 4 * target.lanes)
    )
    outer, lane = schedule.split(loops[-1], [None, chosen.width])
    schedule.compute_at(acc, outer, preserve_unit_loops=True)
    own = schedule.get_loops(acc)[len(loops) :]
    own_lane, reduction = own[len(spatial) - 1], own[len(spatial) :]
    schedule.reorder(*reduction, own_lane)
    vectorize(schedule, own_lane, target)
    schedule.decompose_reduction(acc, reduction[0])
    vectorize(schedule, lane, target)
    if isinstance(extent, int) or not (conditional(schedule, acc) or conditional(schedule, last)):
        schedule.annotate(outer, PEEL, 1)
    share(schedule, *loops[:-1], outer)
    return schedule, chosen


def _apart(schedule: Schedule, acc: SBlockRV, target: Target) -> Scheduled:
    """A reduction whose results meet the data again, as a mean that is subtracted does: a nest of its own,
    which adds whole rows to the sums in memory."""
    chosen = Vector(target.lanes)
    for block in blocks(schedule):
        if not reduces(schedule, block):
            vectorize_copy(schedule, block, chosen.width)
    loops = schedule.get_loops(acc)
    spatial = len(axis_sizes(schedule, acc))
    around, lane, reduction = loops[: spatial - 1], loops[spatial - 1], loops[spatial:]
    schedule.reorder(*reduction, lane)
    extent = extent_of(schedule, lane)
    if isinstance(extent, int) and extent % chosen.width == 0 and chosen.width > 1:
        _, inner = schedule.split(lane, [None, chosen.width])
        schedule.vectorize(inner)
    schedule.decompose_reduction(acc, reduction[0])
    share(schedule, *around)
    return schedule, chosen
