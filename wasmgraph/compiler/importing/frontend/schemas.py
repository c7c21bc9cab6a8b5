"""ONNX's own definition of an operator: its schema, its reference implementation, its function body."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.reference
from onnx import helper

from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, is_known, shape_of

# Warnings from ONNX's reference implementation concern the model itself, or are numpy's about overflows.
# The filter is permanent: one that is set for the time of a call would affect all threads anyway.
warnings.filterwarnings("ignore", module=r"onnx\.reference")


def domain_of(node: onnx.NodeProto) -> str:
    """A node's domain; ONNX's own is empty."""
    return "" if node.domain == "ai.onnx" else str(node.domain)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, each before those of the graphs in it."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def schema(node: onnx.NodeProto, opset: int) -> Any:
    """A node's ``OpSchema`` (its type stubs are incomplete); None for an operator that ONNX does not
    define."""
    try:
        return onnx.defs.get_schema(node.op_type, opset, domain_of(node))
    except onnx.defs.SchemaError:
        return None


# Operators whose result ONNX leaves open, or computes otherwise than compiled code in its reference
# implementation. Converters fold these.
_OWN = ("CastLike", "DynamicQuantizeLinear", "MaxPool", "QuantizeLinear", "ReduceLogSumExp")


def fold(node: onnx.NodeProto, inputs: Sequence[Value], opset: int) -> list[Value] | None:
    """The outputs, if all inputs are known and ONNX's reference determines the outputs; otherwise None."""
    if not all(map(is_known, inputs)) or _left_open(node, inputs) or not deterministic(node, opset):
        return None
    return evaluate(node, inputs, opset)


def _left_open(node: onnx.NodeProto, inputs: Sequence[Value]) -> bool:
    """Whether the outputs that users expect differ from what ONNX's reference computes."""
    if domain_of(node):
        return False
    if node.op_type == "Cast" and isinstance(inputs[0], np.ndarray) and inputs[0].dtype.kind == "f":
        to = next(a.i for a in node.attribute if a.name == "to")
        return to != onnx.TensorProto.STRING and helper.tensor_dtype_to_np_dtype(to).kind in "iu"
    return node.op_type in _OWN


def deterministic(node: onnx.NodeProto, opset: int) -> bool:
    """Whether equal inputs give equal outputs, and ONNX's reference can compute them."""
    found = schema(node, opset)
    subgraphs = any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute)
    determined = onnx.defs.OpSchema.NodeDeterminism.Deterministic
    return found is not None and found.node_determinism == determined and not subgraphs


def evaluate(node: onnx.NodeProto, inputs: Sequence[Value], opset: int) -> list[Value] | None:
    """The outputs by ONNX's reference implementation; None if it cannot compute them."""
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    feeds = {f"i{i}": value for i, value in enumerate(inputs) if value is not None}
    del alone.input[:], alone.output[:]
    alone.input.extend(f"i{i}" if value is not None else "" for i, value in enumerate(inputs))
    alone.output.extend(f"o{i}" if name else "" for i, name in enumerate(node.output))
    values = [
        helper.make_value_info(name, onnx.TypeProto()) for name in [*feeds, *filter(None, alone.output)]
    ]
    graph = helper.make_graph([alone], "known", values[: len(feeds)], values[len(feeds) :])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])
    try:
        with np.errstate(all="ignore"):
            found = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # it has gaps; if the node is invalid, its converter reports that
        return None
    results = dict(zip(filter(None, alone.output), found, strict=True))
    return [known(results.get(name)) for name in alone.output]


def known(value: Any) -> Value:
    """Return a known tensor or sequence in the form that converters expect: float16 becomes float32."""
    if isinstance(value, list):
        return [known(item) for item in value]
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def function_body(node: onnx.NodeProto, inputs: list[Value], opset: int) -> onnx.FunctionProto | None:
    """ONNX's function body for an operator with inputs of these types; None if there is none."""
    found = schema(node, opset)
    if found is None:
        return None
    body: onnx.FunctionProto | None = None
    if found.has_context_dependent_function:
        types = [type_of(value).SerializeToString() for value in inputs]
        serialized = found.get_context_dependent_function(node.SerializeToString(), types)
        body = onnx.FunctionProto.FromString(serialized) if serialized else None
    elif found.has_function:
        body = onnx.FunctionProto()
        body.CopyFrom(found.function_body)
    if body is not None:
        given = {a.name for a in [*node.attribute, *body.attribute_proto]}
        defaults = [a.default_value for name, a in found.attributes.items() if name not in given]
        body.attribute_proto.extend(value for value in defaults if value.name)
    return body


def type_of(value: Value) -> onnx.TypeProto:
    """A value's type as an ONNX ``TypeProto``."""
    if value is None:
        return onnx.TypeProto()
    if isinstance(value, list):
        return helper.make_sequence_type_proto(type_of(value[0]) if value else onnx.TypeProto())
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(value)))
    shape = [size if isinstance(size, int) else str(size) for size in shape_of(value)]
    return helper.make_tensor_type_proto(dtype, shape)


def instantiate(function: onnx.FunctionProto, call: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A function's nodes, with the attributes of the node that calls it."""
    given = {a.name: a for a in [*function.attribute_proto, *call.attribute]}
    return [_bind_attributes(node, given) for node in function.node]


def _bind_attributes(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """Copy a function's node and replace its references to the function's attributes, in subgraphs too."""
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name in given:
                value = bound.attribute.add()
                value.CopyFrom(given[attribute.ref_attr_name])
                value.name = attribute.name
            continue
        kept = bound.attribute.add()
        kept.CopyFrom(attribute)
        if attribute.type == attribute.GRAPH:
            inner = [_bind_attributes(n, given) for n in attribute.g.node]
            del kept.g.node[:]
            kept.g.node.extend(inner)
    return bound
