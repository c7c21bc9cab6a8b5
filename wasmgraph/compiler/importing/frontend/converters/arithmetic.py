"""Element-wise arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from onnx import helper
from tvm import relax, te, tirx, topi

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, expression, shape_of, size_array
from wasmgraph.dims import Size, broadcast


def cast_to(op: Operator, value: Value, dtype: str) -> Any:
    """Convert a tensor to another dtype."""
    if dtype_of(value) == dtype:
        return value
    return op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def elementwise(op: Operator, function: Callable[..., Any], *inputs: Value) -> Any:
    """Apply a function of scalar TE expressions to the elements of tensors, with broadcasting."""
    shape = broadcast(*(shape_of(value) for value in inputs))

    def compute(*tensors: te.Tensor) -> te.Tensor:
        wide = [topi.broadcast_to(tensor, shape) for tensor in tensors]
        return te.compute(shape, lambda *i: function(*(tensor(*i) for tensor in wide)), name="elementwise")

    return op.te(compute, *inputs)


def counted(op: Operator, length: Size, dtype: str = "int64") -> Value:
    """The numbers from 0 up to a length, which is excluded."""
    if isinstance(length, int):
        return np.arange(length, dtype=dtype)
    return op.te(lambda: te.compute((length,), lambda i: i.astype(dtype), name="counted"))


@converts("Sum")
def sum_(op: Operator, *terms: Value) -> Any:
    """Sum by a chain of additions. TVM's converter would stack the terms and reduce the stack."""
    return reduce(lambda a, b: op("Add", a, b), terms)


@converts("Max", "Min")
def extreme(op: Operator, *terms: Value) -> Any:
    """Max or Min by a chain of operators. TVM's converter would stack the terms and reduce the stack. NaN
    is propagated (lower/floats.py)."""
    chosen = relax.op.maximum if op.node.op_type == "Max" else relax.op.minimum
    return reduce(lambda a, b: op.walk.settle(chosen(expression(a), expression(b)))[0], terms)


@converts("Clip")
def clip(op: Operator, data: Value, least: Value = None, most: Value = None) -> Any:
    """A limit that is NaN is ignored; if the lower limit exceeds the upper one, the upper one applies."""
    dtype = dtype_of(data)
    if op.opset < 11:
        least, most = (np.array(op.attr(name), dtype) for name in ("min", "max"))
    for operator, limit, none in (("Max", least, -np.inf), ("Min", most, np.inf)):
        if limit is None:
            continue
        if isinstance(limit, np.ndarray):
            if limit != limit:
                continue
        elif dtype.startswith("float"):
            limit = op("Where", op("IsNaN", limit), np.array(none, dtype), limit)
        data = op(operator, data, limit)
    return data


@converts("Sign")
def sign(op: Operator, data: Value) -> Any:
    """The sign of NaN is NaN."""
    found = op.walk.settle(op.tvm(data))[0]
    return op("Where", op("IsNaN", data), data, found) if dtype_of(data).startswith("float") else found


@converts("ThresholdedRelu")
def thresholded_relu(op: Operator, data: Value) -> Any:
    """Elements that are not above the threshold become 0; so does NaN."""
    dtype = dtype_of(data)
    above = op("Greater", data, np.array(op.attr("alpha", 1.0), dtype))
    return op("Where", above, data, np.array(0, dtype))


@converts("IsInf")
def is_inf(op: Operator, data: Value) -> Any:
    """Compare with infinity, once for each sign that the attributes select."""
    limits = [np.inf] * bool(op.attr("detect_positive", 1)) + [-np.inf] * bool(
        op.attr("detect_negative", 1)
    )
    dtype = dtype_of(data)
    found = [op("Equal", data, np.array(limit, dtype)) for limit in limits]
    if not found:
        return np.zeros(shape_of(data), bool)
    return reduce(lambda a, b: op("Or", a, b), found)


@converts("Softplus")
def softplus(op: Operator, data: Value) -> Any:
    """max(x, 0) + log1p(e^-|x|), which does not overflow and keeps small results accurate."""

    def one(x: Any) -> Any:
        return te.max(x, tirx.const(0, x.ty.dtype)) + tirx.log1p(tirx.exp(-tirx.abs(x)))

    return elementwise(op, one, data)


