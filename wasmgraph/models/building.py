"""Writing ONNX classifiers from weights that come in other forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wasmgraph.tensors import Array

NORM_PARTS = ("gamma", "beta", "moving_mean", "moving_variance")


class GraphBuilder:
    """ONNX nodes and initializers under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        """An initializer; its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node with one output, which has the node's name. Returns that name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def conv(self, source: str, name: str, kernel: Array, bias: Array, stride: int, pad: int) -> str:
        """``kernel`` is HWIO."""
        weight = self.constant(f"{name}/kernel", kernel.transpose(3, 2, 0, 1))
        inputs = [source, weight, self.constant(f"{name}/bias", bias)]
        return self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=list(kernel.shape[:2]),
            strides=[stride] * 2,
            pads=[pad] * 4,
        )

    def batch_norm(self, source: str, name: str, values: Mapping[str, Array], epsilon: float) -> str:
        """``values`` has gamma, beta, moving_mean and moving_variance."""
        parts = [self.constant(f"{name}/{key}", values[key]) for key in NORM_PARTS]
        return self.node("BatchNormalization", [source, *parts], name, epsilon=epsilon)

    def classify(self, source: str, name: str, kernel: Array, bias: Array) -> None:
        """Dense layer (``kernel`` is IO) and softmax, as outputs ``logits`` and ``probabilities``."""
        inputs = [source, self.constant(f"{name}/kernel", kernel), self.constant(f"{name}/bias", bias)]
        self.node("Gemm", inputs, "logits")
        self.node("Softmax", ["logits"], "probabilities", axis=-1)

    def finish(
        self,
        name: str,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        description: Mapping[str, Any],
    ) -> onnx.ModelProto:
        """The checked model, with its description."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="wasmgraph")
        helper.set_model_props(model, {"wasmgraph": json.dumps(description)})
        onnx.checker.check_model(model)
        return model

    def model(self, name: str, description: Mapping[str, Any]) -> onnx.ModelProto:
        """The classifier of 224×224 images, with its description."""

        def value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        outputs = [value("probabilities", [1, 1000]), value("logits", [1, 1000])]
        return self.finish(name, [value("input", [1, 3, 224, 224])], outputs, description)
