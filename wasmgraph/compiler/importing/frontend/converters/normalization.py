"""Normalisations, in the variants that TVM's frontend lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, is_known, scalar, shape_of


@converts("LayerNormalization")
def layer_normalization(op: Operator, data: Value, scale: Value, bias: Value = None) -> Any:
    """One kernel, unless the means and deviations are asked for."""
    return op.tvm(data, scale, bias) if op.outputs == 1 else tuple(op.function(data, scale, bias))


@converts("RMSNormalization")
def rms_normalization(op: Operator, data: Value, scale: Value) -> Any:
    """One kernel over the last axis, else what ONNX says it is made of."""
    axis = int(op.attr("axis", -1)) % len(shape_of(data))
    last = axis == len(shape_of(data)) - 1
    return op.tvm(data, scale) if last else tuple(op.function(data, scale))


@converts("BatchNormalization")
def batch_normalization(
    op: Operator, data: Value, scale: Value, bias: Value, mean: Value, variance: Value
) -> Any:
    """In training mode by the batch's own mean and variance, and with the running ones."""
    if not op.attr("training_mode", 0):
        if op.opset < 14 and op.outputs > 1:
            raise op.unsupported(f"of opset {op.opset} has running means; convert the model to opset 14")
        return op.tvm(data, scale, bias, mean, variance)
    rank, dtype = len(shape_of(data)), dtype_of(data)
    others = np.array([axis for axis in range(rank) if axis != 1], np.int64)
    momentum = np.array(op.attr("momentum", 0.9), dtype)

    def column(vector: Value) -> Any:
        return op("Reshape", vector, np.array([-1] + [1] * (rank - 2), np.int64))

    def running(old: Value, new: Value) -> Any:
        flat = op("Reshape", new, np.array([-1], np.int64))
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
    """Divided by its norm; what has none stays 0."""
    norm = "ReduceL1" if int(op.attr("p", 2)) == 1 else "ReduceL2"
    length = op(norm, data, np.array([op.attr("axis", -1)], np.int64), keepdims=1)
    zero = np.array(0, dtype_of(data))
    return op("Where", op("Equal", length, zero), zero, op("Div", data, length))


@converts("Dropout")
def dropout(op: Operator, data: Value, ratio: Value = None, training: Value = None) -> Any:
    """Nothing is dropped but in training."""
    if scalar(training, False) and not (is_known(ratio) and scalar(ratio, 0.5) == 0):
        raise op.unsupported("in training mode is random")
    return (data, np.ones(shape_of(data), bool))[: max(1, op.outputs)]
