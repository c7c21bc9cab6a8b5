"""Convolutions as tensor expressions over packed weights: direct, depthwise and pointwise.

The schedule rules look for the block called ``acc``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import relax, te, tirx, topi
from tvm.ir import GenericConst

from wasmgraph.compiler.constants import array_of, constant
from wasmgraph.compiler.operators.algorithm import Convolution, choose
from wasmgraph.compiler.operators.packing import (
    OUT_FUSIBLE,
    channel_block,
    default_legalize,
    lane_block,
    multiplied,
    pack,
)
from wasmgraph.compiler.operators.winograd import pack_weights, winograd_compute
from wasmgraph.compiler.sizes import call_te, numbers, shape_of, sizes, static_shape
from wasmgraph.dims import Size, is_closed, typical
from wasmgraph.targets import Target

# Marks the accumulating block of 1×1 convolutions of an open number of images, which is its first axis.
IMAGES = "wasmgraph_images"


@dataclass(frozen=True)
class _Window:
    """The positions of a convolution's windows; ``padding`` is top, left, bottom, right."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    def pad(self, data: te.Tensor, channels: int = 0) -> te.Tensor:
        """Pad ``[N][H][W][I]`` with zeros, and with so many channels of zeros."""
        top, left, bottom, right = self.padding
        if not any(self.padding) and not channels:
            return data
        zero = tirx.const(0, data.dtype)
        return topi.nn.pad(data, [0, top, left, 0], [0, bottom, right, channels], zero, name="pad")

    def outputs(self, size: Sequence[Size], kernel: Sequence[int]) -> tuple[Size, Size]:
        """Rows and columns of the result for a padded input of ``size``."""
        (sy, sx), (dy, dx) = self.stride, self.dilation
        return (size[0] - (kernel[0] - 1) * dy - 1) // sy + 1, (
            size[1] - (kernel[1] - 1) * dx - 1
        ) // sx + 1


