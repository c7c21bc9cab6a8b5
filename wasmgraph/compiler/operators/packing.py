"""Weights in blocks: output channels lie in blocks as wide as a register tile (T below), padded with zeros,
so that a tile reads its weights from consecutive bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from wasmgraph.targets import Target

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

# Relax's operator pattern: element-wise operators that follow may be fused into the kernel.
OUT_FUSIBLE = 4


def default_legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The operator as TVM computes it."""
    legalize: Legalize = call.op.get_attr("FLegalize")
    return legalize(bb, call)


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """The shape of an expression all of whose dimensions are known."""
    return tuple(int(d) for d in expr.ty.shape.values)


def channel_block(channels: int, target: Target) -> int:
    """How many output channels a register tile takes: ``tile_channels``, or a half or a quarter of it
    where that leaves less of the last block empty. A tile costs its channels and half a full tile
    besides. Other parts than powers of two become odd vectors, which LLVM pads.
    """
    full = target.tile_channels
    return min(_widths(target), key=lambda w: (-(-channels // w) * (w + full / 2), w))


def lane_block(channels: int, target: Target) -> int:
    """The same for :func:`depthwise_compute`, where a block that is not full costs every block its
    vector loads: the widest that divides ``channels``, if one does."""
    return next((w for w in _widths(target) if channels % w == 0), target.tile_channels)


def _widths(target: Target) -> list[int]:
    full = target.tile_channels
    return [w for w in (full, full // 2, full // 4) if w and w % target.lanes == 0]


def pack_conv2d(weight: np.ndarray, block: int, groups: int = 1) -> np.ndarray:
    """Pack ``[O][KH][KW][I]`` to ``[G][O/G/T][KH][KW][I][T]``, T = ``block``; a group's last block is
    padded with zeros."""
    out, kh, kw, inner = weight.shape
    own = out // groups
    blocks = -(-own // block)
    packed = np.zeros((groups, blocks * block, kh, kw, inner), weight.dtype)
    packed[:, :own] = weight.reshape(groups, own, kh, kw, inner)
    packed = packed.reshape(groups, blocks, block, kh, kw, inner)
    return np.ascontiguousarray(packed.transpose(0, 1, 3, 4, 5, 2))
