"""How Relax operators that matter for speed are computed: tensor expressions over packed weights.

All put output channels in blocks as wide as a register tile (T below), padded with zeros, so that
a tile reads its weights from consecutive bytes. The block called ``acc`` is what the
schedule rules look for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx, topi
from tvm.ir import GenericConst

from wasmgraph.compiler.algorithm import Convolution, choose
from wasmgraph.compiler.winograd import pack_weights, winograd_compute
from wasmgraph.targets import Target

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

# Relax's operator pattern: element-wise operators that follow may be fused into the kernel.
_OUT_FUSIBLE = 4


def legalizations(target: Target, winograd: bool) -> dict[str, Legalize]:
    """The operators computed here, for a target; what they decline goes TVM's own way."""
    return {
        "relax.nn.conv2d": lambda bb, call: _conv2d(bb, call, target, winograd),
        "relax.matmul": lambda bb, call: _dense(bb, call, target),
    }


def _default(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    legalize: Legalize = call.op.get_attr("FLegalize")
    return legalize(bb, call)


def _static(expr: relax.Expr) -> tuple[int, ...]:
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


@dataclass(frozen=True)
class _Window:
    """Where the windows of a convolution lie; ``padding`` is top, left, bottom, right."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    def pad(self, data: te.Tensor) -> te.Tensor:
        """``[N][H][W][I]`` with its zeros around it."""
        top, left, bottom, right = self.padding
        if not any(self.padding):
            return data
        return topi.nn.pad(data, [0, top, left, 0], [0, bottom, right, 0], 0.0, name="pad")

    def outputs(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the result for a padded input of ``size``."""
        (sy, sx), (dy, dx) = self.stride, self.dilation
        return (size[0] - (kernel[0] - 1) * dy - 1) // sy + 1, (
            size[1] - (kernel[1] - 1) * dx - 1
        ) // sx + 1


