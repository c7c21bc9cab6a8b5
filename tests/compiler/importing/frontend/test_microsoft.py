"""Operators of ``com.microsoft``, and of optimised files, against onnxruntime: many outputs in a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import Arrays, agrees, model
from wasmgraph.compiler.importing.frontend.registry import MICROSOFT
from wasmgraph.errors import IndexRangeError, ModelError, UnsupportedOperatorError

KINDS = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(int32)": TensorProto.INT32,
    "tensor(int8)": TensorProto.INT8,
    "tensor(uint8)": TensorProto.UINT8,
}
RNG = np.random.default_rng(11)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """A node of com.microsoft; ``-`` stands for an absent input or output."""
    names = [[name if name != "-" else "" for name in text.split()] for text in (inputs, outputs)]
    domain = "" if operator == "SimplifiedLayerNormalization" else MICROSOFT
    return helper.make_node(operator, *names, domain=domain, **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto], feeds: Arrays, constants: Arrays | None = None, opset: int = 21
) -> onnx.ModelProto:
    """A model of these nodes; all that they make is an output, float32 unless onnxruntime says otherwise."""
    outputs = [name for n in nodes for name in n.output if name]
    made = model(nodes, feeds, outputs, constants, {"": opset, MICROSOFT: 1})
    kinds = dict.fromkeys(outputs, "tensor(float)")
    with contextlib.suppress(Exception):  # it refuses what some tests are about
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        kinds = {value.name: value.type for value in session.get_outputs()}
    for value in made.graph.output:
        value.type.tensor_type.elem_type = KINDS[kinds[value.name]]
    return made


def same(
    nodes: Sequence[onnx.NodeProto],
    feeds: Arrays,
    constants: Arrays | None = None,
    target: str = "native",
    **tolerance: float,
) -> None:
    agrees(graph(nodes, feeds, constants), feeds, target, **tolerance)


def refused(nodes: Sequence[onnx.NodeProto], feeds: Arrays, match: str, error: type = ModelError) -> None:
    with pytest.raises(error, match=match):
        wg.compile(graph(nodes, feeds), target="native")


# --- products and convolutions ---


def test_fused_products_transpose_and_scale() -> None:
    feeds = {"a": draw(2, 3, 4, 5), "b": draw(2, 3, 5, 4), "v": draw(5)}
    nodes = [
        node("FusedMatMul", "a b", "plain"),
        node("FusedMatMul", "a a", "tb", transB=1, alpha=0.5),
        node("FusedMatMul", "a a", "ta", transA=1, alpha=-2.0),
        node("FusedMatMul", "a b", "both", transA=1, transB=1),
        node("FusedMatMul", "a v", "vector", alpha=3.0),
    ]
    same(nodes, feeds)
    square = {"a": draw(4, 3, 2, 5), "b": draw(3, 2, 5, 4)}
    same([node("FusedMatMul", "a b", "y", transBatchA=1, transA=0, alpha=2.0)], square)
    square = {"a": draw(4, 3, 2, 5), "b": draw(4, 3, 2, 6)}
    same([node("FusedMatMul", "a b", "y", transBatchA=1, transBatchB=1, transA=1)], square)


def test_fused_convolutions_add_and_activate() -> None:
    x = draw(1, 4, 6, 6)
    constants = {"w": draw(4, 4, 3, 3), "g": draw(4, 2, 3, 3), "b": draw(4), "z": draw(1, 4, 6, 6)}
    same_size = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    parameters = {"LeakyRelu": [0.3], "Clip": [-0.5, 0.75], "HardSigmoid": [0.3, 0.4]}
    nodes = [
        node(
            "FusedConv",
            "x w b",
            activation,
            activation=activation,
            **({"activation_params": parameters[activation]} if activation in parameters else {}),
            **same_size,
        )
        for activation in ("Relu", "Sigmoid", "Tanh", "HardSwish", *parameters)
    ]
    nodes += [
        node("FusedConv", "x w b z", "sum", activation="Relu", **same_size),
        node("FusedConv", "x g - z", "grouped", group=2, **same_size),
        node("FusedConv", "x w", "strided", strides=[2, 2], activation="Relu", auto_pad="SAME_UPPER"),
    ]
    same(nodes, {"x": x}, constants, atol=1e-4)


def test_fused_gemms_activate() -> None:
    feeds = {"a": draw(3, 5), "t": draw(5, 3)}
    constants = {"b": draw(5, 4), "u": draw(4, 5), "c": draw(4)}
    more = {
        "LeakyRelu": {"activation_alpha": 0.3},
        "Elu": {"activation_alpha": 0.7},
        "Celu": {"activation_alpha": 0.6},
        "HardSigmoid": {"activation_alpha": 0.3, "activation_beta": 0.4},
        "Selu": {"activation_alpha": 1.5, "activation_gamma": 1.1},
        "ThresholdedRelu": {"activation_alpha": 0.5},
    }
    names = ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", *more)
    nodes = [
        node("FusedGemm", "a b c", name, activation=name, alpha=0.5, beta=2.0, **more.get(name, {}))
        for name in names
    ]
    nodes += [
        node("FusedGemm", "t u", "turned", activation="Relu", transA=1, transB=1),
    ]
    same(nodes, feeds, constants)
    feeds = {"a": draw(3, 5), "b": draw(5, 4)}
    for name, error in (("Exp", UnsupportedOperatorError), ("Elu", ModelError)):
        refused([node("FusedGemm", "a b", "y", activation=name)], feeds, f"activation '?{name}", error)


# --- activations and normalisations ---


@pytest.mark.parametrize("target", ["native", "wasm32-simd128"])
def test_forms_of_gelu(target: str) -> None:
    x, bias = draw(3, 7, 8) * 3, draw(8)
    nodes = [
        node("Gelu", "x", "gelu"),
        node("BiasGelu", "x b", "bias_gelu"),
        node("FastGelu", "x", "fast"),
        node("FastGelu", "x b", "fast_bias"),
        node("QuickGelu", "x", "quick"),
        node("QuickGelu", "x", "slow", alpha=0.5),
    ]
    same(nodes, {"x": x}, {"b": bias}, target)


@pytest.mark.parametrize("skip", [(2, 3, 8), (1, 3, 8), (3, 8)])
def test_normalisations_of_sums(skip: tuple[int, ...]) -> None:
    feeds = {"x": draw(2, 3, 8), "s": draw(*skip)}
    constants = {"g": draw(8), "b": draw(8), "c": draw(8)}
    nodes = [
        node("SkipLayerNormalization", "x s g", "a"),
        node("SkipLayerNormalization", "x s g b", "b1 - - sum", epsilon=1e-3),
        node("SkipLayerNormalization", "x s g b c", "c1 - - sum_bias"),
        node("SkipLayerNormalization", "x s g - c", "d1"),
    ]
    simplified = [
        node("SkipSimplifiedLayerNormalization", "x s g", "e1"),
        node("SkipSimplifiedLayerNormalization", "x s g c", "f1 - - sum_simple", epsilon=1e-3),
    ]
    same(nodes + simplified, feeds, constants, atol=1e-4)


def test_simplified_layer_normalization_in_onnxs_domain() -> None:
    x = draw(2, 3, 8)
    nodes = [
        node("SimplifiedLayerNormalization", "x g", "y", epsilon=1e-3),
        node("SimplifiedLayerNormalization", "x h", "z", axis=1),
    ]
    same(nodes, {"x": x}, {"g": draw(8), "h": draw(3, 8)})
    refused([node("SimplifiedLayerNormalization", "x x", "y d")], {"x": draw(8)}, "output 'inv_std_var'")


def test_embeddings_and_their_mask() -> None:
    ids = RNG.integers(0, 9, (2, 5)).astype(np.int32)
    feeds = {
        "ids": ids,
        "kinds": RNG.integers(0, 2, (2, 5)).astype(np.int32),
        "mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
        "at": np.array([[4, 3, 2, 1, 0]], np.int32),
        "both": RNG.integers(0, 6, (2, 5)).astype(np.int32),
    }
    constants = {"w": draw(9, 8), "p": draw(6, 8), "k": draw(2, 8), "g": draw(8), "b": draw(8)}
    nodes = [
        node("EmbedLayerNormalization", "ids - w p - g b", "a1 a2"),
        node("EmbedLayerNormalization", "ids kinds w p k g b mask", "b1 b2 b3", epsilon=1e-3),
        node("EmbedLayerNormalization", "ids kinds w p k g b - at", "c1 - c3", mask_index_type=0),
        node("EmbedLayerNormalization", "ids kinds w p k g b mask both", "d1 d2", mask_index_type=1),
    ]
    same(nodes, feeds, constants, atol=1e-4)
    same(nodes[:2], {k: feeds[k] for k in ("ids", "kinds", "mask")}, constants, "wasm32-simd128", atol=1e-4)


@pytest.mark.parametrize("wrong", [9, -1, 2**31 - 1])
def test_words_beyond_the_vocabulary_are_index_errors(wrong: int) -> None:
    ids = np.array([[0, 8, 1]], np.int32)
    constants = {"w": draw(9, 8), "p": draw(6, 8), "g": draw(8), "b": draw(8)}
    embedding = node("EmbedLayerNormalization", "ids - w p - g b", "y counts")
    embedding.name = "embeddings"
    made = graph([embedding], {"ids": ids}, constants)
    with wg.load(wg.compile(made, target="native")) as session:
        session.run({"ids": ids})
        with pytest.raises(IndexRangeError, match=r"embeddings.*EmbedLayerNormalization.*from 0 to 8"):
            session.run({"ids": np.array([[0, wrong, 1]], np.int32)})


# --- quantised operators ---


def test_quantised_products() -> None:
    a, b = (RNG.integers(0, 256, shape).astype(np.uint8) for shape in ((3, 6), (6, 4)))
    s = (b.astype(np.int16) - 128).astype(np.int8)
    constants = {
        "b": b, "s": s, "bt": np.ascontiguousarray(b.T), "c": RNG.integers(-999, 999, (4,)).astype(np.int32),
        "as": np.float32(0.05), "bs": np.float32(0.03), "bv": np.abs(draw(4)) * 0.05 + 0.01,
        "z": np.uint8(121), "zs": np.int8(-3), "zv": np.array([1, 2, 3, 250], np.uint8),
        "ys": np.float32(0.7), "yz": np.uint8(100),
    }  # fmt: skip
    nodes = [
        node("QGemm", "a as z b bs z", "plain"),
        node("QGemm", "a as z s bs zs c", "signed", alpha=0.5),
        node("QGemm", "a as z b bv zv c ys yz", "columns", alpha=1.5),
        node("QGemm", "a as z bt bs z c ys yz", "turned", transB=1),
        node("QGemm", "at as z b bs z", "turned_left", transA=1),
    ]
    feeds = {"a": a, "at": np.ascontiguousarray(a.T)}
    same(nodes, feeds, constants)


def test_quantised_sums() -> None:
    feeds = {
        "a": RNG.integers(0, 256, (3, 40)).astype(np.uint8),
        "b": RNG.integers(0, 256, 40).astype(np.uint8),
    }
    feeds["s"] = (feeds["a"].astype(np.int16) - 128).astype(np.int8)
    scales = {"x": np.float32(0.5), "y": np.float32(0.25), "z": np.float32(1.0)}
    zeros = {"p": np.uint8(100), "q": np.uint8(7), "m": np.int8(-20)}
    nodes = [
        node("QLinearAdd", "a x p b y q z p", "u"),
        node("QLinearAdd", "s x m s y m z m", "i"),
        node("QLinearAdd", "a x p b y q z", "left_out"),
    ]
    same(nodes, feeds, {**scales, **zeros}, rtol=0, atol=0)
    same(nodes[:1], {k: feeds[k] for k in "ab"}, {**zeros, "x": np.float32(0.123), "y": np.float32(0.0457),
         "z": np.float32(0.171)}, rtol=0, atol=1)  # fmt: skip


def test_products_that_quantise_first() -> None:
    x = draw(2, 3, 6)
    b = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
    constants = {
        "b": b, "u": (b.astype(np.int16) + 128).astype(np.uint8), "s": np.float32(0.02),
        "v": np.abs(draw(4)) * 0.01 + 0.01, "z": np.uint8(130), "zv": np.array([3, -2, 0, 7], np.int8), "c": draw(4),
    }  # fmt: skip
    nodes = [
        node("DynamicQuantizeMatMul", "x b s", "a"),
        node("DynamicQuantizeMatMul", "x u s z", "b1"),
        node("DynamicQuantizeMatMul", "x b v zv c", "c1"),
        node("DynamicQuantizeMatMul", "x b v - c", "d1"),
    ]
    same(nodes, {"x": x}, constants)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_of_few_bits(bits: int) -> None:
    rows, columns, block = 5, 40, 16
    blocks = -(-columns // block)
    packed_zeros = -(-blocks * bits // 8)
    constants = {
        "b": RNG.integers(0, 256, (rows, blocks, block * bits // 8)).astype(np.uint8),
        "s": np.abs(draw(rows * blocks)) * 0.1,
        "z": RNG.integers(0, 256, rows * packed_zeros).astype(np.uint8),
        "f": np.abs(draw(rows * blocks)) * 3,
        "c": draw(rows),
    }
    sizes = {"N": rows, "K": columns, "bits": bits, "block_size": block}
    nodes = [
        node("MatMulNBits", "x b s", "a", **sizes),
        node("MatMulNBits", "x b s z", "zeros", **sizes),
        node("MatMulNBits", "x b s z - c", "bias", accuracy_level=1, **sizes),
    ]
    if bits == 4:
        nodes.append(node("MatMulNBits", "x b s f", "floats", **sizes))
    same(nodes, {"x": draw(2, 3, columns)}, constants, atol=1e-4)
