"""Quantised operators, in the integers and in the order of rounding that ONNX defines."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.contributed import contributed
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, is_known, shape_of, size_array
from wasmgraph.tensors import Array

_QUANTIZED = ("int8", "uint8", "int16", "uint16", "int32")


def _spread(op: Operator, value: Value, data: Value, default_axis: int = 1) -> Any:
    """Reshape a scale or zero point so that it broadcasts to ``data``. There is one value, or one per
    channel or per block."""
    rank, size = len(shape_of(data)), shape_of(value)
    if not size or (size == (1,) and rank != 1):
        return op("Reshape", value, size_array([]))
    axis = int(op.attr("axis", default_axis))
    axis = axis % rank if -rank <= axis < rank else 0
    block = int(op.attr("block_size", 0))
    if len(size) == 1 and not block:
        return op("Reshape", value, size_array([-1 if a == axis else 1 for a in range(rank)]))
    length = shape_of(data)[axis]
    block = block or -(-length // size[axis])
    return op("Gather", value, np.arange(int(length), dtype=np.int64) // block, axis=axis)


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
        zero = op("Reshape", zero, size_array(shape))
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
    return op("Reshape", value, size_array(shape if size not in ((), (1,)) else []))


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
        total = op("Add", total, op("Reshape", bias, size_array(columns)))
    scales = op("Mul", _vector(op, x_scale, columns), _vector(op, w_scale, columns))
    return _requantized(op, total, op("Div", scales, _vector(op, y_scale, columns)), y_zero)


@contributed("QGemm", "alpha", "transA", "transB")
def qgemm(
    op: Operator,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    c: Value = None,
    y_scale: Value = None,
    y_zero: Value = None,
) -> Any:
    """A quantised Gemm; C is in units of both scales' product. Without an output scale the result is
    float32."""
    a, b = (
        op("Transpose", value, perm=[1, 0]) if op.attr(name, 0) else value
        for value, name in ((a, "transA"), (b, "transB"))
    )
    total = op("MatMul", _centred(op, a, a_zero, -2), _centred(op, b, b_zero, -1))
    if c is not None:
        total = op("Add", total, c)
    factor = op("Mul", _vector(op, a_scale, [-1, 1]), _vector(op, b_scale, [-1]))
    factor = op("Mul", factor, np.float32(op.attr("alpha", 1.0)))
    if y_scale is None:
        return op("Mul", cast_to(op, total, "float32"), factor)
    if y_zero is None:
        raise op.unsupported("with a scale, but no zero point, of its output is not implemented")
    return _requantized(op, total, op("Div", factor, _vector(op, y_scale, [-1])), y_zero)


@contributed("QLinearAdd")
def qlinear_add(
    op: Operator,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    c_scale: Value,
    c_zero: Value = None,
) -> Any:
    """The quantised sum of quantised tensors."""
    scaled = [
        op("Mul", cast_to(op, _centred(op, q, zero, -1), "float32"), op("Div", scale, c_scale))
        for q, scale, zero in ((a, a_scale, a_zero), (b, b_scale, b_zero))
    ]
    c_zero = np.array(0, dtype_of(a)) if c_zero is None else c_zero
    return _requantized(op, op("Add", *scaled), np.float32(1), c_zero)


@contributed("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(
    op: Operator, a: Value, b: Value, b_scale: Value, b_zero: Value = None, bias: Value = None
) -> Any:
    """A product with the left operand quantised first, by one scale for all of it."""
    quantized, scale, zero = op("DynamicQuantizeLinear", a, outputs=3)
    total = op("MatMulInteger", quantized, b, zero, *([] if b_zero is None else [b_zero]))
    factor = op("Mul", scale, _vector(op, b_scale, [-1]))
    found = op("Mul", cast_to(op, total, "float32"), factor)
    return found if bias is None else op("Add", found, bias)


@contributed("MatMulNBits", "K", "N", "bits", "block_size", "accuracy_level", weight_prepacked=0)
def matmul_nbits(
    op: Operator,
    a: Value,
    b: Value,
    scales: Value,
    zero_points: Value = None,
    group_index: Value = None,
    bias: Value = None,
) -> Any:
    """A product by weights of few bits. They are expanded while compiling, and stored as float32."""
    known = [b, scales, zero_points, group_index]
    if not all(map(is_known, known)):
        raise op.unsupported("with weights that are computed from data is not implemented")
    weight = _expanded(op, *known)  # type: ignore[arg-type]
    found = op("MatMul", a, np.ascontiguousarray(weight.T))
    return found if bias is None else op("Add", found, bias)


def _expanded(
    op: Operator, packed: Array, scales: Array, zeros: Array | None, groups: Array | None
) -> Array:
    """Expand the weights of MatMulNBits to float32, ``[N, K]``."""
    rows, columns = int(op.attr("N")), int(op.attr("K"))
    bits, block = int(op.attr("bits", 4)), int(op.attr("block_size"))
    if bits not in (2, 4, 8):
        raise op.unsupported(f"with weights of {bits} bits is not implemented")
    blocks = -(-columns // block)
    if packed.size * 8 != rows * blocks * block * bits:
        raise op.unsupported(
            f"with packed weights of the shape {list(packed.shape)} for {columns} x {rows} is not"
            " implemented"
        )
    numbers = _unpacked(packed.reshape(rows, -1), bits)[:, :columns].astype(np.float32)
    of_column = np.arange(columns) // block if groups is None else groups.reshape(-1)[:columns]
    if zeros is None:
        zero = np.full((rows, blocks), 2.0 ** (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        zero = _unpacked(zeros.reshape(rows, -1), bits)[:, :blocks].astype(np.float32)
    else:
        zero = zeros.reshape(rows, blocks)
    return (numbers - zero[:, of_column]) * scales.reshape(rows, blocks)[:, of_column]


def _unpacked(packed: Array, bits: int) -> Array:
    """Split bytes into numbers of fewer bits, the lowest first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1)