def conv2d_compute(data: te.Tensor, weight: te.Tensor, channels: int, window: _Window) -> te.Tensor:
    """Direct convolution, ``[N][H][W][G·I]`` by packed weights ``[G][O/G/T][KH][KW][I][T]``.

    The result is ``[N][OH][OW][O]``, ``channels`` = O.
    """
    data = window.pad(data)
    n, h, w, _ = (int(d) for d in data.shape)
    groups, blocks, kernel_h, kernel_w, inner, block = (int(d) for d in weight.shape)
    (sy, sx), (dy, dx) = window.stride, window.dilation
    oh, ow = window.outputs((h, w), (kernel_h, kernel_w))
    own = channels // groups
    ky = te.reduce_axis((0, kernel_h), "ky")
    if groups == 1 and dx == 1:
        # A window's row is contiguous in data and weights alike: one long loop instead of two.
        row = te.reduce_axis((0, kernel_w * inner), "row")
        axes, kx, ki = [ky, row], row // inner, row % inner
    else:
        kx, ki = te.reduce_axis((0, kernel_w), "kx"), te.reduce_axis((0, inner), "ki")
        axes = [ky, kx, ki]
    acc = te.compute(
        (n, groups, blocks, oh, ow, block),
        lambda i, g, b, y, x, lane: te.sum(
            data[i, y * sy + ky * dy, x * sx + kx * dx, g * inner + ki] * weight[g, b, ky, kx, ki, lane],
            axis=axes,
        ),
        name="acc",
    )
    return te.compute(
        (n, oh, ow, channels),
        lambda i, y, x, c: acc[i, c // own, c % own // block, y, x, c % own % block],
        name="conv2d",
    )


def depthwise_compute(data: te.Tensor, weight: te.Tensor, channels: int, window: _Window) -> te.Tensor:
    """Convolution of groups narrower than a vector: every lane is a channel with a source of its own.

    ``[N][H][W][C]`` by packed weights ``[1][O/T][KH][KW][I][T]``, I channels to a group, to
    ``[N][OH][OW][O]``, ``channels`` = O.
    """
    groups_inner = int(data.shape[3])
    data = window.pad(data)
    n, h, w, _ = (int(d) for d in data.shape)
    _, blocks, kernel_h, kernel_w, inner, block = (int(d) for d in weight.shape)
    (sy, sx), (dy, dx) = window.stride, window.dilation
    oh, ow = window.outputs((h, w), (kernel_h, kernel_w))
    own = channels // (groups_inner // inner)
    ky, kx, ki = (te.reduce_axis((0, extent), "k") for extent in (kernel_h, kernel_w, inner))

    def source(b: Any, lane: Any) -> Any:
        # Padded lanes of the last block must stay inside the data; their weights are zero.
        channel = tirx.min(b * block + lane, channels - 1)
        return (channel if own == 1 else channel // own) * inner + ki

    acc = te.compute(
        (n, blocks, oh, ow, block),
        lambda i, b, y, x, lane: te.sum(
            data[i, y * sy + ky * dy, x * sx + kx * dx, source(b, lane)] * weight[0, b, ky, kx, ki, lane],
            axis=[ky, kx, ki],
        ),
        name="acc",
    )
    return te.compute(
        (n, oh, ow, channels),
        lambda i, y, x, c: acc[i, c // block, y, x, c % block],
        name="conv2d",
    )


def pointwise_compute(
    data: te.Tensor, weight: te.Tensor, channels: int, stride: tuple[int, int]
) -> te.Tensor:
    """1×1 convolution, ``[N][H][W][G·I]`` by packed weights ``[G][O/G/T][1][1][I][T]``.

    A matrix product over all pixels at once: rows that no tile divides matter only at the end.
    """
    n = int(data.shape[0])
    sy, sx = stride
    h, w = ((int(d) - 1) // s + 1 for d, s in zip(data.shape[1:3], stride, strict=True))
    groups, blocks, _, _, inner, block = (int(d) for d in weight.shape)
    own = channels // groups
    k = te.reduce_axis((0, inner), "k")
    acc = te.compute(
        (groups, blocks, n * h * w, block),
        lambda g, b, p, lane: te.sum(
            data[p // (h * w), p % (h * w) // w * sy, p % w * sx, g * inner + k]
            * weight[g, b, 0, 0, k, lane],
            axis=[k],
        ),
        name="acc",
    )
    return te.compute(
        (n, h, w, channels),
        lambda i, y, x, c: acc[c // own, c % own // block, (i * h + y) * w + x, c % own % block],
        name="conv2d",
    )


def _conv2d(bb: relax.BlockBuilder, call: relax.Call, target: Target, winograd: bool) -> relax.Expr:
    data, weight = call.args
    attrs = call.attrs
    if (
        not isinstance(weight, GenericConst)
        or str(data.ty.dtype) != "float32"
        or (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) != ("NHWC", "OHWI", "NHWC")
    ):
        return _default(bb, call)
    channels, kernel_h, kernel_w, inner = _static(weight)
    batch, out_height, out_width, _ = _static(call)
    top, left, bottom, right = (int(i) for i in attrs.padding)
    padding = (top, left, bottom, right)
    conv = Convolution(
        batch=batch,
        out_height=out_height,
        out_width=out_width,
        in_channels=inner * int(attrs.groups),
        out_channels=channels,
        kernel=(kernel_h, kernel_w),
        stride=(int(attrs.strides[0]), int(attrs.strides[1])),
        dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
        groups=int(attrs.groups),
    )
    values = weight.value.numpy()
    hints = {"primfunc_name_hint": "conv2d", "primfunc_attrs": {"op_pattern": _OUT_FUSIBLE}}
    algorithm = choose(conv, target, winograd)
    if algorithm == "direct":
        window = _Window(conv.stride, padding, conv.dilation)
        own = channels // conv.groups
        if conv.groups > 1 and own < target.lanes:
            packed = relax.const(pack_conv2d(values, lane_block(channels, target)))
            return bb.call_te(partial(depthwise_compute, window=window), data, packed, channels, **hints)
        packed = relax.const(pack_conv2d(values, channel_block(own, target), conv.groups))
        if conv.is_pointwise and not any(padding):
            return bb.call_te(pointwise_compute, data, packed, channels, conv.stride, **hints)
        return bb.call_te(partial(conv2d_compute, window=window), data, packed, channels, **hints)
    m = 2 if algorithm == "winograd-2" else 4
    packed = relax.const(pack_weights(values, channel_block(channels, target), m))
    return bb.call_te(winograd_compute, data, packed, channels, padding, m, **hints)


def dense_compute(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """Matrix product, ``[M][K]`` by packed weights ``[N/T][K][T]``, to ``[M][N]``, ``channels`` = N."""
    rows, _ = (int(d) for d in data.shape)
    blocks, inner, block = (int(d) for d in weight.shape)
    k = te.reduce_axis((0, inner), "k")
    acc = te.compute(
        (blocks, rows, block),
        lambda b, m, lane: te.sum(data[m, k] * weight[b, k, lane], axis=[k]),
        name="acc",
    )
    return te.compute((rows, channels), lambda m, c: acc[c // block, m, c % block], name="dense")


def _dense(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    data, weight = call.args
    if (
        not isinstance(weight, GenericConst)
        or str(data.ty.dtype) != "float32"
        or len(_static(weight)) != 2
        or len(_static(data)) != 2
    ):
        return _default(bb, call)
    inner, channels = _static(weight)
    matrix = np.ascontiguousarray(weight.value.numpy().T).reshape(channels, 1, 1, inner)
    packed = pack_conv2d(matrix, channel_block(channels, target))[0, :, 0, 0]
    return bb.call_te(
        dense_compute,
        data,
        relax.const(np.ascontiguousarray(packed)),
        channels,
        primfunc_name_hint="dense",
        primfunc_attrs={"op_pattern": _OUT_FUSIBLE},
    )


def tvm_dtype_bytes(dtype: str) -> int:
    """Bytes of one element of a TVM dtype; a boolean takes one."""
    bits: int = tvm.DataType(dtype).bits * tvm.DataType(dtype).lanes
    return max(1, bits // 8)
