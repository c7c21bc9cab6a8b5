"""ONNX's checker, for models that also have operators of onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import helper

from wasmgraph.compiler.importing.frontend.registry import MICROSOFT
from wasmgraph.compiler.importing.frontend.schemas import domain_of, subgraphs

# Operators that onnxruntime registers in ONNX's own domain.
_FOREIGN = ("SimplifiedLayerNormalization",)


def check(proto: onnx.ModelProto) -> None:
    """Run ONNX's checker.

    It requires shapes of inputs and outputs, and does not know onnxruntime's operators in ONNX's domain.
    While it runs, missing shapes are those of scalars, and these operators are in a domain that is not
    checked.

    Raises
    ------
    onnx.checker.ValidationError, ValueError
        The model is invalid.
    """
    border = [v.type for v in (*proto.graph.input, *proto.graph.output) if v.type.HasField("tensor_type")]
    bare = [kind.tensor_type for kind in border if not kind.tensor_type.HasField("shape")]
    parts = (proto.graph, *proto.functions)
    foreign = [node for part in parts for node in _inside(part.node) if _is_foreign(node)]
    domains = [node.domain for node in foreign]
    try:
        for tensor in bare:
            tensor.shape.SetInParent()
        for node in foreign:
            node.domain = MICROSOFT
        onnx.checker.check_model(proto)
    finally:
        for tensor in bare:
            tensor.ClearField("shape")
        for node, domain in zip(foreign, domains, strict=True):
            node.domain = domain


def import_domain(proto: onnx.ModelProto) -> None:
    """Import onnxruntime's domain where its operators are used. onnxruntime does not require that."""
    for part, nodes in ((proto, proto.graph.node), *((f, f.node) for f in proto.functions)):
        used = any(node.domain == MICROSOFT or _is_foreign(node) for node in _inside(nodes))
        if used and not any(o.domain == MICROSOFT for o in part.opset_import):
            part.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def onnxruntime_crashes(proto: onnx.ModelProto) -> bool:
    """Whether a function has an operator that onnxruntime (1.32) looks up in ONNX's domain without finding
    it: that ends the process."""
    return any(_is_foreign(node) for function in proto.functions for node in _inside(function.node))


def _is_foreign(node: onnx.NodeProto) -> bool:
    return node.op_type in _FOREIGN and not domain_of(node)


def _inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of the graphs in them."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _inside(graph.node)
