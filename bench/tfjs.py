"""ONNX models as steps for TensorFlow.js (``js/tfjs_wasm.mjs``), set up at its best: constants folded,
BatchNorm, bias and activation in the convolution, everything NHWC from the first operator to the last.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from google.protobuf.message import DecodeError

from wasmgraph.compiler.importing import bind_shapes, optimize
from wasmgraph.errors import ModelError, UnsupportedOperatorError
from wasmgraph.tensors import Array, TensorSpec

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_PLAIN = {"Add": "add", "Mul": "mul", "Relu": "relu", "Sigmoid": "sigmoid"}


@dataclass
class Translation:
    """Steps in order, each with its inputs' and its output's names; constants under their names;
    outputs under the name that the last step gives them."""

    inputs: list[TensorSpec]
    outputs: list[tuple[str, TensorSpec]]
    steps: list[dict[str, Any]] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)


def translate(path: Path) -> Translation:
    """Translate a model of static shapes.

    Raises
    ------
    UnsupportedOperatorError
        It uses what this translation does not know; the message names it.
    ModelError
        It cannot be read.
    """
    try:
        proto = onnx.load(path)
        bind_shapes(proto, {})
        proto, _ = optimize(proto, path.stem)
    except DecodeError as error:
        raise ModelError(f"tfjs-wasm: {path} is not an ONNX file: {error}.") from error
    proto.ir_version = max(proto.ir_version, 4)  # before, inference looks for weights among the inputs
    return _Translator(onnx.shape_inference.infer_shapes(proto).graph).run()


class _Translator:
    """Tensors of four dimensions lie NHWC under their ONNX names; all others as in ONNX."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        values = [*graph.input, *graph.value_info, *graph.output]
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        self.shapes |= {name: list(value.shape) for name, value in self.weights.items()}
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)
        fed = [value.name for value in graph.input]
        self.out = Translation([self.spec(name) for name in fed], [])

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(name, tuple(self.shapes[name]), "float32")

    def run(self) -> Translation:
        renamed = {}
        for spec in self.out.inputs:
            if len(spec.shape) == 4:
                name = renamed[spec.name] = f"{spec.name}/nhwc"
                self.shapes[name] = list(spec.shape)
                self.emit("transpose", [spec.name], name, perm=_TO_NHWC)
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = renamed.get(name, name)
        for node, activation in self.fused():
            self.node(node, activation)
        for value in self.graph.output:
            name = value.name
            if len(self.shapes[name]) == 4:
                name = f"{name}/nchw"
                self.emit("transpose", [value.name], name, perm=_TO_NCHW)
            self.out.outputs.append((name, self.spec(value.name)))
        self.bury()
        return self.out

    def fused(self) -> list[tuple[onnx.NodeProto, str]]:
        """Every node with the activation that it applies itself; that activation's node is gone."""
        relus = {node.input[0]: node.output[0] for node in self.graph.node if node.op_type == "Relu"}
        found, done = [], set()
        for node in self.graph.node:
            result = node.output[0]
            if result in done:
                continue
            if node.op_type in ("Conv", "Gemm") and self.uses[result] == 1 and result in relus:
                node.output[0] = relus[result]
                done.add(relus[result])
                found.append((node, "relu"))
            else:
                found.append((node, "linear"))
        return found

    def emit(self, step: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.out.steps.append({"step": step, "inputs": inputs, "output": output, **attributes})

    def constant(self, name: str, value: Array) -> str:
        self.out.constants[name] = np.ascontiguousarray(value, np.float32)
        return name

    def weight(self, node: onnx.NodeProto, index: int) -> Array:
        """An input that must be a constant."""
        if node.input[index] not in self.weights:
            raise self.unknown(node, f"{node.input[index]!r} is no constant")
        return self.weights[node.input[index]]

    def operand(self, name: str, rank: int) -> str:
        """A tensor's name; a constant is broadcast to ``rank`` and laid out first."""
        if name not in self.weights:
            return name
        value = self.weights[name].reshape(
            (1,) * (rank - self.weights[name].ndim) + self.weights[name].shape
        )
        return self.constant(f"{name}/{rank}", value.transpose(_TO_NHWC) if rank == 4 else value)

    def node(self, node: onnx.NodeProto, activation: str) -> None:
        kind, output = node.op_type, node.output[0]
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        x = node.input[0] if node.input else ""
        rank = len(self.shapes.get(output, []))
        if kind in _PLAIN:
            self.emit(_PLAIN[kind], [self.operand(name, rank) for name in node.input], output)
        elif kind == "Conv" and rank == 4:
            self.convolution(node, attrs, activation)
        elif kind in ("MaxPool", "AveragePool") and not attrs.get("ceil_mode"):
            pads = attrs.get("pads", [0] * 4)
            if kind == "AveragePool" and any(pads) and attrs.get("count_include_pad"):
                raise self.unknown(node, "padding that counts")
            step = "max_pool" if kind == "MaxPool" else "avg_pool"
            strides = attrs.get("strides", [1, 1])
            self.emit(step, [x], output, size=attrs["kernel_shape"], strides=strides, pad=_pad(pads))
        elif kind == "GlobalAveragePool":
            self.emit("mean", [x], output)
        elif kind == "BatchNormalization":
            scale, shift, mean, variance = (self.weight(node, i) for i in range(1, 5))
            factor = scale / np.sqrt(variance + attrs.get("epsilon", 1e-5))
            self.emit("mul", [x, self.constant(f"{output}/factor", factor)], f"{output}/scaled")
            term = self.constant(f"{output}/term", shift - mean * factor)
            self.emit("add", [f"{output}/scaled", term], output)
        elif kind == "Gemm" and not attrs.get("transA"):
            weights = self.weight(node, 1) * np.float32(attrs.get("alpha", 1.0))
            operands = [x, self.constant(f"{output}/w", weights.T if attrs.get("transB") else weights)]
            if len(node.input) > 2:
                bias = self.weight(node, 2) * np.float32(attrs.get("beta", 1.0))
                operands.append(self.constant(f"{output}/b", bias.reshape(-1)))
            self.emit("matmul", operands, output, activation=activation)
        elif kind == "Softmax" and self.normalises_last(attrs.get("axis", -1), self.shapes[x]):
            self.emit("softmax", [x], output)
        elif kind == "Concat":
            axis = attrs["axis"] % rank
            axis = _TO_NHWC.index(axis) if rank == 4 else axis
            self.emit("concat", [self.operand(name, rank) for name in node.input], output, axis=axis)
        elif kind in ("Flatten", "Reshape", "Squeeze", "Dropout", "Identity"):
            self.reshape(x, output)
        else:
            raise self.unknown(node, f"its attributes {attrs}" if attrs else "it")

    def convolution(self, node: onnx.NodeProto, attrs: dict[str, Any], activation: str) -> None:
        weights = self.weight(node, 1)
        output, groups, channels = node.output[0], attrs.get("group", 1), self.shapes[node.input[0]][1]
        if groups not in (1, channels):
            raise self.unknown(node, f"{groups} groups")
        if groups == 1:
            step, filters = "conv2d", weights.transpose(2, 3, 1, 0)
        else:
            step, (_, _, height, width) = "depthwise", weights.shape
            filters = weights.reshape(channels, -1, height, width).transpose(2, 3, 0, 1)
        operands = [node.input[0], self.constant(f"{output}/w", filters)]
        if len(node.input) > 2:
            operands.append(self.constant(f"{output}/b", self.weight(node, 2)))
        self.emit(
            step,
            operands,
            output,
            strides=attrs.get("strides", [1, 1]),
            pad=_pad(attrs.get("pads", [0] * 4)),
            dilations=attrs.get("dilations", [1, 1]),
            activation=activation,
        )

    @staticmethod
    def normalises_last(axis: int, shape: list[int]) -> bool:
        """Whether a softmax is over what lies last: rows of a matrix, channels of a single pixel."""
        return axis in (-1, 1) and (len(shape) == 2 or (axis == 1 and shape[2:] == [1, 1]))

    def reshape(self, x: str, output: str) -> None:
        before, after = self.shapes[x], self.shapes[output]
        if len(before) == 4 and before[2:] != [1, 1]:
            self.emit("transpose", [x], f"{output}/nchw", perm=_TO_NCHW)
            x = f"{output}/nchw"
        if len(after) == 4:
            self.emit("reshape", [x], f"{output}/shaped", shape=after)
            self.emit("transpose", [f"{output}/shaped"], output, perm=_TO_NHWC)
        else:
            self.emit("reshape", [x], output, shape=after)

    def bury(self) -> None:
        """Tell every step which tensors nobody needs after it."""
        last = {
            name: i for i, step in enumerate(self.out.steps) for name in [step["output"], *step["inputs"]]
        }
        kept = {*self.out.constants, *dict(self.out.outputs)}
        for i, step in enumerate(self.out.steps):
            names = dict.fromkeys([step["output"], *step["inputs"]])
            step["dead"] = [name for name in names if last[name] == i and name not in kept]

    @staticmethod
    def unknown(node: onnx.NodeProto, what: str) -> UnsupportedOperatorError:
        return UnsupportedOperatorError(
            f"tfjs-wasm: no translation of {node.op_type} {node.name!r}: {what}."
        )


def _pad(pads: list[int]) -> list[list[int]]:
    """ONNX's ``[top, left, bottom, right]`` as TensorFlow.js's four pairs."""
    top, left, bottom, right = pads
    return [[0, 0], [top, bottom], [left, right], [0, 0]]
