"""Winograd convolution. Both transforms are computed in registers, one vector of channels at a time.
Between them is one matrix product for each position of the tile, with the same register tile as ``dense``.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from wasmgraph.compiler.schedule.blocks import PEEL, find, inline_between, output, share, vectorize_copy
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled
from wasmgraph.compiler.schedule.tiled import follow, tile
from wasmgraph.targets import Target


def schedule_winograd(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Schedule the blocks of ``winograd.winograd_compute`` and the operators that were fused after them."""
    names = ("gather", "rows", "transformed", "acc", "product", "columns", "tiles")
    found = {name: find(schedule, name) for name in names}
    last = output(schedule)
    if last is None or any(block is None for block in found.values()):
        return None
    loops = schedule.get_loops(last)
    if len(loops) != 4:
        return None
    padding = find(schedule, "pad")
    if padding is not None:
        vectorize_copy(schedule, padding, target.lanes)
    _input(schedule, found["gather"], found["rows"], found["transformed"], target)
    position, *images, pixel, channel = schedule.get_loops(found["product"])
    # One position at a time, so that its slice of the transformed input stays in the cache for all
    # channels.
    chosen = follow(decision, schedule, found["acc"], pixel, target)
    tile(
        schedule, found["acc"], found["product"], pixel, channel, target, chosen, outer=[position, *images]
    )
    _output(schedule, found["columns"], found["tiles"], last, target)
    return schedule, chosen


def _below(schedule: Schedule, block: SBlockRV, at: LoopRV) -> None:
    """Compute ``block`` at a loop, with its small spatial loops unrolled and its channels vectorised."""
    depth = len(schedule.get_loops(block))
    schedule.compute_at(block, at, preserve_unit_loops=True)
    schedule.set_scope(block, 0, "local")
    own = schedule.get_loops(block)[-depth:]
    schedule.vectorize(own[-1])
    for loop in own[:-1]:
        schedule.unroll(loop)


def _input(
    schedule: Schedule, gather: SBlockRV, rows: SBlockRV, transformed: SBlockRV, target: Target
) -> None:
    i, j, *images, pixel, channel = schedule.get_loops(transformed)
    outer, lane = schedule.split(channel, [None, target.lanes])
    schedule.reorder(*images, pixel, outer, i, j, lane)
    schedule.compute_inline(gather)
    _below(schedule, rows, outer)
    schedule.vectorize(lane)
    schedule.unroll(i)
    schedule.unroll(j)
    schedule.annotate(outer, PEEL, 1)
    share(schedule, *images, pixel, outer)


def _output(schedule: Schedule, columns: SBlockRV, tiles: SBlockRV, last: SBlockRV, target: Target) -> None:
    inline_between(schedule, tiles, last)
    m = int(schedule.get(tiles).iter_vars[-2].dom.extent)
    image, row, column, channel = schedule.get_loops(last)
    down, y = schedule.split(row, [None, m])
    across, x = schedule.split(column, [None, m])
    outer, lane = schedule.split(channel, [None, target.lanes])
    schedule.reorder(image, down, across, outer, y, x, lane)
    _below(schedule, tiles, outer)
    _below(schedule, columns, outer)
    schedule.vectorize(lane)
    schedule.unroll(y)
    schedule.unroll(x)
    for loop in (down, across, outer):
        schedule.annotate(loop, PEEL, 1)
    share(schedule, image, down, across, outer)
