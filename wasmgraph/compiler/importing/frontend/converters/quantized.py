"""Quantised operators, in the integers and in the order of rounding that ONNX defines."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, shape_of

_QUANTIZED = ("int8", "uint8", "int16", "uint16", "int32")


def _spread(op: Operator, value: Value, data: Value, default_axis: int = 1) -> Any:
    """Reshape a scale or zero point so that it broadcasts to ``data``. There is one value, or one per
    channel or per block."""
    rank, size = len(shape_of(data)), shape_of(value)
    if not size or (size == (1,) and rank != 1):
        return op("Reshape", value, np.array([], np.int64))
    axis = int(op.attr("axis", default_axis))
    axis = axis % rank if -rank <= axis < rank else 0
    block = int(op.attr("block_size", 0))
    if len(size) == 1 and not block:
        return op("Reshape", value, np.array([-1 if a == axis else 1 for a in range(rank)], np.int64))
    length = shape_of(data)[axis]
    block = block or -(-length // size[axis])
    return op("Gather", value, np.arange(length, dtype=np.int64) // block, axis=axis)


def saturated(op: Operator, value: Value, dtype: str) -> Any:
    """Convert rounded numbers to ``dtype`` with saturation."""
    if dtype not in _QUANTIZED:
        raise op.unsupported(f"to {dtype}")
    limits, kind = np.iinfo(dtype), dtype_of(value)
    clipped = op("Min", op("Max", value, np.array(limits.min, kind)), np.array(limits.max, kind))
    return cast_to(op, clipped, dtype)


@converts("QuantizeLinear")
def quantize_linear(op: Operator, data: Value, scale: Value, zero: Value = None) -> Any:
    """saturate(round(x / scale) + zero)."""
    wanted = op.attr("output_dtype", 0)
    if zero is not None:
        dtype = dtype_of(zero)
    elif wanted:
        from onnx import helper

        dtype = str(helper.tensor_dtype_to_np_dtype(wanted))
    else:
        dtype = "uint8"
    data = cast_to(op, data, "float32")
    rounded = op("Round", op("Div", data, cast_to(op, _spread(op, scale, data), "float32")))
    if zero is not None:
        rounded = op("Add", rounded, cast_to(op, _spread(op, zero, data), "float32"))
    return saturated(op, rounded, dtype)


@converts("DequantizeLinear")
def dequantize_linear(op: Operator, data: Value, scale: Value, zero: Value = None) -> Any:
    """(q − zero)·scale."""
    if dtype_of(data) not in _QUANTIZED:
        raise op.unsupported(f"of {dtype_of(data)}")
    if zero is not None:
        data = op("Sub", cast_to(op, data, "int32"), cast_to(op, _spread(op, zero, data), "int32"))
    return op("Mul", cast_to(op, data, dtype_of(scale)), _spread(op, scale, data))


def _centred(op: Operator, data: Value, zero: Value, axis: int) -> Any:
    """q − zero in int32; a vector of zero points has one for each index of ``axis``."""
    wide = cast_to(op, data, "int32")
    if zero is None:
        return wide
    if len(shape_of(zero)) == 1:
        rank = len(shape_of(data))
        one = shape_of(zero) == (1,)
        shape = [] if one else [-1 if a == axis % rank else 1 for a in range(rank)]
        zero = op("Reshape", zero, np.array(shape, np.int64))
    return op("Sub", wide, cast_to(op, zero, "int32"))


@converts("MatMulInteger")
def matmul_integer(op: Operator, a: Value, b: Value, a_zero: Value = None, b_zero: Value = None) -> Any:
    """A matrix product of 8-bit integers, summed in int32."""
    rows = -2 if len(shape_of(a)) > 1 else -1
    return op("MatMul", _centred(op, a, a_zero, rows), _centred(op, b, b_zero, -1))


@converts("ConvInteger")
def conv_integer(op: Operator, x: Value, w: Value, x_zero: Value = None, w_zero: Value = None) -> Any:
    """A convolution of 8-bit integers, summed in int32; padding is the input's zero point."""
    return op("Conv", _centred(op, x, x_zero, 1), _centred(op, w, w_zero, 0), **op.attributes)


def _requantized(op: Operator, total: Value, factor: Value, zero: Value) -> Any:
    scaled = op("Round", op("Mul", cast_to(op, total, "float32"), factor))
    return saturated(op, op("Add", scaled, cast_to(op, zero, "float32")), dtype_of(zero))


def _vector(op: Operator, value: Value, shape: list[int]) -> Any:
    """Reshape a scale, of which there is one for all indices of an axis, or one for each."""
    size = shape_of(value)
    value = cast_to(op, value, "float32")
    return op("Reshape", value, np.array(shape if size not in ((), (1,)) else [], np.int64))


@converts("QLinearMatMul")
def qlinear_matmul(
    op: Operator,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> Any:
    """The quantised product of quantised matrices."""
    total = op("MatMul", _centred(op, a, a_zero, -2), _centred(op, b, b_zero, -1))
    scales = op("Mul", _vector(op, a_scale, [-1, 1]), _vector(op, b_scale, [-1]))
    return _requantized(op, total, op("Div", scales, _vector(op, y_scale, [-1])), y_zero)


@converts("QLinearConv")
def qlinear_conv(
    op: Operator,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    w: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Value = None,
) -> Any:
    """A quantised convolution; the bias is in units of both scales' product."""
    total = op("Conv", _centred(op, x, x_zero, 1), _centred(op, w, w_zero, 0), **op.attributes)
    columns = [-1] + [1] * (len(shape_of(x)) - 2)
    if bias is not None:
        total = op("Add", total, op("Reshape", bias, np.array(columns, np.int64)))
    scales = op("Mul", _vector(op, x_scale, columns), _vector(op, w_scale, columns))
    return _requantized(op, total, op("Div", scales, _vector(op, y_scale, columns)), y_zero)
