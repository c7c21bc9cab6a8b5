"""Convolutions: ``auto_pad`` is converted to explicit padding, so that padding stays part of the kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    expression,
    shape_of,
    size_array,
)
from wasmgraph.compiler.sizes import number
from wasmgraph.dims import Shape, is_zero, operation
from wasmgraph.tensors import Array


def explicit_pads(op: Operator, data: Value, kernel: Shape) -> list[int]:
    """Return the padding that ``auto_pad`` means, before and after each spatial dimension."""
    rank, size = len(kernel), shape_of(data)[2:]
    mode = op.attr("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(op.attr("pads", [0] * 2 * rank))
    before, after = [0] * rank, [0] * rank
    if mode != "VALID":
        strides, dilations = op.attr("strides", [1] * rank), op.attr("dilations", [1] * rank)
        for i in range(rank):
            steps = -(-size[i] // strides[i])
            extent = (steps - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
            total = max(0, extent - size[i])
            before[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            after[i] = total - before[i]
    return before + after


@converts("Conv")
def conv(op: Operator, data: Value, weight: Value, bias: Value = None) -> Any:
    """Make padding explicit: TVM would implement ``auto_pad`` by a kernel that copies. A 1-D convolution
    becomes a 2-D convolution of height 1, for which schedule rules exist. Operands of int16, which ONNX
    does not have, are summed in int32.
    """
    kernel = shape_of(weight)[2:]
    if is_zero(shape_of(data)[1]):
        raise op.unsupported("over no channels")
    pads = explicit_pads(op, data, kernel)
    if len(kernel) == 1:
        axis = size_array([2])
        row = {
            "group": op.attr("group", 1),
            "strides": [1, *op.attr("strides", [1])],
            "dilations": [1, *op.attr("dilations", [1])],
            "pads": [0, pads[0], 0, pads[1]],
        }
        operands = [op("Unsqueeze", data, axis), op("Unsqueeze", weight, axis)]
        return op("Squeeze", op("Conv", *operands, *([] if bias is None else [bias]), **row), axis)
    if dtype_of(data) == "int16":
        if len(kernel) == 2:
            return relax.op.nn.conv2d(
                *map(expression, (data, weight)),
                strides=op.attr("strides", [1, 1]),
                padding=pads,
                dilation=op.attr("dilations", [1, 1]),
                groups=op.attr("group", 1),
                out_dtype="int32",
            )
        data, weight = cast_to(op, data, "int32"), cast_to(op, weight, "int32")
    return op.tvm(data, weight, bias, without=["auto_pad"], pads=pads, kernel_shape=kernel)


@converts("DeformConv")
def deform_conv(
    op: Operator, data: Value, weight: Value, offset: Value, bias: Value = None, mask: Value = None
) -> Any:
    """Sample the input at the places that offsets move, between pixels; then multiply by the weights (Dai
    et al., "Deformable Convolutional Networks", 2017). Outside, the input is 0."""
    (batch, channels, high, wide), (out, own, *kernel) = shape_of(data), shape_of(weight)
    if len(kernel) != 2:
        raise op.unsupported(f"of {len(kernel)} spatial dimensions")
    groups, dtype = int(op.attr("group", 1)), dtype_of(data)
    strides, dilations = op.attr("strides", [1, 1]), op.attr("dilations", [1, 1])
    pads, (rows, columns) = op.attr("pads", [0] * 4), shape_of(offset)[2:]
    taps, each = operation("*", *kernel), operation("//", channels, int(op.attr("offset_group", 1)))

    def sampled(x: te.Tensor, moves: te.Tensor, *factors: te.Tensor) -> te.Tensor:
        def const(value: float) -> Any:
            return tirx.const(value, dtype)

        def one(b: Any, c: Any, tap: Any, y: Any, column: Any) -> Any:
            first = tirx.floordiv(c, each) * taps + tap
            at = (tirx.floordiv(tap, kernel[1]), tirx.floormod(tap, kernel[1]))

            def place(axis: int, i: Any) -> Any:
                fixed = i * strides[axis] - pads[axis] + at[axis] * dilations[axis]
                return fixed.astype(dtype) + moves[b, first * 2 + axis, y, column]

            places, total = (place(0, y), place(1, column)), const(0)
            for corner in product((0, 1), (0, 1)):
                ends = [tirx.floor(p) + const(n) for p, n in zip(places, corner, strict=True)]
                sizes = [number(size - 1, dtype) for size in (high, wide)]
                inside = [tirx.all(e >= const(0), e <= s) for e, s in zip(ends, sizes, strict=True)]
                held = [
                    tirx.Max(tirx.Min(e, s), const(0)).astype("int32")
                    for e, s in zip(ends, sizes, strict=True)
                ]
                value = tirx.if_then_else(tirx.all(*inside), x[b, c, held[0], held[1]], const(0))
                for p, e in zip(places, ends, strict=True):
                    value = value * (const(1) - tirx.abs(p - e))
                total = total + value
            return total * factors[0][b, first, y, column] if factors else total

        return te.compute((batch, channels, taps, rows, columns), one, name="sampled")

    pixels = op.walk.te(sampled, data, offset, *([] if mask is None else [mask]), name="sample", alone=True)
    terms, size = operation("*", own, taps), operation("*", rows, columns)
    found = op(
        "MatMul",
        op("Reshape", weight, size_array([groups, operation("//", out, groups), terms])),
        op("Reshape", pixels, size_array([batch, groups, terms, size])),
    )
    found = op("Reshape", found, size_array([batch, out, rows, columns]))
    return found if bias is None else op("Add", found, op("Reshape", bias, size_array([out, 1, 1])))


@converts("ConvTranspose")
def conv_transpose(op: Operator, data: Value, weight: Value, bias: Value = None) -> Any:
    """Convert ``output_shape`` and ``auto_pad`` to explicit padding. With known weights, use a
    convolution."""
    kernel, size = shape_of(weight)[2:], shape_of(data)[2:]
    rank = len(kernel)
    mode, wanted = op.attr("auto_pad", "NOTSET"), op.attr("output_shape")
    strides, dilations = op.attr("strides", [1] * rank), op.attr("dilations", [1] * rank)
    extra = op.attr("output_padding", [0] * rank)
    if wanted is None and mode == "NOTSET":
        pads = op.attr("pads", [0] * 2 * rank)
    else:
        full = [
            strides[i] * (size[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(rank)
        ]
        if wanted is None:
            wanted = full if mode == "VALID" else [size[i] * strides[i] for i in range(rank)]
        wanted = list(wanted)[-rank:]
        total = [full[i] - wanted[i] for i in range(rank)]
        # Missing elements are added at the end; there must be fewer than a stride.
        extra = [extra[i] + max(0, -total[i]) for i in range(rank)]
        total = [max(0, t) for t in total]
        before = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]
        pads = before + [t - b for t, b in zip(total, before, strict=True)]
    if isinstance(weight, np.ndarray):
        return _by_phases(op, data, _spread(weight, dilations), bias, strides, pads, extra)
    left = ["auto_pad", "output_shape"]
    return op.tvm(data, weight, bias, without=left, pads=pads, output_padding=extra)


def _spread(weight: Array, dilations: Sequence[int]) -> Array:
    """Dilate weights ``[C, O, k...]`` by inserting zeros."""
    sizes = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    spread = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    spread[:, :, *(slice(None, None, d) for d in dilations)] = weight
    return spread


def _by_phases(
    op: Operator,
    data: Value,
    weight: Array,
    bias: Value,
    strides: Sequence[int],
    pads: Sequence[int],
    extra: Sequence[int],
) -> Any:
    """Convert a transposed convolution of stride s to a convolution with s times as many channels for each
    dimension.

    An output ``s·q + r - p`` is the sum over j of ``x[q - j]`` times ``w[r + s·j]``: each phase r is a
    separate convolution of x with ``ceil(k / s)`` taps (Shi et al., 2016). TVM's own implementation dilates
    the input with zeros and multiplies by them.
    """
    group, rank = op.attr("group", 1), len(strides)
    spatial = range(rank)
    size, kernel = shape_of(data)[2:], weight.shape[2:]
    taps = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]
    filled = [(0, 0), (0, 0), *((0, t * s - k) for t, s, k in zip(taps, strides, kernel, strict=True))]
    inner, outer = weight.shape[0] // group, weight.shape[1]
    split = [part for t, s in zip(taps, strides, strict=True) for part in (t, s)]
    parted = np.pad(weight, filled).reshape(group, inner, outer, *split)
    order = [0, 2, *(4 + 2 * i for i in spatial), 1, *(3 + 2 * i for i in spatial)]
    phases = math.prod(strides)
    filters = parted.transpose(order).reshape(group * outer * phases, inner, *taps)
    filters = np.ascontiguousarray(np.flip(filters, tuple(range(2, 2 + rank))))
    # Only the values of q that contribute to the output.
    length = [strides[i] * (size[i] - 1) + kernel[i] - pads[i] - pads[i + rank] + extra[i] for i in spatial]
    before = [max(0, taps[i] - 1 - pads[i] // strides[i]) for i in spatial]
    after = [max(0, -(-(pads[i] + length[i]) // strides[i]) - size[i]) for i in spatial]
    operands = [data, filters]
    if bias is not None:
        repeated = op("Unsqueeze", bias, np.array([1]))
        repeated = op("Expand", repeated, np.array([group * outer, phases]))
        operands.append(op("Reshape", repeated, np.array([-1])))
    found = op("Conv", *operands, pads=before + after, group=group, kernel_shape=taps)
    if phases > 1:
        batch, _, *counts = shape_of(found)
        found = op("Reshape", found, np.array([batch, group * outer, *strides, *counts]))
        perm = [0, 1, *(axis for i in spatial for axis in (2 + rank + i, 2 + i))]
        found = op("Transpose", found, perm=perm)
        joined = [count * s for count, s in zip(counts, strides, strict=True)]
        found = op("Reshape", found, np.array([batch, group * outer, *joined]))
    begins = [pads[i] - (taps[i] - 1 - before[i]) * strides[i] for i in spatial]
    ends = [begin + count for begin, count in zip(begins, length, strict=True)]
    if any(begins) or list(shape_of(found)[2:]) != ends:
        found = op("Slice", found, np.array(begins), np.array(ends), np.arange(2, 2 + rank))
    return found