def conv2d_compute(data: te.Tensor, weight: te.Tensor, channels: int, window: _Window) -> te.Tensor:
    """Direct convolution, ``[N][H][W][G·I]`` by packed weights ``[G][O/G/T][KH][KW][I][T]``, or of
    integers ``[G][O/G/T][KH][KW][I/2][T][2]``.

    The result is ``[N][OH][OW][O]``, ``channels`` = O.
    """
    groups, blocks, kernel_h, kernel_w, inner, block, *pair = numbers(weight.shape)
    step = pair[0] if pair else 0
    each = step or 1  # channels of a turn
    data = window.pad(data, groups * inner * each - numbers(data.shape[3:])[0])
    n, h, w, _ = sizes(data.shape)
    (sy, sx), (dy, dx) = window.stride, window.dilation
    oh, ow = window.outputs((h, w), (kernel_h, kernel_w))
    own = channels // groups
    ky = te.reduce_axis((0, kernel_h), "ky")
    if groups == 1 and dx == 1:
        # A window's row is contiguous in both data and weights: use one long loop instead of two.
        row = te.reduce_axis((0, kernel_w * inner), "row")
        axes, kx, ki = [ky, row], row // inner, row % inner
    else:
        kx, ki = te.reduce_axis((0, kernel_w), "kx"), te.reduce_axis((0, inner), "ki")
        axes = [ky, kx, ki]
    acc = te.compute(
        (n, groups, blocks, oh, ow, block),
        lambda i, g, b, y, x, lane: te.sum(
            multiplied(
                str(data.dtype),
                lambda n: data[i, y * sy + ky * dy, x * sx + kx * dx, (g * inner + ki) * each + n],
                lambda *n: weight[(g, b, ky, kx, ki, lane, *n)],
                step,
            ),
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
    """Convolution of groups narrower than a vector: each lane is an output channel with its own input
    channels.

    ``[N][H][W][C]`` by packed weights ``[1][O/T][KH][KW][I][T]``, with I channels per group. The result is
    ``[N][OH][OW][O]``, ``channels`` = O.
    """
    groups_inner = int(data.shape[3])
    data = window.pad(data)
    n, h, w, _ = sizes(data.shape)
    _, blocks, kernel_h, kernel_w, inner, block = numbers(weight.shape)
    (sy, sx), (dy, dx) = window.stride, window.dilation
    oh, ow = window.outputs((h, w), (kernel_h, kernel_w))
    own = channels // (groups_inner // inner)
    ky, kx, ki = (te.reduce_axis((0, extent), "k") for extent in (kernel_h, kernel_w, inner))

    def source(b: Any, lane: Any) -> Any:
        # Padded lanes of the last block must read inside the data; their weights are zero.
        channel = tirx.min(b * block + lane, channels - 1)
        return (channel if own == 1 else channel // own) * inner + ki

    acc = te.compute(
        (n, blocks, oh, ow, block),
        lambda i, b, y, x, lane: te.sum(
            multiplied(
                str(data.dtype),
                lambda _: data[i, y * sy + ky * dy, x * sx + kx * dx, source(b, lane)],
                lambda: weight[0, b, ky, kx, ki, lane],
                0,
            ),
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
    """1×1 convolution, ``[N][H][W][G·I]`` by packed weights ``[G][O/G/T][1][1][I][T]``, or of integers
    ``[G][O/G/T][1][1][I/2][T][2]``.

    This is a matrix product over all pixels at once, so there is only one remainder that does not fill a
    tile, instead of one per row.
    """
    sy, sx = stride
    n, *size = sizes(data.shape[:3])
    h, w = ((d - 1) // s + 1 for d, s in zip(size, stride, strict=True))
    groups, blocks, _, _, inner, block, *pair = numbers(weight.shape)
    step = pair[0] if pair else 0
    each = step or 1  # channels of a turn
    own = channels // groups
    k = te.reduce_axis((0, inner), "k")

    def term(g: Any, b: Any, lane: Any, *place: Any) -> Any:
        return multiplied(
            str(data.dtype),
            lambda n: data[(*place, (g * inner + k) * each + n)],
            lambda *n: weight[(g, b, 0, 0, k, lane, *n)],
            step,
        )

    if not isinstance(n, int) and is_closed((h, w)):
        acc = te.compute(
            (n, groups, blocks, h * w, block),
            lambda i, g, b, p, lane: te.sum(term(g, b, lane, i, p // w * sy, p % w * sx), axis=[k]),
            name="acc",
            attrs={IMAGES: 1},
        )
        return te.compute(
            (n, h, w, channels),
            lambda i, y, x, c: acc[i, c // own, c % own // block, y * w + x, c % own % block],
            name="conv2d",
        )
    if not is_closed((n, h, w)):  # pixels that are joined would be divided into indices again
        acc = te.compute(
            (n, groups, blocks, h, w, block),
            lambda i, g, b, y, x, lane: te.sum(term(g, b, lane, i, y * sy, x * sx), axis=[k]),
            name="acc",
        )
        return te.compute(
            (n, h, w, channels),
            lambda i, y, x, c: acc[i, c // own, c % own // block, y, x, c % own % block],
            name="conv2d",
        )
    acc = te.compute(
        (groups, blocks, n * h * w, block),
        lambda g, b, p, lane: te.sum(
            term(g, b, lane, p // (h * w), p % (h * w) // w * sy, p % w * sx), axis=[k]
        ),
        name="acc",
    )
    return te.compute(
        (n, h, w, channels),
        lambda i, y, x, c: acc[c // own, c % own // block, (i * h + y) * w + x, c % own % block],
        name="conv2d",
    )


def legalize_convolution(
    bb: relax.BlockBuilder, call: relax.Call, target: Target, winograd: bool
) -> relax.Expr:
    """Legalise a convolution of float32 or int16 with known weights, by the algorithm that ``choose``
    selects; others are left to TVM."""
    data, weight = call.args
    attrs = call.attrs
    if (
        not isinstance(weight, GenericConst)
        or str(data.ty.dtype) not in ("float32", "int16")
        or (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) != ("NHWC", "OHWI", "NHWC")
    ):
        return default_legalize(bb, call)
    channels, kernel_h, kernel_w, inner = static_shape(weight)
    batch, out_height, out_width, _ = map(typical, shape_of(call))
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
    hints = {"primfunc_name_hint": "conv2d", "primfunc_attrs": {"op_pattern": OUT_FUSIBLE}}
    whole = str(data.ty.dtype) == "int16"
    algorithm = "direct" if whole else choose(conv, target, winograd)
    if algorithm == "direct":
        window = _Window(conv.stride, padding, conv.dilation)
        own = channels // conv.groups
        if conv.groups > 1 and own < target.lanes:
            packed = pack(bb, weight, lane_block(channels, target))
            return call_te(bb, partial(depthwise_compute, window=window), data, packed, channels, **hints)
        pairs = whole and (conv.groups == 1 or inner % 2 == 0)
        packed = pack(bb, weight, channel_block(own, target), conv.groups, pairs)
        if conv.is_pointwise and not any(padding) and not (pairs and inner % 2):
            return call_te(bb, pointwise_compute, data, packed, channels, conv.stride, **hints)
        return call_te(bb, partial(conv2d_compute, window=window), data, packed, channels, **hints)
    m = 2 if algorithm == "winograd-2" else 4
    packed = constant(pack_weights(array_of(weight), channel_block(channels, target), m))
    return call_te(bb, winograd_compute, data, packed, channels, padding, m, **hints)
