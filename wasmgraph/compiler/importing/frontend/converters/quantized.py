"""Quantised operators, in the integers and in the order of rounding that ONNX defines."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.contributed import contributed
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.scaled import BYTES
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    expression,
    has_no_elements,
    is_known,
    shape_of,
    size_array,
)
from wasmgraph.compiler.operators.few_bits import FewBits, few_bits_kernel
from wasmgraph.dims import Expression, product
from wasmgraph.tensors import Array

_QUANTIZED = ("int8", "uint8", "int16", "uint16", "int32")


def spread(op: Operator, value: Value, data: Value, default_axis: int = 1) -> Any:
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
    zero = np.zeros((), dtype) if zero is None else spread(op, zero, data)
    return quantized(op, op("Div", data, cast_to(op, spread(op, scale, data), "float32")), zero)


@converts("DequantizeLinear")
def dequantize_linear(op: Operator, data: Value, scale: Value, zero: Value = None) -> Any:
    """(q − zero)·scale."""
    if dtype_of(data) not in _QUANTIZED:
        raise op.unsupported(f"of {dtype_of(data)}")
    if zero is not None:
        data = op("Sub", cast_to(op, data, "int32"), cast_to(op, spread(op, zero, data), "int32"))
    return op("Mul", cast_to(op, data, dtype_of(scale)), spread(op, scale, data))


def centred(op: Operator, data: Value, zero: Value, axis: int) -> Any:
    """q − zero, of eight bits in int16, otherwise in int32; a vector of zero points has one for each index
    of ``axis``."""
    if (found := op.walk.scaled.centred(data, zero)) is not None:
        return found
    dtype = "int16" if dtype_of(data) in BYTES else "int32"
    found = cast_to(op, data, dtype)
    if zero is not None:
        shape: list[int] = []
        if len(shape_of(zero)) == 1 and shape_of(zero) != (1,):
            rank = len(shape_of(data))
            shape = [-1 if a == axis % rank else 1 for a in range(rank)]
        zeros = cast_to(op, op("Reshape", zero, size_array(shape)), dtype)
        found = op("Sub", found, zeros)
    op.walk.scaled.note_centred(data, zero, found)
    return found


@converts("MatMulInteger")
def matmul_integer(op: Operator, a: Value, b: Value, a_zero: Value = None, b_zero: Value = None) -> Any:
    """A matrix product of 8-bit integers, summed in int32."""
    rows = -2 if len(shape_of(a)) > 1 else -1
    return op("MatMul", centred(op, a, a_zero, rows), centred(op, b, b_zero, -1))


@converts("ConvInteger")
def conv_integer(op: Operator, x: Value, w: Value, x_zero: Value = None, w_zero: Value = None) -> Any:
    """A convolution of 8-bit integers, summed in int32; padding is the input's zero point."""
    return op("Conv", centred(op, x, x_zero, 1), centred(op, w, w_zero, 0), **op.attributes)


def requantized(op: Operator, total: Value, factor: Value, zero: Value) -> Any:
    """saturate(round(total · factor) + zero)."""
    return quantized(op, op("Mul", cast_to(op, total, "float32"), factor), zero)


def quantized(op: Operator, scaled: Value, zero: Value) -> Any:
    """saturate(round(scaled) + zero), of the dtype of ``zero``."""
    dtype, rounded = dtype_of(zero), op("Round", scaled)
    if dtype not in BYTES or not isinstance(zero, np.ndarray) or zero.size != 1:
        return saturated(op, op("Add", rounded, cast_to(op, zero, "float32")), dtype)
    number, limits = int(zero.reshape(-1)[0]), np.iinfo(dtype)
    held = op("Max", rounded, np.float32(limits.min - number))
    centre = cast_to(op, op("Min", held, np.float32(limits.max - number)), "int16")
    found = cast_to(op, op("Add", centre, np.int16(number)) if number else centre, dtype)
    op.walk.scaled.note_centred(found, zero, centre)
    return found


def per_column(op: Operator, value: Value, shape: list[int]) -> Any:
    """Reshape a scale, of which there is one for all indices of an axis, or one for each."""
    size = shape_of(value)
    value = cast_to(op, value, "float32")
    return op("Reshape", value, size_array(shape if size not in ((), (1,)) else []))


