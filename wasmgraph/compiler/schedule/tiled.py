"""Convolution and matrix product: a tile of pixels × channels stays in registers while the
reduction runs; bias, residual and activation are applied to it before it is written once.

The reduction loop is never unrolled: Cranelift keeps every unrolled load live to the end of the
block and spills.
"""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from wasmgraph.compiler.schedule.blocks import (
    PEEL,
    find,
    inline_between,
    output,
    vectorize_copy,
)
from wasmgraph.targets import Target


def schedule_conv2d(schedule: Schedule, target: Target) -> bool:
    """Direct convolution (``operators.conv2d_compute``): channel block, row, pixel tile, reduction.

    Also takes the 1×1 convolutions whose rows ``schedule_pointwise`` cannot join.
    """
    acc, last = find(schedule, "acc"), output(schedule)
    if acc is None or last is None or len(schedule.get(acc).iter_vars) not in (4, 7, 8):
        return False
    loops = schedule.get_loops(last)
    if len(loops) != 4:
        return False
    padding = find(schedule, "pad")
    if padding is not None:
        vectorize_copy(schedule, padding, target.lanes)
    image, row, column, channel = loops
    tile(schedule, acc, last, [image, row], column, channel, target)
    return True


def schedule_pointwise(schedule: Schedule, target: Target) -> bool:
    """1×1 convolution (``operators.pointwise_compute``): all pixels in one loop."""
    acc, last = find(schedule, "acc"), output(schedule)
    if acc is None or last is None or len(schedule.get(acc).iter_vars) != 4:
        return False
    loops = schedule.get_loops(last)
    if len(loops) != 4:
        return False
    inline_between(schedule, acc, last)
    _, height, width, _ = (int(schedule.get(loop).extent) for loop in loops)
    # Fusing the loops would not do: regions are inferred from the block's own axes.
    schedule.transform_block_layout(last, lambda i, y, x, c: ((i * height + y) * width + x, c))
    pixel, channel = schedule.get_loops(last)
    tile(schedule, acc, last, [], pixel, channel, target)
    return True


def schedule_dense(schedule: Schedule, target: Target) -> bool:
    """Matrix product (``operators.dense_compute``): channel block, row tile, reduction."""
    acc, last = find(schedule, "acc"), output(schedule)
    if acc is None or last is None or len(schedule.get(acc).iter_vars) != 4:
        return False
    loops = schedule.get_loops(last)
    if len(loops) != 2:
        return False
    tile(schedule, acc, last, [], loops[0], loops[1], target)
    return True


def tile(
    schedule: Schedule,
    acc: SBlockRV,
    last: SBlockRV,
    outer: list[LoopRV],
    pixel: LoopRV,
    channel: LoopRV,
    target: Target,
) -> None:
    """Tile ``pixel`` × ``channel`` of ``last`` and compute ``acc`` for each tile in registers."""
    inline_between(schedule, acc, last)
    pixels = min(target.tile_pixels, int(schedule.get(pixel).extent))
    block, lane = schedule.split(channel, [None, target.tile_channels])
    tile, within = schedule.split(pixel, [None, pixels])
    schedule.reorder(block, *outer, tile, within, lane)
    schedule.compute_at(acc, tile, preserve_unit_loops=True)
    schedule.set_scope(acc, 0, "local")
    # Below the tile: every spatial axis of acc again (unit loops but for pixel and lane), then
    # the reduction axes.
    own = schedule.get_loops(acc)[len(outer) + 2 :]
    spatial = sum(1 for axis in schedule.get(acc).iter_vars if axis.iter_type == 0)
    own_pixel, own_lane, reduction = own[spatial - 2], own[spatial - 1], own[spatial:]
    schedule.reorder(*reduction, own_pixel, own_lane)
    schedule.vectorize(own_lane)
    schedule.unroll(own_pixel)
    schedule.decompose_reduction(acc, reduction[0])
    schedule.vectorize(lane)
    schedule.unroll(within)
    schedule.annotate(tile, PEEL, 1)
    schedule.annotate(block, PEEL, 1)
