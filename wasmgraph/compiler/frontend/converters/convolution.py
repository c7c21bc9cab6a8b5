"""Convolutions: ``auto_pad`` is spelled out, so that padding stays part of the kernel."""

from __future__ import annotations

from typing import Any

from wasmgraph.compiler.frontend.graph import Operator, converts
from wasmgraph.compiler.frontend.values import Value, shape_of


def explicit_pads(op: Operator, data: Value, kernel: tuple[int, ...]) -> list[int]:
    """The padding that ``auto_pad`` stands for, before and after each spatial dimension."""
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
    """TVM's own ``auto_pad`` would be a kernel that copies."""
    kernel = shape_of(weight)[2:]
    pads = explicit_pads(op, data, kernel)
    return op.tvm(data, weight, bias, without=["auto_pad"], pads=pads, kernel_shape=kernel)


@converts("ConvTranspose")
def conv_transpose(op: Operator, data: Value, weight: Value, bias: Value = None) -> Any:
    """``output_shape`` and ``auto_pad`` are spelled out as padding."""
    kernel, size = shape_of(weight)[2:], shape_of(data)[2:]
    rank = len(kernel)
    mode, wanted = op.attr("auto_pad", "NOTSET"), op.attr("output_shape")
    if wanted is None and mode == "NOTSET":
        return op.tvm(data, weight, bias)
    strides, dilations = op.attr("strides", [1] * rank), op.attr("dilations", [1] * rank)
    extra = op.attr("output_padding", [0] * rank)
    full = [strides[i] * (size[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(rank)]
    if wanted is None:
        wanted = full if mode == "VALID" else [size[i] * strides[i] for i in range(rank)]
    wanted = list(wanted)[-rank:]
    total = [full[i] - wanted[i] for i in range(rank)]
    # What is missing is added at the end; it must not reach further than a stride.
    extra = [extra[i] + max(0, -total[i]) for i in range(rank)]
    total = [max(0, t) for t in total]
    before = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]
    pads = before + [t - b for t, b in zip(total, before, strict=True)]
    left = ["auto_pad", "output_shape"]
    return op.tvm(data, weight, bias, without=left, pads=pads, output_padding=extra)
