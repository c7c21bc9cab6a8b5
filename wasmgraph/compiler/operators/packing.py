"""Packed weights: output channels are stored in blocks as wide as a register tile (T below), padded with
zeros, so that a tile reads its weights from consecutive bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from wasmgraph.compiler.constants import allocate, array_of, constant, is_in_file, let_go
from wasmgraph.compiler.sizes import call_te, numbers
from wasmgraph.dims import Size
from wasmgraph.targets import Target

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

FEW_ROWS = 16
# Relax's operator pattern: element-wise operators that follow may be fused into the kernel.
OUT_FUSIBLE = 4
# Nothing may be.
OPAQUE = 8


def default_legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Legalise an operator as TVM does."""
    legalize: Legalize = call.op.get_attr("FLegalize")
    return legalize(bb, call)


def channel_block(channels: int, target: Target) -> int:
    """The number of output channels in a register tile: ``tile_channels``, or a half or a quarter of it if
    less of the last block is then empty. The cost of a tile is its channels plus half of ``tile_channels``.
    Other fractions than these would give vectors of odd widths, which LLVM pads.
    """
    full = target.tile_channels
    return min(widths(target), key=lambda w: (-(-channels // w) * (w + full / 2), w))


def few_rows_block(rows: Size, target: Target) -> int | None:
    """The block for a product of few rows by weights that come from memory; None for other products.

    The first tile of rows waits for a block's weights, the others find them in the cache. With half of the
    channels a tile has twice the rows (``decide_tile``), so that a larger part of the arithmetic overlaps
    with memory. A target that can prefetch does not need it.
    """
    half = target.tile_channels // 2
    few = isinstance(rows, int) and target.tile_pixels < rows <= FEW_ROWS and not target.prefetch
    return half if few and half % target.lanes == 0 else None


def lane_block(channels: int, target: Target) -> int:
    """The block for :func:`depthwise_compute`: the widest that divides ``channels``, if one does. If the
    last block is not full, no block can use vector loads."""
    return next((w for w in widths(target) if channels % w == 0), target.tile_channels)


def widths(target: Target) -> list[int]:
    """The numbers of channels that a register tile may have: ``tile_channels``, a half or a quarter of
    it."""
    full = target.tile_channels
    return [w for w in (full, full // 2, full // 4) if w and w % target.lanes == 0]


def pack_conv2d(weight: np.ndarray, block: int, groups: int = 1) -> np.ndarray:
    """Pack ``[O][KH][KW][I]`` to ``[G][O/G/T][KH][KW][I][T]``, T = ``block``; a group's last block is
    padded with zeros."""
    out, kh, kw, inner = weight.shape
    own = out // groups
    full, rest = divmod(own, block)
    shape = (groups, full + bool(rest), kh, kw, inner, block)
    packed = allocate(shape, weight.dtype, in_file=is_in_file(weight))
    split = weight.reshape(groups, own, kh, kw, inner)
    whole = split[:, : full * block].reshape(groups, full, block, kh, kw, inner)
    packed[:, :full] = whole.transpose(0, 1, 3, 4, 5, 2)
    if rest:
        packed[:, full] = 0
        packed[:, full, ..., :rest] = split[:, full * block :].transpose(0, 2, 3, 4, 1)
    return packed


def pack_compute(weight: te.Tensor, block: int, groups: int = 1) -> te.Tensor:
    """Like :func:`pack_conv2d`, as a kernel, for weights that are computed when the graph runs."""
    out, kh, kw, inner = numbers(weight.shape)
    own = out // groups

    def packed(g: Any, b: Any, y: Any, x: Any, i: Any, lane: Any) -> Any:
        channel = b * block + lane
        zero = tirx.const(0, weight.dtype)
        return tirx.if_then_else(channel < own, weight[g * own + channel, y, x, i], zero)

    return te.compute((groups, -(-own // block), kh, kw, inner, block), packed, name="pack")


def in_pairs(packed: np.ndarray) -> np.ndarray:
    """Pack integers ``[...][I][T]`` to ``[...][I/2][T][2]``; an odd I is padded with zeros."""
    *outer, inner, block = packed.shape
    even = np.pad(packed, [*([(0, 0)] * len(outer)), (0, inner % 2), (0, 0)])
    paired = even.reshape(*outer, -1, 2, block)
    return np.ascontiguousarray(np.moveaxis(paired, -2, -1))


def narrowed(values: np.ndarray) -> np.ndarray:
    """Integers of int16 as int8, if they fit."""
    fits = values.dtype == np.int16 and values.size and values.min() >= -128 and values.max() <= 127
    return values.astype(np.int8) if fits else values


def multiplied(dtype: str, data: Callable[[int], Any], weight: Callable[..., Any], step: int) -> Any:
    """A term of a sum of products of data of ``dtype``. Of integers it is in int32, and that of ``step``
    products: 0 if weights do not lie in pairs."""
    if dtype != "int16":
        return data(0) * weight()
    if step == 0:
        return data(0).astype("int32") * weight().astype("int32")
    first, second = (data(n).astype("int32") * weight(n).astype("int32") for n in range(step))
    return first + second


def pack(
    bb: relax.BlockBuilder, weight: relax.Expr, block: int, groups: int = 1, pairs: bool = False
) -> relax.Expr:
    """Pack weights: at compile time if they are known, otherwise by a kernel; ``pairs`` as
    :func:`in_pairs` does."""
    if isinstance(weight, GenericConst):
        values = array_of(weight)
        packed = pack_conv2d(narrowed(values), block, groups)
        packed = in_pairs(packed) if pairs else packed
        let_go(values)
        let_go(packed)
        return constant(packed)
    return call_te(bb, pack_compute, weight, block, groups, primfunc_name_hint="pack")
