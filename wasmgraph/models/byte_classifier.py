"""A small classifier of bytes with seeded random weights, for speed alone. Its operators are spelled out as
exporters of older frameworks write them: the embedding as a one-hot product, GELU by ``Tanh``, layer
normalisation by means.
"""

from __future__ import annotations

from itertools import pairwise
from math import pi, sqrt

import numpy as np
import onnx
from onnx import TensorProto, helper

from wasmgraph.models.building import GraphBuilder

BYTES, TOKENS, LENGTH = 256, 257, 2048  # the last token is padding
WIDTHS, KERNEL, CLASSES = (64, 128, 256, 512), 5, 16


class _Classifier:
    """The graph under construction; activations are ``[1, length, channels]``."""

    def __init__(self, seed: int) -> None:
        self.graph = GraphBuilder()
        self._rng = np.random.default_rng(seed)
        self._scalars: dict[str, str] = {}

    def weight(self, name: str, *shape: int) -> str:
        deviation = 1 / sqrt(np.prod(shape[1:]))
        return self.graph.constant(name, self._rng.normal(0, deviation, shape).astype(np.float32))

    def scalar(self, value: float) -> str:
        name = f"const_{value:g}"
        if name not in self._scalars:
            self._scalars[name] = self.graph.constant(name, np.array(value, np.float32))
        return name

    def embedded(self) -> str:
        graph = self.graph
        depth = graph.constant("depth", np.array(TOKENS, np.int64))
        values = graph.constant("off_on", np.array([0, 1], np.float32))
        ones = graph.node("OneHot", ["bytes", depth, values], "one_hot", axis=-1)
        return graph.node("MatMul", [ones, self.weight("embedding", TOKENS, WIDTHS[0])], "embedded")

    def gelu(self, x: str, name: str) -> str:
        """0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
        graph = self.graph
        cube = graph.node("Pow", [x, self.scalar(3.0)], f"{name}/cube")
        bent = graph.node("Mul", [cube, self.scalar(0.044715)], f"{name}/bent")
        inner = graph.node("Add", [x, bent], f"{name}/inner")
        scaled = graph.node("Mul", [inner, self.scalar(sqrt(2 / pi))], f"{name}/scaled")
        gate = graph.node(
            "Add", [graph.node("Tanh", [scaled], f"{name}/tanh"), self.scalar(1.0)], f"{name}/gate"
        )
        half = graph.node("Mul", [x, self.scalar(0.5)], f"{name}/half")
        return graph.node("Mul", [half, gate], name)

    def norm(self, x: str, name: str, width: int) -> str:
        graph = self.graph
        mean = graph.node("ReduceMean", [x], f"{name}/mean", axes=[-1], keepdims=1)
        centred = graph.node("Sub", [x, mean], f"{name}/centred")
        square = graph.node("Pow", [centred, self.scalar(2.0)], f"{name}/square")
        variance = graph.node("ReduceMean", [square], f"{name}/variance", axes=[-1], keepdims=1)
        deviation = graph.node(
            "Sqrt", [graph.node("Add", [variance, self.scalar(1e-5)], f"{name}/floor")], f"{name}/deviation"
        )
        normal = graph.node("Div", [centred, deviation], f"{name}/normal")
        scaled = graph.node(
            "Mul", [normal, graph.constant(f"{name}/scale", np.ones(width, np.float32))], f"{name}/scaled"
        )
        return graph.node(
            "Add", [scaled, graph.constant(f"{name}/bias", np.zeros(width, np.float32))], name
        )

    def conv(self, x: str, name: str, inputs: int, outputs: int, stride: int) -> str:
        graph = self.graph
        turned = graph.node("Transpose", [x], f"{name}/channels_first", perm=[0, 2, 1])
        kernel = self.weight(f"{name}/kernel", outputs, inputs, KERNEL)
        bias = graph.constant(f"{name}/bias", np.zeros(outputs, np.float32))
        found = graph.node(
            "Conv",
            [turned, kernel, bias],
            f"{name}/conv",
            kernel_shape=[KERNEL],
            pads=[2, 2],
            strides=[stride],
        )
        return graph.node("Transpose", [found], name, perm=[0, 2, 1])


def build(seed: int = 0) -> onnx.ModelProto:
    """``bytes``, int64 ``[1, 2048]`` from 0 to 256, to ``logits``, float32 ``[1, 16]``."""
    net = _Classifier(seed)
    graph = net.graph
    mixed = graph.node("MatMul", [net.embedded(), net.weight("mix", WIDTHS[0], WIDTHS[0])], "mixed")
    x = net.gelu(mixed, "gelu0")
    for n, (inputs, outputs) in enumerate(pairwise(WIDTHS), 1):
        x = net.conv(x, f"layer{n}", inputs, outputs, stride=1 if n == 1 else 2)
        x = net.gelu(net.norm(x, f"norm{n}", outputs), f"gelu{n}")
    turned = graph.node("Transpose", [x], "channels_first", perm=[0, 2, 1])
    pooled = graph.node("Flatten", [graph.node("GlobalMaxPool", [turned], "greatest")], "pooled")
    weight, bias = (
        net.weight("out/kernel", WIDTHS[-1], CLASSES),
        graph.constant("out/bias", np.zeros(CLASSES, np.float32)),
    )
    graph.node("Gemm", [pooled, weight, bias], "logits")
    given = helper.make_tensor_value_info("bytes", TensorProto.INT64, [1, LENGTH])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])
    return graph.finish("byte_classifier", [given], [logits], {"weights": "random"})
