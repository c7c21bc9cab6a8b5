"""Convolution and matrix product: a tile of pixels × channels stays in registers while the
reduction runs; bias, residual and activation are applied to it before it is written once.

The reduction loop is never unrolled: Cranelift keeps every unrolled load live to the end of the
block and spills.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def _parts(
    schedule: Schedule, axes: tuple[int, ...], rank: int
) -> tuple[SBlockRV, SBlockRV, list[LoopRV]] | None:
    """The accumulating block, the block that writes the output, and that block's loops; None if
    the kernel has not one of ``axes`` many axes in the first or ``rank`` loops in the last."""
    acc, last = find(schedule, "acc"), output(schedule)
    if acc is None or last is None or len(schedule.get(acc).iter_vars) not in axes:
        return None
    loops: list[LoopRV] = schedule.get_loops(last)
    return (acc, last, loops) if len(loops) == rank else None


def schedule_conv2d(schedule: Schedule, target: Target) -> bool:
    """Direct convolution (``operators.conv2d_compute``): channel block, row, pixel tile, reduction.

    Also takes the 1×1 convolutions whose rows ``schedule_pointwise`` cannot join.
    """
    parts = _parts(schedule, (4, 7, 8), 4)
    if parts is None:
        return False
    padding = find(schedule, "pad")
    if padding is not None:
        vectorize_copy(schedule, padding, target.lanes)
    acc, last, (image, row, column, channel) = parts
    tile(schedule, acc, last, column, channel, target, rows=(image, row))
    return True


def schedule_pointwise(schedule: Schedule, target: Target) -> bool:
    """1×1 convolution (``operators.pointwise_compute``): all pixels in one loop."""
    parts = _parts(schedule, (4,), 4)
    if parts is None:
        return False
    acc, last, loops = parts
    inline_between(schedule, acc, last)
    _, height, width, _ = (int(schedule.get(loop).extent) for loop in loops)
    # Fusing the loops would not do: regions are inferred from the block's own axes.
    schedule.transform_block_layout(last, lambda i, y, x, c: ((i * height + y) * width + x, c))
    pixel, channel = schedule.get_loops(last)
    tile(schedule, acc, last, pixel, channel, target)
    return True


def schedule_dense(schedule: Schedule, target: Target) -> bool:
    """Matrix product (``operators.dense_compute``): channel block, row tile, reduction."""
    parts = _parts(schedule, (4,), 2)
    if parts is None:
        return False
    acc, last, (pixel, channel) = parts
    tile(schedule, acc, last, pixel, channel, target)
    return True


def tile(
    schedule: Schedule,
    acc: SBlockRV,
    last: SBlockRV,
    pixel: LoopRV,
    channel: LoopRV,
    target: Target,
    outer: Sequence[LoopRV] = (),
    rows: Sequence[LoopRV] = (),
) -> None:
    """Tile ``pixel`` × ``channel`` of ``last`` and compute ``acc`` for each tile in registers.

    From the outside in: ``outer``, blocks of channels, ``rows``, tiles of pixels. What lies inside the
    loop over blocks is done with one block's weights, which stay in the cache.
    """
    inline_between(schedule, acc, last)
    pixels = min(target.tile_pixels, int(schedule.get(pixel).extent))
    block, lane = schedule.split(channel, [None, target.tile_channels])
    tile, within = schedule.split(pixel, [None, pixels])
    schedule.reorder(*outer, block, *rows, tile, within, lane)
    schedule.compute_at(acc, tile, preserve_unit_loops=True)
    schedule.set_scope(acc, 0, "local")
    # Below the tile: every spatial axis of acc again (unit loops but for pixel and lane), then
    # the reduction axes.
    own = schedule.get_loops(acc)[len(outer) + len(rows) + 2 :]
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
