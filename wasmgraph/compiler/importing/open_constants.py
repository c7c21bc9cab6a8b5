"""Decides whether onnxruntime may fold a model's constants.

ONNX leaves two results open: casts of floats that no integer can represent, and integer divisions on which
processors trap. onnxruntime folds such a cast to another value than compiled code computes, and folding
such a division ends the process.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wasmgraph.compiler.importing.frontend.schemas import (
    all_nodes,
    deterministic,
    domain_of,
    evaluate,
    subgraphs,
)
from wasmgraph.tensors import Array

_OPEN = ("Cast", "CastLike", "Div", "Mod", "QuantizeLinear")
_LARGE = 1 << 16  # elements; the values of larger constants are not computed


def leaves_open(model: onnx.ModelProto) -> bool:
    """Whether nodes that depend only on constants have, or may have, a result that ONNX leaves open."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    if not any(node.op_type in _OPEN for node in all_nodes(model.graph)):
        return False
    return _leaves_open(model.graph, opset, {})


def _leaves_open(graph: onnx.GraphProto, opset: int, outer: Mapping[str, Array | None]) -> bool:
    values = dict(outer)  # by name; None for a constant that is not computed
    for tensor in graph.initializer:
        small = np.prod(tensor.dims, dtype=np.int64) <= _LARGE
        values[tensor.name] = numpy_helper.to_array(tensor) if small else None
    for node in graph.node:
        if any(_leaves_open(inner, opset, values) for inner in subgraphs(node)):
            return True
        if domain_of(node) or not all(name in values for name in node.input if name):
            continue
        if not deterministic(node, opset):
            continue
        inputs = [values[name] if name else None for name in node.input]
        computed = all(v is not None for v, name in zip(inputs, node.input, strict=True) if name)
        if node.op_type in _OPEN and _open(node, inputs):
            return True
        found = evaluate(node, inputs, opset) if computed else None
        for i, name in enumerate(node.output):
            value = found[i] if found else None
            values[name] = value if isinstance(value, np.ndarray) and value.size <= _LARGE else None
    return False


def _open(node: onnx.NodeProto, inputs: list[Array | None]) -> bool:
    data, other = inputs[0], inputs[1] if len(inputs) > 1 else None
    if node.op_type in ("Div", "Mod"):
        if other is None:
            return True
        return other.dtype.kind in "iu" and bool(np.isin(other, (0, -1)).any())
    if data is None or data.dtype.kind != "f":
        return False
    if node.op_type != "Cast":
        return not bool(np.isfinite(data).all())
    to = next(a.i for a in node.attribute if a.name == "to")
    if to == onnx.TensorProto.STRING:
        return False
    wanted = helper.tensor_dtype_to_np_dtype(to)
    if wanted.kind not in "iu":
        return False
    limits = np.iinfo(wanted)
    return not bool(((data > limits.min - 1.0) & (data < limits.max + 1.0)).all())
