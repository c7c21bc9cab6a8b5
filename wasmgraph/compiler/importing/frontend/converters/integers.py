"""Operators on tensors that are integers times a scale (``frontend/scaled.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.quantized import centred, requantized
from wasmgraph.compiler.importing.frontend.graph import Operator
from wasmgraph.compiler.importing.frontend.scaled import BYTES, Scaled, by_integers, scale_of
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, is_known, shape_of, size_array
from wasmgraph.tensors import Array


def _floats(op: Operator, scaled: Scaled) -> Any:
    """The float32 tensor that integers and a scale are."""
    found = op("Mul", cast_to(op, scaled.integers, "float32"), _beside(scaled, scaled.scale))
    op.walk.scaled.note(found, scaled)
    return found


def _beside(scaled: Scaled, scale: Array) -> Array:
    """Scales in the shape in which they multiply the integers."""
    rank = len(shape_of(scaled.integers))
    return scale.reshape(
        [] if scaled.axis is None else [-1 if a == scaled.axis else 1 for a in range(rank)]
    )


def _plain(scale: Value) -> bool:
    """Whether scales are such that integers serve."""
    return (
        isinstance(scale, np.ndarray)
        and scale.dtype == np.float32
        and bool(scale.size)
        and bool(np.isfinite(scale).all() and (scale > 0).all())
    )


@by_integers("DequantizeLinear")
def dequantize(op: Operator, data: Value, scale: Value, zero: Value = None) -> Any:
    """The integers less their zero point, of eight bits, or a known bias of 32 bits."""
    known_bias = dtype_of(data) == "int32" and is_known(data) and zero is None
    if dtype_of(data) == "int32" and isinstance(zero, np.ndarray) and not zero.any():
        known_bias, zero = is_known(data), None
    if not _plain(scale) or op.attr("block_size", 0) or not (dtype_of(data) in BYTES or known_bias):
        return None
    assert isinstance(scale, np.ndarray)
    if scale.size == 1:
        axis, scale = None, scale.reshape(())
    elif scale.ndim == 1 and len(shape_of(data)):
        axis = int(op.attr("axis", 1)) % len(shape_of(data))
    else:
        return None
    integers = data if known_bias else centred(op, data, zero, 0 if axis is None else axis)
    return _floats(op, Scaled(integers, scale, axis))


@by_integers("QuantizeLinear")
def quantize(op: Operator, data: Value, scale: Value, zero: Value = None) -> Any:
    """Requantise: sums, or numbers of another scale."""
    held = scale_of(op, data)
    zero = np.zeros((), np.uint8) if zero is None and not op.attr("output_dtype", 0) else zero
    if held is None or zero is None or not _plain(scale) or dtype_of(zero) not in BYTES:
        return None
    assert isinstance(scale, np.ndarray)
    if scale.size > 1 or not isinstance(zero, np.ndarray) or zero.size > 1:
        return None
    factor = _beside(held, (held.scale / scale.reshape(-1)).astype(np.float32))
    return requantized(op, held.integers, factor, zero)


def _product(
    op: Operator,
    operator: str,
    operands: tuple[Scaled, Scaled],
    axis: int | None,
    bias: Value,
    bias_shape: Sequence[int],
) -> Any:
    """A product of integers, whose scale is that of both; ``axis`` is where the weights' scales lie."""
    left, right = operands
    total = op(operator, left.integers, right.integers, **op.attributes)
    scale = (left.scale * right.scale).astype(np.float32)
    found = Scaled(total, scale, None if right.axis is None else axis)
    if bias is None:
        return _floats(op, found)
    own = scale_of(op, bias)
    if own is not None and dtype_of(own.integers) == "int32" and np.array_equal(own.scale, scale):
        assert isinstance(own.integers, np.ndarray)
        total = op("Add", total, own.integers.reshape(bias_shape))
        return _floats(op, Scaled(total, scale, found.axis))
    return op("Add", _floats(op, found), op("Reshape", bias, size_array(bias_shape)))


def _operands(op: Operator, data: Value, weight: Value) -> tuple[Scaled, Scaled] | None:
    """Operands of eight bits, of which the left one has one scale."""
    left, right = scale_of(op, data), scale_of(op, weight)
    if left is None or right is None or left.axis is not None:
        return None
    if dtype_of(left.integers) != "int16" or dtype_of(right.integers) != "int16":
        return None
    return left, right


@by_integers("Conv")
def conv(op: Operator, data: Value, weight: Value, bias: Value = None) -> Any:
    """A convolution of integers."""
    operands = _operands(op, data, weight)
    if operands is None or operands[1].axis not in (None, 0):
        return None
    return _product(op, "Conv", operands, 1, bias, [-1] + [1] * (len(shape_of(data)) - 2))


@by_integers("MatMul")
def matmul(op: Operator, data: Value, weight: Value) -> Any:
    """A product of matrices of integers."""
    operands, ranks = _operands(op, data, weight), (len(shape_of(data)), len(shape_of(weight)))
    if operands is None or min(ranks) < 2 or operands[1].axis not in (None, ranks[1] - 1):
        return None
    return _product(op, "MatMul", operands, max(ranks) - 1, None, [])


@by_integers("Gemm")
def gemm(op: Operator, data: Value, weight: Value, bias: Value = None) -> Any:
    """A product of matrices of integers, and a bias."""
    operands, turned = _operands(op, data, weight), bool(op.attr("transB", 0))
    plain = op.attr("alpha", 1.0) == op.attr("beta", 1.0) == 1.0 and not op.attr("transA", 0)
    if operands is None or not plain or operands[1].axis not in (None, int(not turned)):
        return None
    left, right = operands
    if turned:
        integers = op("Transpose", right.integers, perm=[1, 0])
        right = Scaled(integers, right.scale, None if right.axis is None else 1)
    op.attributes.clear()
    if bias is not None and len(shape_of(bias)) > 1:
        return op("Add", _product(op, "MatMul", (left, right), 1, None, []), bias)
    return _product(op, "MatMul", (left, right), 1, bias, [-1])


@by_integers("Relu")
def relu(op: Operator, data: Value) -> Any:
    """The integers' own."""
    held = scale_of(op, data)
    assert held is not None
    integers = op("Max", held.integers, np.zeros((), dtype_of(held.integers)))
    return _floats(op, Scaled(integers, held.scale, held.axis))


@by_integers(
    *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather"),
    *("Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Split"),
)
def moved(op: Operator, data: Value, *others: Value) -> Any:
    """Move the integers, or pick the greatest."""
    held = scale_of(op, data)
    assert held is not None
    if held.axis is not None or op.outputs > 1 or dtype_of(held.integers) != "int16":
        return None
    if isinstance(held.integers, np.ndarray):
        return None
    integers = op.walk.apply(op.node, [held.integers, *others], op.opset, op.scope)
    return _floats(op, Scaled(integers[0], held.scale))


@by_integers("Concat")
def concat(op: Operator, *parts: Value) -> Any:
    """Join integers of one scale."""
    held = [scale_of(op, part) for part in parts]
    first = held[0]
    assert first is not None
    for one in held:
        if one is None or one.axis is not None or dtype_of(one.integers) != "int16":
            return None
        if one.scale != first.scale or isinstance(one.integers, np.ndarray):
            return None
    joined = op("Concat", *(one.integers for one in held if one), axis=op.attr("axis"))
    return _floats(op, Scaled(joined, first.scale))
