"""Weights in blocks: output channels lie in blocks as wide as a register tile (T below), padded with zeros,
so that a tile reads its weights from consecutive bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from wasmgraph.compiler.constants import allocate, array_of, constant, is_in_file, let_go
from wasmgraph.compiler.sizes import numbers
from wasmgraph.targets import Target

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

# Relax's operator pattern: element-wise operators that follow may be fused into the kernel.
OUT_FUSIBLE = 4


def default_legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The operator as TVM computes it."""
    legalize: Legalize = call.op.get_attr("FLegalize")
    return legalize(bb, call)


def channel_block(channels: int, target: Target) -> int:
    """How many output channels a register tile takes: ``tile_channels``, or a half or a quarter of it
    where that leaves less of the last block empty. A tile costs its channels and half a full tile
    besides. Other parts than powers of two become odd vectors, which LLVM pads.
    """
    full = target.tile_channels
    return min(widths(target), key=lambda w: (-(-channels // w) * (w + full / 2), w))


def lane_block(channels: int, target: Target) -> int:
    """The same for :func:`depthwise_compute`, where a block that is not full costs every block its
    vector loads: the widest that divides ``channels``, if one does."""
    return next((w for w in widths(target) if channels % w == 0), target.tile_channels)


def widths(target: Target) -> list[int]:
    """Channels that a register tile may have: ``tile_channels``, or a half or a quarter of it."""
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
    """The same as a kernel, for weights that are known when the graph runs."""
    out, kh, kw, inner = numbers(weight.shape)
    own = out // groups

    def packed(g: Any, b: Any, y: Any, x: Any, i: Any, lane: Any) -> Any:
        channel = b * block + lane
        zero = tirx.const(0, weight.dtype)
        return tirx.if_then_else(channel < own, weight[g * own + channel, y, x, i], zero)

    return te.compute((groups, -(-own // block), kh, kw, inner, block), packed, name="pack")


def pack(bb: relax.BlockBuilder, weight: relax.Expr, block: int, groups: int = 1) -> relax.Expr:
    """Packed weights: at once where they are known, by a kernel where they are computed."""
    if isinstance(weight, GenericConst):
        values = array_of(weight)
        packed = pack_conv2d(values, block, groups)
        let_go(values)
        let_go(packed)
        return constant(packed)
    return bb.call_te(pack_compute, weight, block, groups, primfunc_name_hint="pack")
