"""Operators on tensors without elements: caches before the first step, empty batches, empty selections.
Their values are known at compile time, even if they are inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.shape_inference
from onnx import helper, numpy_helper

from wasmgraph.compiler.importing.frontend.schemas import domain_of, known, schema, type_of
from wasmgraph.compiler.importing.frontend.values import Sizes, Value, dtype_of, shape_of
from wasmgraph.errors import ModelError
from wasmgraph.tensors import Array

# Operators whose every output element is, or points to, an element of their first input.
_READERS = {
    *("ArgMax", "ArgMin", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "GridSample", "MaxPool"),
    *("MaxUnpool", "Resize", "RoiAlign", "TopK", "Upsample"),
}
_SCATTERS = {"Scatter", "ScatterElements", "ScatterND"}
_RECURRENT = {"GRU", "LSTM", "RNN"}
_FEW = 16  # elements of an input that can be a shape


def is_empty(value: Value) -> bool:
    """Whether a value is a tensor without elements."""
    return isinstance(value, np.ndarray) and not value.size


def without_elements(node: onnx.NodeProto, inputs: Sequence[Value], opset: int) -> list[Value] | None:
    """Return the outputs of a node whose inputs or outputs are empty; None if its converter has to find
    them.

    Raises
    ------
    ModelError
        The node would read an element of an empty tensor.
    """
    if domain_of(node) or not any(map(_matters, inputs)) or any(isinstance(v, list) for v in inputs):
        return None
    kind, data = node.op_type, inputs[0]
    zeros = _zeros(node, inputs, opset)
    if zeros and all(value is None or is_empty(value) for value in zeros):
        return zeros
    if kind == "ReduceMean" and is_empty(data):
        return zeros  # undefined in ONNX; 0 in onnxruntime, which may have folded another such node
    if kind in _SCATTERS and is_empty(inputs[1]):
        return [data]
    if not is_empty(data):
        return None
    if kind in _RECURRENT:
        return _without_steps(node, inputs)
    if kind in _READERS:
        raise ModelError(f"it takes elements of a tensor of shape {list(shape_of(data))}, which has none")
    return None


def _matters(value: Value) -> bool:
    """Whether a value is empty, or may be a shape or count that makes an output empty."""
    if not isinstance(value, np.ndarray) or isinstance(value, Sizes):
        return False
    return not value.size or (value.size <= _FEW and value.dtype.kind == "i" and not value.all())


def _zeros(node: onnx.NodeProto, inputs: Sequence[Value], opset: int) -> list[Value] | None:
    """Zeros in the shapes that ONNX infers for the outputs; None if it cannot infer all of them."""
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    del alone.input[:]
    alone.input.extend(f"i{n}" if value is not None else "" for n, value in enumerate(inputs))
    given = {f"i{n}": value for n, value in enumerate(inputs) if value is not None}
    types = {name: type_of(value) for name, value in given.items()}
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    few = {name: numpy_helper.from_array(a, name) for name, a in arrays.items() if _is_few(a)}
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            schema(node, opset), alone, types, few, opset_imports=[helper.make_opsetid("", opset)]
        )
    except Exception:  # if the node is invalid, its converter reports that
        return None
    zeros: list[Value] = []
    for name in alone.output:
        tensor = inferred[name].tensor_type if name in inferred else onnx.TypeProto.Tensor()
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if name and (not tensor.HasField("shape") or min(sizes, default=0) < 0):
            return None
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if name else None
        zeros.append(known(np.zeros(sizes, dtype)) if name else None)
    return zeros


def _is_few(array: Array) -> bool:
    return array.size <= _FEW and not isinstance(array, Sizes)


def _without_steps(node: onnx.NodeProto, inputs: Sequence[Value]) -> list[Value] | None:
    """The outputs of a recurrent layer for a sequence without steps: the state is unchanged."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    batchwise = bool(attributes.get("layout", 0))
    shape, dtype = shape_of(inputs[0]), dtype_of(inputs[0])
    steps, batch = shape[1 if batchwise else 0], shape[0 if batchwise else 1]
    if steps:
        return None
    directions, _, hidden = shape_of(inputs[2])
    states = 2 if node.op_type == "LSTM" else 1
    begin = [inputs[n] if n < len(inputs) else None for n in (5, 6)[:states]]
    state = (batch, directions, hidden) if batchwise else (directions, batch, hidden)
    last = [np.zeros(state, dtype) if value is None else value for value in begin]
    every = (batch, 0, directions, hidden) if batchwise else (0, directions, batch, hidden)
    return [np.zeros(every, dtype), *last][: len(node.output)]
