"""The registry of operators and their converters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import onnx
from onnx import helper

from wasmgraph.compiler.importing.frontend.schemas import domain_of, schema, subgraphs
from wasmgraph.compiler.tvm_private import frontend_converters

# The domain of the operators that onnxruntime adds to ONNX's.
MICROSOFT = "com.microsoft"
# Operators whose result depends on their input's shape alone.
SHAPE_ONLY = {"EyeLike", "Shape", "Size"}
# Operators that TVM's frontend does not convert as ONNX defines them.
_NOT_TVMS = {
    "AllClassNMS",
    "Attention",
    "Compress",
    "CumSum",
    "MaxUnpool",
    "NonMaxSuppression",
    "NonZero",
    "TopK",
    "Unique",
}


# A function of an Operator (graph.py) and its inputs that returns its output or a tuple of outputs.
Converter = Callable[..., Any]
CONVERTERS: dict[tuple[str, str], Converter] = {}


def converts(*operators: str, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a converter: a function of an :class:`Operator` and its inputs that returns its outputs."""

    def register(converter: Converter) -> Converter:
        CONVERTERS.update({(domain, operator): converter for operator in operators})
        return converter

    return register


def input_name(node: onnx.NodeProto, position: int, opset: int) -> str:
    """The name of an operator's input: ONNX's, or that in the converter of an operator that ONNX does not
    define."""
    if (found := schema(node, opset)) is not None:
        return str(found.inputs[position].name)
    names = list(signature(CONVERTERS[domain_of(node), node.op_type]).parameters)[1:]
    return names[position] if position < len(names) else f"input {position}"


def tvm_has(domain: str, kind: str) -> bool:
    """Whether TVM's frontend converts an operator as ONNX defines it."""
    return not domain and kind not in _NOT_TVMS and kind in frontend_converters()


def missing(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """Operators without an implementation, with the nodes that use them, in subgraphs and functions too."""
    found: dict[str, list[str]] = {}
    own = {(f.domain, f.name) for f in proto.functions}
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}

    def look(nodes: Sequence[onnx.NodeProto], opsets: Mapping[str, int], at: str | None) -> None:
        for node in nodes:
            domain, kind = domain_of(node), node.op_type
            for graph in subgraphs(node):
                look(graph.node, opsets, at)
            if (domain, kind) in own or implemented(domain, kind, opsets.get(domain, 1)):
                continue
            name = f"{domain}.{kind}" if domain else kind
            found.setdefault(name, []).append(at or node.name or f"(makes {', '.join(node.output)})")

    look(proto.graph.node, opsets, None)
    for function in proto.functions:
        look(
            function.node, {o.domain: o.version for o in function.opset_import}, f"function {function.name}"
        )
    return found


def implemented(domain: str, kind: str, opset: int) -> bool:
    """Whether an operator can be converted: by this package, by TVM, or by ONNX's function body for it."""
    if (domain, kind) in CONVERTERS or tvm_has(domain, kind) or (not domain and kind in SHAPE_ONLY):
        return True
    found = schema(helper.make_node(kind, [], [], domain=domain), opset)
    if found is None:
        return False
    if kind == "Constant" and not domain:
        return True
    if found.has_context_dependent_function:
        return True
    inside = {o.domain: o.version for o in found.function_body.opset_import} if found.has_function else {}
    return found.has_function and all(
        implemented(domain_of(node), node.op_type, inside.get(domain_of(node), opset))
        for node in found.function_body.node
    )
