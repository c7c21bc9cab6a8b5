"""Operators into which onnxruntime's optimizer fuses several: products and convolutions with activations,
forms of GELU, normalisations of sums.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from onnx import TensorProto

from wasmgraph.compiler.importing.frontend.converters.arithmetic import counted
from wasmgraph.compiler.importing.frontend.converters.bounds import checked
from wasmgraph.compiler.importing.frontend.converters.contributed import contributed, refuse_outputs
from wasmgraph.compiler.importing.frontend.converters.moving import take
from wasmgraph.compiler.importing.frontend.graph import Operator
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, shape_of, size_array
from wasmgraph.errors import ModelError

# Activations of fused operators, with their parameters in the order in which FusedConv has them.
_ACTIVATIONS = {
    **dict.fromkeys(("HardSwish", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"), ()),
    **dict.fromkeys(("Celu", "Elu", "LeakyRelu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
}


def _activated(op: Operator, data: Value, *parameters: float | None) -> Any:
    """Apply the activation of a fused operator, if it has one, with its parameters."""
    name = op.attr("activation", "")
    if not name:
        return data
    if name not in _ACTIVATIONS:
        raise op.unsupported(f"with the activation {name!r} is not implemented")
    names = _ACTIVATIONS[name]
    if len(parameters) != len(names) or None in parameters:
        raise ModelError(f"its activation {name} must have the parameters {', '.join(names) or 'none'}")
    chosen: dict[str, Any] = dict(zip(names, parameters, strict=True))
    return op(name, data, **chosen)


@contributed("FusedMatMul", "alpha", "transA", "transB", "transBatchA", "transBatchB")
def fused_matmul(op: Operator, a: Value, b: Value) -> Any:
    """A matrix product with a factor; its operands may be transposed."""
    operands = [_turned(op, value, side) for value, side in ((a, "A"), (b, "B"))]
    found, alpha = op("MatMul", *operands), op.attr("alpha", 1.0)
    return found if alpha == 1 else op("Mul", found, np.array(alpha, dtype_of(found)))


def _turned(op: Operator, value: Value, side: str) -> Any:
    """Transpose an operand of FusedMatMul: ``transBatch`` moves the first axis behind the other batch axes,
    and ``trans`` then exchanges the last two."""
    perm = list(range(len(shape_of(value))))
    if len(perm) < 2:
        return value
    if op.attr(f"transBatch{side}", 0):
        perm = [*perm[1:-1], 0, perm[-1]]
    if op.attr(f"trans{side}", 0):
        perm[-2:] = perm[:-3:-1]
    return value if perm == sorted(perm) else op("Transpose", value, perm=perm)


@contributed(
    "FusedConv",
    *("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
    *("activation", "activation_params"),
)
def fused_conv(op: Operator, data: Value, weight: Value, bias: Value = None, added: Value = None) -> Any:
    """A convolution, to whose result a tensor may be added before the activation."""
    plain = {k: v for k, v in op.attributes.items() if not k.startswith("activation")}
    found = op("Conv", data, weight, *([] if bias is None else [bias]), **plain)
    if added is not None:
        found = op("Add", found, added)
    given = list(op.attr("activation_params", []))
    if op.attr("activation") == "Clip" and len(given) == 2:
        return op("Clip", found, *np.array(given, dtype_of(found)))
    return _activated(op, found, *given)


@contributed(
    "FusedGemm",
    *("alpha", "beta", "transA", "transB"),
    *("activation", "activation_alpha", "activation_beta", "activation_gamma"),
)
def fused_gemm(op: Operator, a: Value, b: Value, c: Value = None) -> Any:
    """A Gemm with an activation."""
    plain = {k: v for k, v in op.attributes.items() if not k.startswith("activation")}
    found = op("Gemm", a, b, *([] if c is None else [c]), **plain)
    names = _ACTIVATIONS.get(op.attr("activation", ""), ())
    return _activated(op, found, *(op.attr(f"activation_{name}") for name in names))


@contributed("Gelu")
def gelu(op: Operator, data: Value) -> Any:
    """x·Φ(x)."""
    dtype = dtype_of(data)
    share = op("Add", op("Erf", op("Mul", data, np.array(sqrt(0.5), dtype))), np.array(1, dtype))
    return op("Mul", op("Mul", data, share), np.array(0.5, dtype))


@contributed("BiasGelu")
def bias_gelu(op: Operator, data: Value, bias: Value) -> Any:
    """GELU of a sum."""
    return gelu(op, op("Add", data, bias))


@contributed("FastGelu")
def fast_gelu(op: Operator, data: Value, bias: Value = None) -> Any:
    """GELU by tanh."""
    data = data if bias is None else op("Add", data, bias)
    dtype, factor = dtype_of(data), sqrt(2 / np.pi)
    cubic = op("Mul", op("Mul", data, data), np.array(0.044715 * factor, dtype))
    inner = op("Mul", data, op("Add", cubic, np.array(factor, dtype)))
    share = op("Add", op("Tanh", inner), np.array(1, dtype))
    return op("Mul", op("Mul", data, share), np.array(0.5, dtype))


@contributed("QuickGelu", "alpha")
def quick_gelu(op: Operator, data: Value) -> Any:
    """x·sigmoid(αx)."""
    alpha = np.array(op.attr("alpha", 1.702), dtype_of(data))
    return op("Mul", data, op("Sigmoid", op("Mul", data, alpha)))


def _sum(op: Operator, data: Value, skip: Value, bias: Value) -> Any:
    if shape_of(skip) not in (shape_of(data), (1, *shape_of(data)[1:]), shape_of(data)[1:]):
        raise ModelError(f"it adds {list(shape_of(skip))} to {list(shape_of(data))}")
    total = op("Add", data, skip)
    return total if bias is None else op("Add", total, bias)


def _outputs(op: Operator, *found: Value) -> Any:
    """The outputs that are used of those of a normalisation: its statistics are only for training."""
    refuse_outputs(op, mean=1, inv_std_var=2)
    return found[: max(1, op.outputs)]


@contributed("SkipLayerNormalization", "epsilon")
def skip_layer_normalization(
    op: Operator, data: Value, skip: Value, gamma: Value, beta: Value = None, bias: Value = None
) -> Any:
    """Layer normalisation of a sum, which is an output too."""
    total = _sum(op, data, skip, bias)
    found = _layer_normalized(op, total, gamma, beta)
    return _outputs(op, found, None, None, total)


def _layer_normalized(op: Operator, data: Value, gamma: Value, beta: Value) -> Any:
    given = [gamma] if beta is None else [gamma, beta]
    return op("LayerNormalization", data, *given, axis=-1, epsilon=op.attr("epsilon", 1e-12))


@contributed("SkipSimplifiedLayerNormalization", "epsilon")
def skip_simplified_layer_normalization(
    op: Operator, data: Value, skip: Value, gamma: Value, bias: Value = None
) -> Any:
    """Normalisation of a sum, which is an output too, by the root of its mean square."""
    total = _sum(op, data, skip, bias)
    found = op("RMSNormalization", total, gamma, axis=-1, epsilon=op.attr("epsilon", 1e-12))
    return _outputs(op, found, None, None, total)


@contributed("SimplifiedLayerNormalization", "axis", "epsilon", "stash_type", domain="")
def simplified_layer_normalization(op: Operator, data: Value, scale: Value) -> Any:
    """RMSNormalization under the name, and in the domain, that it had before ONNX defined it."""
    refuse_outputs(op, inv_std_var=1)
    return op("RMSNormalization", data, scale, axis=op.attr("axis", -1), epsilon=op.attr("epsilon", 1e-5))


@contributed("EmbedLayerNormalization", "epsilon", "mask_index_type")
def embed_layer_normalization(
    op: Operator,
    input_ids: Value,
    segment_ids: Value,
    word_embedding: Value,
    position_embedding: Value,
    segment_embedding: Value,
    gamma: Value,
    beta: Value,
    mask: Value = None,
    position_ids: Value = None,
) -> Any:
    """Add rows of up to three tables, and normalise. The second output counts the 1s of the mask."""
    batch, length = shape_of(input_ids)
    if (segment_ids is None) != (segment_embedding is None):
        raise ModelError("it must have both of 'segment_ids' and 'segment_embedding' or none")
    if position_ids is None:
        position_ids = op("Unsqueeze", counted(op, length, "int32"), size_array([0]))
    total = _rows(op, word_embedding, input_ids)
    total = op("Add", total, _rows(op, position_embedding, position_ids))
    if segment_ids is not None:
        total = op("Add", total, _rows(op, segment_embedding, segment_ids))
    found = _layer_normalized(op, total, gamma, beta)
    counts: Value = np.zeros(batch, np.int32)
    if mask is not None:
        ones = op("Cast", op("Equal", mask, np.array(1, dtype_of(mask))), to=TensorProto.INT32)
        counts = op("ReduceSum", ones, np.array([1]), keepdims=0)
    return (found, counts, total)[: max(1, op.outputs)]


def _rows(op: Operator, table: Value, places: Value) -> Any:
    """Rows of a table; places before or beyond it are errors."""
    return take(op, table, checked(op, places, shape_of(table)[0], first=0))
