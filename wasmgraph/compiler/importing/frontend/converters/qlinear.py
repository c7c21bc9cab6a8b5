"""onnxruntime's operators on quantised tensors, by float32 in between where it computes so itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.contributed import contributed
from wasmgraph.compiler.importing.frontend.converters.quantized import (
    centred,
    requantized,
    scaled_product,
)
from wasmgraph.compiler.importing.frontend.graph import Operator
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, shape_of, size_array
from wasmgraph.dims import product


def _numbers(op: Operator, data: Value, scale: Value, zero: Value) -> Any:
    """What a quantised tensor stands for."""
    return op("DequantizeLinear", data, scale, *([] if zero is None else [zero]))


def _zero(zero: Value, data: Value) -> Value:
    return np.zeros((), dtype_of(data)) if zero is None else zero


def _as_floats(
    op: Operator,
    function: str,
    data: Value,
    scales: tuple[Value, Value, Value, Value],
    **attributes: Any,
) -> Any:
    """A function of what a quantised tensor stands for, quantised again."""
    scale, zero, own_scale, own_zero = scales
    found = op(function, _numbers(op, data, scale, zero), **attributes)
    return op("QuantizeLinear", found, own_scale, _zero(own_zero, data))


def _channels_first(op: Operator) -> None:
    if op.attr("channels_last", 0):
        raise op.unsupported("with channels last is not implemented")


@contributed("QuantizeLinear", "axis")
def quantize_linear(op: Operator, data: Value, scale: Value, zero: Value = None) -> Any:
    """ONNX's own."""
    return op("QuantizeLinear", data, scale, *([] if zero is None else [zero]), **op.attributes)


@contributed("DequantizeLinear", "axis")
def dequantize_linear(op: Operator, data: Value, scale: Value, zero: Value = None) -> Any:
    """ONNX's own."""
    return op("DequantizeLinear", data, scale, *([] if zero is None else [zero]), **op.attributes)


@contributed("QLinearMul")
def qlinear_mul(
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
    """The quantised product of quantised tensors, element by element."""
    factors = [cast_to(op, centred(op, q, zero, -1), "int32") for q, zero in ((a, a_zero), (b, b_zero))]
    scale = op("Div", op("Mul", a_scale, b_scale), c_scale)
    return requantized(op, op("Mul", *factors), scale, _zero(c_zero, a))


@contributed("QLinearGlobalAveragePool", "channels_last")
def qlinear_global_average_pool(
    op: Operator, x: Value, x_scale: Value, x_zero: Value, y_scale: Value, y_zero: Value
) -> Any:
    """The mean of each channel, summed in integers."""
    _channels_first(op)
    axes = range(2, len(shape_of(x)))
    whole = cast_to(op, centred(op, x, x_zero, -1), "int32")
    total = op("ReduceSum", whole, size_array(list(axes)), keepdims=1)
    count = product(shape_of(x)[axis] for axis in axes)
    count = cast_to(op, size_array(count), "float32")
    return requantized(op, total, op("Div", x_scale, op("Mul", y_scale, count)), _zero(y_zero, x))


@contributed(
    "QLinearAveragePool",
    *("auto_pad", "ceil_mode", "channels_last", "count_include_pad", "kernel_shape", "pads", "strides"),
)
def qlinear_average_pool(
    op: Operator, x: Value, x_scale: Value, x_zero: Value, y_scale: Value, y_zero: Value = None
) -> Any:
    """The means of windows."""
    _channels_first(op)
    own = {name: value for name, value in op.attributes.items() if name != "channels_last"}
    return _as_floats(op, "AveragePool", x, (x_scale, x_zero, y_scale, y_zero), **own)


@contributed("QLinearLeakyRelu", "alpha")
def qlinear_leaky_relu(
    op: Operator, x: Value, x_scale: Value, x_zero: Value, y_scale: Value, y_zero: Value = None
) -> Any:
    """LeakyRelu."""
    return _as_floats(op, "LeakyRelu", x, (x_scale, x_zero, y_scale, y_zero), **op.attributes)


@contributed("QLinearSigmoid")
def qlinear_sigmoid(
    op: Operator, x: Value, x_scale: Value, x_zero: Value, y_scale: Value, y_zero: Value = None
) -> Any:
    """The logistic function."""
    return _as_floats(op, "Sigmoid", x, (x_scale, x_zero, y_scale, y_zero))


@contributed("QLinearSoftmax", "axis", "opset")
def qlinear_softmax(
    op: Operator, x: Value, x_scale: Value, x_zero: Value, y_scale: Value, y_zero: Value
) -> Any:
    """Softmax; before opset 13 over all dimensions from an axis on."""
    shape, since = shape_of(x), int(op.attr("opset", 13))
    axis = int(op.attr("axis", 1 if since < 13 else -1)) % len(shape)
    if since >= 13 or axis == len(shape) - 1:
        return _as_floats(op, "Softmax", x, (x_scale, x_zero, y_scale, y_zero), axis=axis)
    joined = op("Reshape", x, size_array([product(shape[:axis]), product(shape[axis:])]))
    found = _as_floats(op, "Softmax", joined, (x_scale, x_zero, y_scale, y_zero), axis=-1)
    return op("Reshape", found, size_array(shape))


@contributed("QLinearReduceMean", "axes", "keepdims")
def qlinear_reduce_mean(
    op: Operator, x: Value, x_scale: Value, x_zero: Value, y_scale: Value, y_zero: Value = None
) -> Any:
    """The mean along axes."""
    numbers = _numbers(op, x, x_scale, x_zero)
    axes = op.attr("axes")
    found = op(
        "ReduceMean",
        numbers,
        *([] if axes is None else [size_array(axes)]),
        keepdims=op.attr("keepdims", 1),
    )
    return op("QuantizeLinear", found, y_scale, _zero(y_zero, x))


@contributed("QLinearConcat", "axis")
def qlinear_concat(op: Operator, y_scale: Value, y_zero: Value, *parts: Value) -> Any:
    """Tensors of scales of their own, joined under one scale."""
    if len(parts) % 3:
        raise op.unsupported(f"with {len(parts)} inputs: a tensor, its scale and its zero point, each")
    joined = [
        op("QuantizeLinear", _numbers(op, *parts[n : n + 3]), y_scale, y_zero)
        for n in range(0, len(parts), 3)
    ]
    return op("Concat", *joined, axis=op.attr("axis"))


@contributed("QLinearWhere")
def qlinear_where(
    op: Operator,
    condition: Value,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    y: Value,
    y_scale: Value,
    y_zero: Value,
    z_scale: Value,
    z_zero: Value,
) -> Any:
    """A choice between tensors of scales of their own."""
    chosen = [
        op("QuantizeLinear", _numbers(op, q, scale, zero), z_scale, z_zero)
        for q, scale, zero in ((x, x_scale, x_zero), (y, y_scale, y_zero))
    ]
    return op("Where", condition, *chosen)


@contributed("MatMulIntegerToFloat")
def matmul_integer_to_float(
    op: Operator,
    a: Value,
    b: Value,
    a_scale: Value,
    b_scale: Value,
    a_zero: Value = None,
    b_zero: Value = None,
    bias: Value = None,
) -> Any:
    """A product of 8-bit integers, times both scales."""
    total, scale = scaled_product(op, a, a_scale, a_zero, b, b_scale, b_zero)
    found = op("Mul", cast_to(op, total, "float32"), scale)
    return found if bias is None else op("Add", found, bias)