@converts("Mish")
def mish(op: Operator, data: Value) -> Any:
    """x·tanh(softplus(x)) = x·n(n+2) / (n(n+2)+2) with n = e^x; from 20 on it is x."""

    def one(x: Any) -> Any:
        n = tirx.exp(te.min(x, tirx.const(20, x.ty.dtype)))
        m = n * (n + tirx.const(2, x.ty.dtype))
        return x * (m / (m + tirx.const(2, x.ty.dtype)))

    return elementwise(op, one, data)


@converts("Cosh", "Sinh")
def hyperbolic(op: Operator, data: Value) -> Any:
    """Compute by exponentials; near 0, where they cancel in sinh, by the power series."""
    even = op.node.op_type == "Cosh"

    def one(x: Any) -> Any:
        def number(value: float) -> Any:
            return tirx.const(value, x.ty.dtype)

        up, down = tirx.exp(x), tirx.exp(-x)
        if even:
            return number(0.5) * up + number(0.5) * down
        square = x * x
        series = number(1.0)
        for n in (19, 17, 15, 13, 11, 9, 7, 5, 3):
            series = number(1.0) + series * square * number(1 / (n * (n - 1)))
        return tirx.Select(square < number(1.0), x * series, number(0.5) * up - number(0.5) * down)

    return elementwise(op, one, data)


@converts("BitShift")
def bit_shift(op: Operator, data: Value, by: Value) -> Any:
    """A shift by the dtype's width or more, or by a negative number, gives 0."""
    dtype = dtype_of(data)
    width = 8 * np.dtype(dtype).itemsize
    left = op.attr("direction") == "LEFT"

    signed = dtype.startswith("int")

    def one(x: Any, y: Any) -> Any:
        zero, most = tirx.const(0, dtype), tirx.const(width - 1, dtype)
        # TVM's simplifier fails on a comparison of unsigned numbers with 0.
        inside = tirx.all(y >= zero, y <= most) if signed else y <= most
        amount = tirx.Select(inside, y, most)
        if left:
            return tirx.Select(inside, x << amount, zero)
        return x >> amount if signed else tirx.Select(inside, x >> amount, zero)

    return elementwise(op, one, data, by)


@converts("Pow")
def pow_(op: Operator, base: Value, exponent: Value) -> Any:
    """The result has the base's dtype; an integer to the power of an integer is exact. A float to the power
    of a known 2, 3 or 4 is a product, because a call of the C library takes ten times as long."""
    dtype, other = dtype_of(base), dtype_of(exponent)
    if dtype.startswith("float"):
        if isinstance(exponent, np.ndarray) and exponent.size == 1 and exponent.ndim <= len(shape_of(base)):
            factors = exponent.reshape(-1)[0]
            if factors in (2, 3, 4):
                square = op("Mul", base, base)
                return square if factors == 2 else op("Mul", square, base if factors == 3 else square)
        return op.tvm(base, cast_to(op, exponent, dtype))
    if other.startswith("float"):
        found = op("Pow", cast_to(op, base, "float64"), cast_to(op, exponent, "float64"))
        return cast_to(op, found, dtype)

    def one(x: Any, y: Any) -> Any:
        unit, zero = tirx.const(1, dtype), tirx.const(0, dtype)
        power, square = unit, x
        for bit in range(6):  # exponents from 64 on: only powers of -1, 0, 1 fit, and those repeat
            odd = ((y >> tirx.const(bit, other)) & tirx.const(1, other)) == tirx.const(1, other)
            power = tirx.Select(odd, power * square, power)
            square = square * square
        if other.startswith("uint"):
            return power
        inverse = tirx.Select(tirx.any(x == unit, x == -unit), power, zero)
        return tirx.Select(y < tirx.const(0, other), inverse, power)

    return elementwise(op, one, base, exponent)


@converts("PRelu")
def prelu(op: Operator, data: Value, slope: Value) -> Any:
    """x for x ≥ 0, slope·x below and for NaN."""
    shape = shape_of(data)
    if len(shape) > 1 and len(shape_of(slope)) == 1 and shape_of(slope)[0] not in (1, shape[-1]):
        slope = op("Reshape", slope, size_array([-1] + [1] * (len(shape) - 2)))  # per channel

    def one(x: Any, by: Any) -> Any:
        return tirx.Select(x >= tirx.const(0, x.ty.dtype), x, x * by)

    return elementwise(op, one, data, slope)
