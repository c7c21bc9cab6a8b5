"""How Relax operators that matter for speed are computed: tensor expressions over packed weights.

Both put output channels in blocks of ``tile_channels`` (T below), padded with zeros, so that a
register tile reads its weights from consecutive bytes. The block called ``acc`` is what the
schedule rules look for.
"""

from __future__ import annotations

from collections.abc import Callable
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


def pack_conv2d(weight: np.ndarray, block: int) -> np.ndarray:
    """Pack ``[O][KH][KW][I]`` to ``[O/T][KH][KW][I][T]``, T = ``block``, the last block padded."""
    out, kh, kw, inner = weight.shape
    blocks = -(-out // block)
    packed = np.zeros((blocks * block, kh, kw, inner), weight.dtype)
    packed[:out] = weight
    return np.ascontiguousarray(packed.reshape(blocks, block, kh, kw, inner).transpose(0, 2, 3, 4, 1))


def conv2d_compute(
    data: te.Tensor,
    weight: te.Tensor,
    channels: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> te.Tensor:
    """Direct convolution, ``[N][H][W][I]`` by packed weights ``[O/T][KH][KW][I/groups][T]``.

    ``padding`` is top, left, bottom, right. The result is ``[N][OH][OW][O]``, ``channels`` = O.
    """
    n, h, w, _ = (int(d) for d in data.shape)
    blocks, kernel_h, kernel_w, inner, block = (int(d) for d in weight.shape)
    (top, left, bottom, right), (sy, sx), (dy, dx) = padding, stride, dilation
    oh = (h + top + bottom - (kernel_h - 1) * dy - 1) // sy + 1
    ow = (w + left + right - (kernel_w - 1) * dx - 1) // sx + 1
    if any(padding):
        data = topi.nn.pad(data, [0, top, left, 0], [0, bottom, right, 0], 0.0, name="pad")
    per_group = channels // groups
    ky = te.reduce_axis((0, kernel_h), "ky")
    if groups == 1 and dx == 1:
        # A window's row is contiguous in data and weights alike: one long loop instead of two.
        row = te.reduce_axis((0, kernel_w * inner), "row")
        axes, kx, ki = [ky, row], row // inner, row % inner
    else:
        kx, ki = te.reduce_axis((0, kernel_w), "kx"), te.reduce_axis((0, inner), "ki")
        axes = [ky, kx, ki]

    def source(b: Any, lane: Any) -> Any:
        if groups == 1:
            return ki
        # Padded lanes of the last block must stay inside the data; their weights are zero.
        channel = tirx.min(b * block + lane, channels - 1)
        return (channel if per_group == 1 else channel // per_group) * inner + ki

    acc = te.compute(
        (n, blocks, oh, ow, block),
        lambda i, b, y, x, lane: te.sum(
            data[i, y * sy + ky * dy, x * sx + kx * dx, source(b, lane)] * weight[b, ky, kx, ki, lane],
            axis=axes,
        ),
        name="acc",
    )
    return te.compute(
        (n, oh, ow, channels),
        lambda i, y, x, c: acc[i, c // block, y, x, c % block],
        name="conv2d",
    )


def pointwise_compute(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """1×1 convolution of stride 1, ``[N][H][W][I]`` by packed weights ``[O/T][1][1][I][T]``.

    A matrix product over all pixels at once: rows that no tile divides matter only at the end.
    """
    n, h, w, inner = (int(d) for d in data.shape)
    blocks, _, _, _, block = (int(d) for d in weight.shape)
    k = te.reduce_axis((0, inner), "k")
    acc = te.compute(
        (blocks, n * h * w, block),
        lambda b, p, lane: te.sum(
            data[p // (h * w), p % (h * w) // w, p % w, k] * weight[b, 0, 0, k, lane], axis=[k]
        ),
        name="acc",
    )
    return te.compute(
        (n, h, w, channels),
        lambda i, y, x, c: acc[c // block, (i * h + y) * w + x, c % block],
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
    padding = tuple(int(i) for i in attrs.padding)
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
        packed = relax.const(pack_conv2d(values, target.tile_channels))
        if conv.is_pointwise and not any(padding):
            return bb.call_te(pointwise_compute, data, packed, channels, **hints)
        geometry = (conv.stride, padding, conv.dilation, conv.groups)
        return bb.call_te(conv2d_compute, data, packed, channels, *geometry, **hints)
    m = 2 if algorithm == "winograd-2" else 4
    packed = relax.const(pack_weights(values, target.tile_channels, m))
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
    packed = pack_conv2d(matrix, target.tile_channels)[:, 0, 0]
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
