"""Convolution and matrix product: a tile of pixels × channels stays in registers during the reduction.
Bias, residual and activation are applied to it before it is written, once.

The reduction loop is not unrolled: Cranelift keeps every unrolled load live to the end of the block and
spills, and V8 loses the offsets in its addresses.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IterVar

from wasmgraph.compiler.operators.convolution import IMAGES
from wasmgraph.compiler.operators.dense import BATCHED, flat_index
from wasmgraph.compiler.schedule.blocks import (
    FETCH_AHEAD,
    PEEL,
    extent_of,
    find,
    inline_between,
    output,
    reindex,
    share,
    vectorize,
    vectorize_copy,
)
from wasmgraph.compiler.schedule.decisions import (
    Decision,
    Scheduled,
    Tile,
    decide_chunked,
    decide_rows,
    decide_tile,
)
from wasmgraph.compiler.schedule.open_tiles import open_tiles
from wasmgraph.targets import Target

# The position of the group's axis among the spatial axes of ``acc``, by the number of spatial axes:
# conv2d_compute, depthwise_compute (no such axis), pointwise_compute.
_GROUP_AXIS = {6: 1, 5: None, 4: 0}


def _spatial(schedule: Schedule, block: SBlockRV) -> list[IterVar]:
    return [axis for axis in schedule.get(block).iter_vars if axis.iter_type == IterVar.DataPar]


def packed_channels(schedule: Schedule, acc: SBlockRV) -> int:
    """The number of channels in a block of weights."""
    return int(_spatial(schedule, acc)[-1].dom.extent)


def follow(
    decision: Decision | None, schedule: Schedule, acc: SBlockRV, pixel: LoopRV, target: Target
) -> Tile:
    """Return ``decision`` if it is a tile, otherwise the target's own tile for the loop's pixels."""
    if isinstance(decision, Tile):
        return decision
    return decide_tile(extent_of(schedule, pixel), packed_channels(schedule, acc), target)


def _parts(
    schedule: Schedule, spatial: tuple[int, ...], rank: int | None = None
) -> tuple[SBlockRV, SBlockRV, list[LoopRV]] | None:
    """Return the accumulating block, the block that writes the output, and the latter's loops. None if the
    number of the accumulating block's spatial axes is not in ``spatial``, or if the output block does not
    have ``rank`` loops (by default, at least 2)."""
    acc, last = find(schedule, "acc"), output(schedule)
    if acc is None or last is None or len(_spatial(schedule, acc)) not in spatial:
        return None
    loops: list[LoopRV] = schedule.get_loops(last)
    return (acc, last, loops) if len(loops) == (rank or max(2, len(loops))) else None


def _group_channels(schedule: Schedule, acc: SBlockRV, channel: LoopRV) -> int:
    """The number of output channels in a group."""
    axes = _spatial(schedule, acc)
    index = _GROUP_AXIS[len(axes)]
    channels = int(schedule.get(channel).extent)
    return channels if index is None else channels // int(axes[index].dom.extent)


def schedule_conv2d(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Direct convolution (``operators.conv2d_compute``): channel block, row, pixel tile, reduction.

    Also schedules the 1×1 convolutions whose rows ``schedule_pointwise`` cannot join.
    """
    parts = _parts(schedule, (4, 5, 6), 4)
    marks = (BATCHED, IMAGES)
    if parts is None or any(mark in schedule.get(parts[0]).annotations for mark in marks):
        return None
    padding = find(schedule, "pad")
    if padding is not None:
        vectorize_copy(schedule, padding, target.lanes)
    acc, last, loops = parts
    inline_between(schedule, acc, last)
    own = _group_channels(schedule, acc, loops[-1])
    schedule = reindex(schedule, last, lambda i, y, x, c: (i, y, x, c // own, c % own))
    acc, last = find(schedule, "acc"), output(schedule)
    image, row, column, group, channel = schedule.get_loops(last)
    chosen = follow(decision, schedule, acc, column, target)
    tile(schedule, acc, last, column, channel, target, chosen, outer=[group], rows=[image, row])
    return schedule, chosen


def schedule_pointwise(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """1×1 convolution (``operators.pointwise_compute``): all pixels in one loop."""
    acc, last = find(schedule, "acc"), output(schedule)
    if acc is None or last is None or BATCHED in schedule.get(acc).annotations:
        return None
    loops, spatial = schedule.get_loops(last), len(_spatial(schedule, acc))
    if len(loops) != 4 or spatial != (5 if IMAGES in schedule.get(acc).annotations else 4):
        return None
    inline_between(schedule, acc, last)
    own = int(schedule.get(loops[-1]).extent) // int(_spatial(schedule, acc)[spatial - 4].dom.extent)
    _, height, width, _ = (extent_of(schedule, loop) for loop in loops)
    # Fusing the loops is not enough: regions are inferred from the block's own axes.
    if spatial == 4:
        schedule = reindex(
            schedule, last, lambda i, y, x, c: ((i * height + y) * width + x, c // own, c % own)
        )
    else:  # the number of images is open
        schedule = reindex(schedule, last, lambda i, y, x, c: (i, y * width + x, c // own, c % own))
    acc, last = find(schedule, "acc"), output(schedule)
    *images, pixel, group, channel = schedule.get_loops(last)
    axes = _spatial(schedule, acc)
    blocks, packed = int(axes[-3].dom.extent), int(axes[-1].dom.extent)
    inner = int(schedule.get(acc).iter_vars[-1].dom.extent)
    if not isinstance(decision, Tile):
        decision = decide_chunked(extent_of(schedule, pixel), packed, blocks, inner, target)
    tile(schedule, acc, last, pixel, channel, target, decision, outer=[*images, group])
    return schedule, decision


def schedule_dense(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Matrix product (``operators.dense_compute``): channel block, row tile, reduction."""
    parts = _parts(schedule, (3,))
    if parts is None:
        return None
    acc, last, loops = parts
    if len(loops) > 2:
        inline_between(schedule, acc, last)
        sizes = [extent_of(schedule, loop) for loop in loops[:-1]]
        schedule = reindex(schedule, last, lambda *at: (flat_index(at[:-1], sizes), at[-1]))
        acc, last = find(schedule, "acc"), output(schedule)
        loops = schedule.get_loops(last)
    pixel, channel = loops
    chosen = decision
    if not isinstance(chosen, Tile):
        chosen = decide_rows(extent_of(schedule, pixel), packed_channels(schedule, acc), target)
    tile(schedule, acc, last, pixel, channel, target, chosen)
    return schedule, chosen


def schedule_open(schedule: Schedule, target: Target, decision: Decision | None = None) -> Scheduled | None:
    """A product or convolution of open sizes (``open_tiles.py``)."""
    found = open_tiles(schedule, target)
    return None if found is None else (Schedule(tvm.IRModule({"main": found[0]})), found[1])


def schedule_product(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Products of two activations (``operators.product_compute``): batch, column block, row tile."""
    parts = _parts(schedule, (4,))
    if parts is None or BATCHED not in schedule.get(parts[0]).annotations:
        return None
    acc, last, loops = parts
    inline_between(schedule, acc, last)
    if len(loops) > 2:
        sizes = [extent_of(schedule, loop) for loop in loops[:-2]]
        schedule = reindex(schedule, last, lambda *at: (flat_index(at[:-2], sizes), at[-2], at[-1]))
        acc, last = find(schedule, "acc"), output(schedule)
    *batch, row, column = schedule.get_loops(last)
    chosen = follow(decision, schedule, acc, row, target)
    tile(schedule, acc, last, row, column, target, chosen, outer=batch)
    return schedule, chosen


def tile(
    schedule: Schedule,
    acc: SBlockRV,
    last: SBlockRV,
    pixel: LoopRV,
    channel: LoopRV,
    target: Target,
    decision: Tile,
    outer: Sequence[LoopRV] = (),
    rows: Sequence[LoopRV] = (),
    alone: bool = True,
) -> None:
    """Tile ``pixel`` × ``channel`` of ``last`` and compute ``acc`` for each tile in registers.

    The loops, from the outside in: ``outer``, blocks of channels, ``rows``, tiles of pixels. If the
    decision has chunks, a loop over chunks of pixels is around as many blocks as the decision says. The
    loops inside the loop over blocks use one block's weights, which stay in the cache. If the product is
    not ``alone`` in its kernel, its loops are not shared between threads, and nothing is prefetched.
    """
    inline_between(schedule, acc, last)
    packed = packed_channels(schedule, acc)
    block, lane = schedule.split(channel, [None, packed])
    if decision.chunk is not None:
        chunks, pixel = schedule.split(pixel, [None, decision.chunk])
        far, block = schedule.split(block, [None, decision.blocks])
        outer = [*outer, far, chunks]
    blocks = [block]
    if decision.channels < packed:  # packed for another target
        part, lane = schedule.split(lane, [None, decision.channels])
        blocks = [block, part]
    tile, within = schedule.split(pixel, [None, decision.pixels])
    schedule.reorder(*(outer if alone else ()), *blocks, *rows, tile, within, lane)
    schedule.compute_at(acc, tile, preserve_unit_loops=True)
    schedule.set_scope(acc, 0, "local")
    # Inside the tile: every spatial axis of acc again (unit loops except for pixel and lane), then the
    # reduction axes.
    own = schedule.get_loops(acc)[len(outer) + len(blocks) + len(rows) + 1 :]
    spatial = len(_spatial(schedule, acc))
    own_pixel, own_lane, reduction = own[spatial - 2], own[spatial - 1], own[spatial:]
    schedule.reorder(*reduction, own_pixel, own_lane)
    vectorize(schedule, own_lane, target)
    schedule.unroll(own_pixel)
    schedule.decompose_reduction(acc, reduction[0])
    vectorize(schedule, lane, target)
    schedule.unroll(within)
    for loop in (tile, *blocks):
        schedule.annotate(loop, PEEL, 1)
    if not alone:
        return
    if target.prefetch:
        schedule.annotate([*rows, tile][0], FETCH_AHEAD, len(rows) + 1)
    share(schedule, *outer, block, *rows, tile)
