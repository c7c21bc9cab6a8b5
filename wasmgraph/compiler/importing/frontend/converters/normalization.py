"""Normalisations, in the variants that TVM's frontend lacks."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    is_known,
    scalar,
    shape_of,
    size_array,
)
from wasmgraph.dims import Shape


def _normalized(op: Operator, data: Value) -> Shape:
    """The dimensions that are normalised: from ``axis`` on."""
    shape = shape_of(data)
    return shape[int(op.attr("axis", -1)) % len(shape) :]


def _spread(op: Operator, value: Value, shape: Shape) -> Value:
    """Expand a scale or bias to the normalised shape. It may have fewer dimensions, or dimensions of 1."""
    if value is None or shape_of(value) == shape:
        return value
    return op("Expand", value, size_array(shape))


def _exceeds(value: Value, shape: Shape) -> bool:
    """Whether a scale or bias varies along dimensions that are not normalised."""
    return value is not None and prod(shape_of(value)[: -len(shape)]) > 1


def _flat(op: Operator, value: Value, shape: Shape) -> Value:
    """Remove leading dimensions of 1 that ``shape`` does not have."""
    if value is None or len(shape_of(value)) <= len(shape):
        return value
    return op("Reshape", value, size_array(shape_of(value)[-len(shape) :]))


@converts("LayerNormalization")
def layer_normalization(op: Operator, data: Value, scale: Value, bias: Value = None) -> Any:
    """Use one kernel, unless the means and deviations are outputs too."""
    shape = _normalized(op, data)
    if _exceeds(scale, shape) or _exceeds(bias, shape):
        found = op("LayerNormalization", data, np.ones(shape, dtype_of(data)), **_options(op))
        scaled = op("Mul", found, scale)
        return scaled if bias is None else op("Add", scaled, bias)
    scale, bias = (_spread(op, _flat(op, value, shape), shape) for value in (scale, bias))
    return op.tvm(data, scale, bias) if op.outputs == 1 else tuple(op.function(data, scale, bias))


@converts("RMSNormalization")
def rms_normalization(op: Operator, data: Value, scale: Value) -> Any:
    """Normalise one axis, into which those that are normalised are joined."""
    shape = _normalized(op, data)
    if _exceeds(scale, shape):
        found = op("RMSNormalization", data, np.ones(shape, dtype_of(data)), **_options(op))
        return op("Mul", found, scale)
    scale = _spread(op, _flat(op, scale, shape), shape)
    outer = shape_of(data)[: -len(shape)]
    if len(shape) == 1 and outer:
        return op.tvm(data, scale)
    rows = op("Reshape", data, size_array([prod(outer), prod(shape)]))
    scale = op("Reshape", scale, size_array([prod(shape)]))
    found = op.walk.settle(op.tvm(rows, scale, axis=-1))[0]
    return op("Reshape", found, size_array(shape_of(data)))


def _options(op: Operator) -> dict[str, Any]:
    if op.outputs > 1:
        raise op.unsupported("with a scale along other dimensions than are normalised has no means here")
    return {"axis": int(op.attr("axis", -1)), "epsilon": float(op.attr("epsilon", 1e-5))}


@converts("LRN")
def local_response_normalization(op: Operator, data: Value) -> Any:
    """TVM supports windows of odd size. In a window of even size the larger half is after the channel."""
    size = int(op.attr("size"))
    if size % 2:
        return op.tvm(data)
    channels, dtype = shape_of(data)[1], dtype_of(data)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = op("Mul", data, data)
    rest = [0] * (2 * len(shape_of(data)))
    rest[1], rest[len(shape_of(data)) + 1] = before, after
    padded = op("Pad", squares, size_array(rest))
    total = None
    for step in range(size):
        bounds = (size_array([b]) for b in (step, step + channels, 1))
        term = op("Slice", padded, *bounds)
        total = term if total is None else op("Add", total, term)
    share = np.array(op.attr("alpha", 1e-4) / size, dtype)
    base = op("Add", op("Mul", total, share), np.array(op.attr("bias", 1.0), dtype))
    return op("Div", data, op("Pow", base, np.array(op.attr("beta", 0.75), dtype)))


@converts("BatchNormalization")
def batch_normalization(
    op: Operator, data: Value, scale: Value, bias: Value, mean: Value, variance: Value
) -> Any:
    """In training mode, normalise by the batch's own mean and variance, and return the running ones too."""
    if not op.attr("training_mode", 0):
        if op.opset < 14 and op.outputs > 1:
            raise op.unsupported(f"of opset {op.opset} has running means; convert the model to opset 14")
        return op.tvm(data, scale, bias, mean, variance)
    rank, dtype = len(shape_of(data)), dtype_of(data)
    others = size_array([axis for axis in range(rank) if axis != 1])
    momentum = np.array(op.attr("momentum", 0.9), dtype)

    def column(vector: Value) -> Any:
        return op("Reshape", vector, size_array([-1] + [1] * (rank - 2)))

    def running(old: Value, new: Value) -> Any:
        flat = op("Reshape", new, size_array([-1]))
        return op("Add", op("Mul", old, momentum), op("Mul", flat, np.array(1, dtype) - momentum))

    own_mean = op("ReduceMean", data, others, keepdims=1)
    centred = op("Sub", data, own_mean)
    own_variance = op("ReduceMean", op("Mul", centred, centred), others, keepdims=1)
    deviation = op("Sqrt", op("Add", own_variance, np.array(op.attr("epsilon", 1e-5), dtype)))
    normal = op("Mul", op("Div", centred, deviation), column(scale))
    found = op("Add", normal, column(bias))
    return (found, running(mean, own_mean), running(variance, own_variance))[: max(1, op.outputs)]


@converts("LpNormalization")
def lp_normalization(op: Operator, data: Value) -> Any:
    """Divide by the norm; vectors whose norm is 0 stay 0."""
    norm = "ReduceL1" if int(op.attr("p", 2)) == 1 else "ReduceL2"
    length = op(norm, data, size_array([op.attr("axis", -1)]), keepdims=1)
    zero = np.array(0, dtype_of(data))
    return op("Where", op("Equal", length, zero), zero, op("Div", data, length))


@converts("Dropout")
def dropout(op: Operator, data: Value, ratio: Value = None, training: Value = None) -> Any:
    """Pass the data through: elements are only dropped in training, which is not supported."""
    if scalar(training, False) and not (is_known(ratio) and scalar(ratio, 0.5) == 0):
        raise op.unsupported("in training mode is random")
    return (data, np.ones(shape_of(data), bool))[: max(1, op.outputs)]
