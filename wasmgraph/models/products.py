"""Matrix products alone, of seeded random weights or of inputs → ONNX: for speed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from wasmgraph.models.building import GraphBuilder


def matrix_vector(width: int = 2048, layers: int = 4, seed: int = 0) -> onnx.ModelProto:
    """Products of a row, ``input`` ``[1, width]`` to ``output``, by square matrices of 16 MiB each."""
    rng = np.random.default_rng(seed)
    graph = GraphBuilder()
    name = "input"
    for layer in range(layers):
        values = rng.normal(0, width**-0.5, (width, width)).astype(np.float32)
        weight = graph.constant(f"weight{layer}", values)
        name = graph.node("MatMul", [name, weight], "output" if layer == layers - 1 else f"row{layer}")
    inputs, outputs = ([_tensor(side, 1, width)] for side in ("input", "output"))
    return graph.finish(f"matrix_vector_{width}", inputs, outputs, {"weights": "random"})


def attention(size: int, heads: int = 12, length: int = 256) -> onnx.ModelProto:
    """``queries``, ``keys``, ``values`` and the result ``mixed`` are ``[1, heads, length, size]``."""
    graph = GraphBuilder()
    scale = graph.constant("scale", np.array(size**-0.5, np.float32))
    turned = graph.node("Transpose", ["keys"], "turned", perm=[0, 1, 3, 2])
    scores = graph.node("MatMul", ["queries", turned], "scores")
    scaled = graph.node("Mul", [scores, scale], "scaled")
    weights = graph.node("Softmax", [scaled], "weights", axis=-1)
    graph.node("MatMul", [weights, "values"], "mixed")
    inputs = [_tensor(name, 1, heads, length, size) for name in ("queries", "keys", "values")]
    outputs = [_tensor("mixed", 1, heads, length, size)]
    return graph.finish(f"attention_{size}", inputs, outputs, {"weights": "random"})


def _tensor(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