def scaled_product(
    op: Operator, a: Value, a_scale: Value, a_zero: Value, b: Value, b_scale: Value, b_zero: Value
) -> tuple[Any, Any]:
    """The sums of a product of quantised matrices, and their scale."""
    total = op("MatMul", centred(op, a, a_zero, -2), centred(op, b, b_zero, -1))
    return total, op("Mul", per_column(op, a_scale, [-1, 1]), per_column(op, b_scale, [-1]))


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
    total, scales = scaled_product(op, a, a_scale, a_zero, b, b_scale, b_zero)
    return requantized(op, total, op("Div", scales, per_column(op, y_scale, [-1])), y_zero)


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
    total = op("Conv", centred(op, x, x_zero, 1), centred(op, w, w_zero, 0), **op.attributes)
    columns = [-1] + [1] * (len(shape_of(x)) - 2)
    if bias is not None:
        total = op("Add", total, op("Reshape", bias, size_array(columns)))
    scales = op("Mul", per_column(op, x_scale, columns), per_column(op, w_scale, columns))
    return requantized(op, total, op("Div", scales, per_column(op, y_scale, columns)), y_zero)


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
    total, factor = scaled_product(op, a, a_scale, a_zero, b, b_scale, b_zero)
    if c is not None:
        total = op("Add", total, c)
    factor = op("Mul", factor, np.float32(op.attr("alpha", 1.0)))
    if y_scale is None:
        return op("Mul", cast_to(op, total, "float32"), factor)
    if y_zero is None:
        raise op.unsupported("with a scale, but no zero point, of its output is not implemented")
    return requantized(op, total, op("Div", factor, per_column(op, y_scale, [-1])), y_zero)


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
        op("Mul", cast_to(op, centred(op, q, zero, -1), "float32"), op("Div", scale, c_scale))
        for q, scale, zero in ((a, a_scale, a_zero), (b, b_scale, b_zero))
    ]
    c_zero = np.array(0, dtype_of(a)) if c_zero is None else c_zero
    return quantized(op, op("Add", *scaled), c_zero)


@contributed("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(
    op: Operator, a: Value, b: Value, b_scale: Value, b_zero: Value = None, bias: Value = None
) -> Any:
    """A product with the left operand quantised first, by one scale for all of it."""
    quantized, scale, zero = op("DynamicQuantizeLinear", a, outputs=3)
    total = op("MatMulInteger", quantized, b, zero, *([] if b_zero is None else [b_zero]))
    factor = op("Mul", scale, per_column(op, b_scale, [-1]))
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
    """A product by weights of few bits, which become numbers in registers (``operators/few_bits.py``). With
    columns in another order, or zero points that are no integers, they become float32 while compiling."""
    known = [b, scales, zero_points, group_index]
    if not all(map(is_known, known)):
        raise op.unsupported("with weights that are computed from data is not implemented")
    shape, columns = shape_of(a), int(op.attr("N"))
    bits, block = int(op.attr("bits", 4)), int(op.attr("block_size"))
    whole = zero_points is None or dtype_of(zero_points) == "uint8"
    plain = whole and group_index is None and dtype_of(a) == "float32" and not has_no_elements(shape)
    if bits not in (4, 8) or not plain:
        weight = _expanded(op, *known)  # type: ignore[arg-type]
        found = op("MatMul", a, np.ascontiguousarray(weight.T))
        return found if bias is None else op("Add", found, bias)
    rows = product(shape[:-1])
    what = FewBits(
        rows if isinstance(rows, int) else Expression.of("rows"),
        int(op.attr("K")),
        columns,
        bits,
        block,
        zero_points is not None,
    )
    operands = [
        op("Reshape", a, size_array([rows, what.inner])),
        *_few_bits(op, what, b, scales, zero_points),
    ]
    name = op.walk.builder.add_func(few_bits_kernel(what), "few_bits")
    ty = relax.TensorType((rows, columns), "float32")
    found = op.emit(relax.call_tir(name, [expression(value) for value in operands], ty))
    found = op("Reshape", found, size_array([*shape[:-1], columns]))
    return found if bias is None else op("Add", found, bias)


def _few_bits(op: Operator, what: FewBits, packed: Value, scales: Value, zeros: Value) -> list[Array]:
    """Weights, scales and zero points as the kernel reads them."""
    assert isinstance(packed, np.ndarray) and isinstance(scales, np.ndarray)
    numbers = _numbers(op, packed, what.columns, what.inner, what.bits, what.block)
    found = [what.packed(numbers), what.by_block(scales.reshape(what.columns, what.blocks))]
    if isinstance(zeros, np.ndarray):
        whole = _unpacked(zeros.reshape(what.columns, -1), what.bits)
        found.append(what.by_block(whole[:, : what.blocks]))
    return found


def _numbers(op: Operator, packed: Array, rows: int, columns: int, bits: int, block: int) -> Array:
    """The weights of MatMulNBits as they are stored, ``[N, K]``."""
    blocks = -(-columns // block)
    if packed.size * 8 != rows * blocks * block * bits:
        raise op.unsupported(
            f"with packed weights of the shape {list(packed.shape)} for {columns} x {rows} is not"
            " implemented"
        )
    return _unpacked(packed.reshape(rows, -1), bits)[:, :columns]


def _expanded(
    op: Operator, packed: Array, scales: Array, zeros: Array | None, groups: Array | None
) -> Array:
    """Expand the weights of MatMulNBits to float32, ``[N, K]``."""
    rows, columns = int(op.attr("N")), int(op.attr("K"))
    bits, block = int(op.attr("bits", 4)), int(op.attr("block_size"))
    if bits not in (2, 4, 8):
        raise op.unsupported(f"with weights of {bits} bits is not implemented")
    blocks = -(-columns // block)
    numbers = _numbers(op, packed, rows, columns, bits, block).astype(np.float32)
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
