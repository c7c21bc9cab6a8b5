"""Operators of ``com.microsoft``, and of optimised files, against onnxruntime: many outputs in a graph."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import Arrays, agrees, model, run, several
from wasmgraph.compiler.importing.frontend.converters.contributed import ATTRIBUTES
from wasmgraph.compiler.importing.frontend.registry import CONVERTERS, MICROSOFT
from wasmgraph.errors import IndexRangeError, ModelError, UnsupportedOperatorError
from wasmgraph.models import bert

KINDS = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(float16)": TensorProto.FLOAT16,
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
    """A model of these nodes; all that they make is an output, of the dtype that onnxruntime infers."""
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
    constants = {"t": np.array([4], np.int32), "u": np.zeros(1, np.uint8), "one": np.ones(1, np.float32)}
    with pytest.raises(error, match=match):
        wg.compile(graph(nodes, feeds, constants), target="native")


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


@pytest.mark.parametrize("batch", [(2,), (2, 6)])
def test_fused_products_of_every_layout(batch: tuple[int, ...]) -> None:
    nodes, feeds = [], {}
    for n, flags in enumerate(itertools.product((0, 1), repeat=4)):
        names = ("transA", "transBatchA", "transB", "transBatchB")
        for side, core, turned, moved in (("a", (3, 5), *flags[:2]), ("b", (5, 4), *flags[2:])):
            rows, columns = core[::-1] if turned else core
            shape = (rows, *batch, columns) if moved else (*batch, rows, columns)
            feeds[f"{side}{n}"] = draw(*shape)
        chosen = dict(zip(names, flags, strict=True))
        nodes.append(node("FusedMatMul", f"a{n} b{n}", f"y{n}", alpha=0.5, **chosen))
    same(nodes, feeds)


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
    # Seven bits: on processors without VNNI, onnxruntime's sums of two products of uint8 by int8 saturate.
    s = (b.astype(np.int16) // 2 - 64).astype(np.int8)
    constants = {
        "b": b, "s": s, "bt": np.ascontiguousarray(b.T), "c": RNG.integers(-999, 999, 4).astype(np.int32),
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


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantised_functions(dtype: str) -> None:
    """By float32 in between: a step is the most that onnxruntime's tables of them may be apart."""
    limits = np.iinfo(dtype)
    x, y = (RNG.integers(limits.min, limits.max + 1, (2, 3, 6, 6)).astype(dtype) for _ in range(2))
    constants = {
        "s": np.float32(0.031),
        "t": np.float32(0.017),
        "o": np.float32(0.05),
        "p": np.float32(1 / 256),
        "z": np.array(limits.min + 120, dtype),
        "w": np.array(limits.min + 9, dtype),
        "least": np.array(limits.min, dtype),
    }
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        node("QLinearMul", "x s z y t w o z", "product"),
        node("QLinearGlobalAveragePool", "x s z t w", "mean"),
        node("QLinearAveragePool", "x s z o z", "windows", **window),
        node("QLinearLeakyRelu", "x s z o w", "leaky", alpha=0.2),
        node("QLinearSigmoid", "x s z p least", "logistic"),
        node("QLinearSoftmax", "x s z p least", "shares", axis=-1, opset=13),
        node("QLinearConcat", "o z x s z y t w", "joined", axis=1),
        node("QLinearWhere", "c x s z y t w o z", "chosen"),
        node("QuantizeLinear", "f s z", "whole"),
        node("DequantizeLinear", "x s z", "numbers"),
    ]
    feeds = {"x": x, "y": y, "c": x > y, "f": draw(2, 5)}
    same(nodes, feeds, constants, rtol=1e-6, atol=1)


def test_products_of_integers_that_become_floats() -> None:
    a = RNG.integers(0, 256, (3, 6)).astype(np.uint8)
    b = RNG.integers(-64, 64, (6, 4)).astype(np.int8)
    constants = {
        "b": b,
        "s": np.float32(0.02),
        "t": np.abs(draw(4)),
        "z": np.uint8(7),
        "c": draw(4),
        "w": np.array([3, -2, 0, 7], np.int8),
    }
    nodes = [
        node("MatMulIntegerToFloat", "a b s s", "plain"),
        node("MatMulIntegerToFloat", "a b s t z w c", "columns"),
    ]
    same(nodes, {"a": a}, constants)


def test_products_that_quantise_first() -> None:
    x = draw(2, 3, 6)
    b = RNG.integers(-64, 64, (6, 4)).astype(np.int8)  # seven bits, as above
    constants = {
        "b": b, "u": (b.astype(np.int16) + 128).astype(np.uint8), "s": np.float32(0.02),
        "v": np.abs(draw(4)) * 0.01 + 0.01, "z": np.uint8(130), "zv": np.array([3, -2, 0, 7], np.int8),
        "c": draw(4),
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
        nodes.append(node("MatMulNBits", "x b s - groups", "grouped", **sizes))
        constants["groups"] = RNG.permutation(np.arange(columns) // block).astype(np.int32)
    same(nodes, {"x": draw(2, 3, columns)}, constants, atol=1e-4)


# --- attention ---

B, S, L, N, H, P = 2, 4, 5, 2, 8, 3  # batch, queries, keys, heads, their size, tokens in a cache
W = N * H


def integers(*values: object) -> np.ndarray:
    return np.array(values, np.int32)


def bits(*shape: int) -> np.ndarray:
    """A mask that allows each query its first key."""
    mask = RNG.integers(0, 2, shape).astype(np.int32)
    mask[..., 0] = 1
    return mask


def attention(inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return node("Attention", inputs, outputs, num_heads=N, **attributes)


def test_attention_over_its_masks_and_caches() -> None:
    feeds = {
        "x": draw(B, S, W), "past": draw(2, B, N, P, H), "of_keys": bits(B, S), "each": bits(B, S, S),
        "ends": integers(3, 2), "spans": integers(3, 4, 1, 0), "of_all": bits(B, S + P),
        "same": integers([1], [1]),
        "ends_past": integers(5, 6), "bias": draw(1, N, S, S), "bias1": draw(B, 1, S, S),
        "blocked": np.zeros((B, S, S), np.int32),
    }  # fmt: skip
    constants = {"w": draw(W, 3 * W), "b": draw(3 * W), "v": draw(W, 2 * W + 8), "c": draw(2 * W + 8)}
    nodes = [
        attention("x w b", "plain"),
        attention("x w", "without_bias"),
        attention("x w b ends", "y_ends"),
        attention("x w b spans", "y_spans"),
        attention("x w b of_keys", "y_of_keys", scale=0.3, mask_filter_value=-5.0),
        attention("x w b each", "y_each"),
        attention("x w b same", "y_same"),
        attention("x w b blocked", "y_blocked"),
        attention("x w b", "causal", unidirectional=1),
        attention("x w b of_keys", "causal_of_keys", unidirectional=1),
        attention("x w b each", "causal_each", unidirectional=1, mask_filter_value=-2.0),
        attention("x w b spans", "causal_spans", unidirectional=1),
        attention("x w b", "p0 present0"),
        attention("x w b - past", "p1 present1"),
        attention("x w b of_all past", "p2 present2", unidirectional=1),
        attention("x w b ends_past past", "p3 present3"),
        attention("x w b - - bias", "y_bias"),
        attention("x w b of_keys - bias1", "y_bias1", unidirectional=1),
        attention("x v c", "y_sizes", qkv_hidden_sizes=[W, W, 8]),
    ]
    same(nodes, feeds, constants)


def multi_head(inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return node("MultiHeadAttention", inputs, outputs, num_heads=N, **attributes)


def test_multi_head_attention_over_its_inputs() -> None:
    feeds = {
        "q": draw(B, S, W), "k": draw(B, L, W), "v": draw(B, L, W), "narrow": draw(B, L, 8),
        "k4": draw(B, N, L, H), "v4": draw(B, N, L, H), "pk": draw(B, N, P, H), "pv": draw(B, N, P, H),
        "ends": integers(3, 5), "of_keys": bits(B, L), "each": bits(B, S, L), "of_all": bits(B, L + P),
        "each_all": bits(B, S, L + P), "bias": draw(1, N, S, L), "bias_all": draw(B, 1, S, L + P),
    }  # fmt: skip
    constants = {"b": draw(3 * W), "c": draw(2 * W + 8)}
    nodes = [
        multi_head("q k v", "plain"),
        multi_head("q k v b", "y_b", scale=0.2),
        multi_head("q k narrow c", "y_narrow"),
        multi_head("q k4 v4", "y_split"),
        multi_head("q k v - ends", "y_ends"),
        multi_head("q k v b of_keys", "y_of_keys", mask_filter_value=-3.0),
        multi_head("q k v - each", "y_each"),
        multi_head("q q q", "causal", unidirectional=1),
        multi_head("q q q - - - pk pv", "causal_past a0 c0", unidirectional=1),
        multi_head("q k v - - - pk pv", "y_past a1 c1"),
        multi_head("q k v b of_all bias_all pk pv", "y_all a2 c2"),
        multi_head("q k v - each_all - pk pv", "y_each_all a3 c3"),
        multi_head("q k v", "y_present a4 c4"),
        multi_head("q k v - - bias", "y_bias"),
        multi_head("q k v - of_keys bias", "y_scores - - scores"),
    ]
    same(nodes, feeds, constants)


def test_packed_queries_keys_and_values() -> None:
    """onnxruntime has no kernel for these: compare with what it makes of them unpacked."""
    q, k, v = draw(B, S, W), draw(B, S, W), draw(B, S, W)
    parts = [t.reshape(B, S, N, H) for t in (q, k, v)]
    feeds = {"q": q, "kv": np.stack(parts[1:], 3), "qkv": np.stack(parts, 3)}
    bias = draw(3 * W)
    nodes = [multi_head("qkv", "a"), multi_head("q kv", "b1"), multi_head("qkv - - b", "c1")]
    found = run(graph(nodes, feeds, {"b": bias}), feeds, "native")
    separate = {"q": q, "k": k, "v": v}
    made = graph([multi_head("q k v", "a"), multi_head("q k v b", "c1")], separate, {"b": bias})
    a, c = onnxruntime.InferenceSession(made.SerializeToString()).run(None, separate)
    for name, wanted in (("a", a), ("b1", a), ("c1", c)):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


G, HEADS, SIZE = 2, 4, 16  # heads of keys, heads of queries, their size


def grouped(inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return node("GroupQueryAttention", inputs, outputs, num_heads=HEADS, kv_num_heads=G, **attributes)


def grouped_feeds(batch: int, length: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    width = G * SIZE
    return {
        "q": draw(batch, length, HEADS * SIZE),
        "k": draw(batch, length, width),
        "v": draw(batch, length, width),
        **more,
    }


ROTATION = {"cos": draw(32, 8), "sin": draw(32, 8)}


def test_group_query_attention_of_a_prompt() -> None:
    feeds = grouped_feeds(
        2, 4, qkv=draw(2, 4, (HEADS + 2 * G) * SIZE), bias=draw(1, 4, 4, 4), bias1=draw(2, 1, 4, 4),
        ids=RNG.integers(0, 9, (2, 4)), n=integers(3, 3), pk=draw(2, G, 8, SIZE), pv=draw(2, G, 8, SIZE),
    )  # fmt: skip
    constants = {"t": integers(4), "sink": draw(4), **ROTATION}
    plain = "q k v - - n t"
    nodes = [
        grouped(plain, "plain a0 b0"),
        grouped("qkv - - - - n t", "packed a1 b1"),
        grouped("qkv - - - - n t cos sin", "packed_turned a2 b2", do_rotary=1),
        grouped(f"{plain} cos sin", "turned a3 b3", do_rotary=1),
        grouped(f"{plain} cos sin", "neighbours a4 b4", do_rotary=1, rotary_interleaved=1),
        grouped(f"{plain} cos sin ids", "placed a5 b5", do_rotary=1),
        grouped(plain, "window1", local_window_size=1),
        grouped(plain, "window3", local_window_size=3),
        grouped(plain, "capped", softcap=0.7, scale=0.3),
        grouped(plain, "smooth", smooth_softmax=1),
        grouped(f"{plain} - - - - sink", "sunk"),
        grouped(f"{plain} - - - bias", "biased"),
        grouped(f"{plain} - - - bias1", "biased_capped", softcap=0.7),
        grouped(plain, "both_ways", causal=0),
        grouped("q k v pk pv n t", "roomy"),
    ]
    same(nodes, feeds, constants, atol=1e-4)


@pytest.mark.parametrize("target", ["native", "wasm32-simd128"])
@pytest.mark.parametrize("room", [5, 8])
def test_group_query_attention_of_a_token(room: int, target: str) -> None:
    """Sequences of different lengths. What a cache has beyond a sequence's tokens is undefined."""
    feeds = grouped_feeds(2, 1, n=integers(5, 3), pk=draw(2, G, room, SIZE), pv=draw(2, G, room, SIZE))
    feeds |= {"bias": draw(2, 1, 1, 6), "ids": RNG.integers(0, 9, (2, 1))}
    plain = "q k v pk pv n t"
    nodes = [
        grouped(plain, "y keys values"),
        grouped(f"{plain} cos sin", "turned turned_keys turned_values", do_rotary=1),
        grouped(f"{plain} cos sin ids", "placed a0 b0", do_rotary=1),
        grouped(f"{plain} - - - bias", "biased a1 b1", local_window_size=3),
        grouped(plain, "both_ways a2 b2", causal=0),
    ]
    made = graph(nodes, feeds, {"t": integers(6), **ROTATION})
    session = onnxruntime.InferenceSession(made.SerializeToString())
    expected = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
    found = run(made, feeds, target)
    for name, wanted in expected.items():
        for n, count in enumerate((6, 4)):
            rows = np.s_[n, :, :count] if wanted.ndim == 4 else np.s_[n]
            np.testing.assert_allclose(found[name][rows], wanted[rows], rtol=1e-4, atol=1e-5, err_msg=name)


@several
@given(data=st.data())
def test_group_query_attention_of_any_options(data: st.DataObject) -> None:
    def pick(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    length, cache = pick(1, 2, 4), pick("none", "grows", "has room")
    before = {"none": 0, "grows": pick(1, 3), "has room": pick(6, 9)}[cache]
    total = pick(length, before) if cache == "has room" else before + length
    batch = pick(1, 3) if length in (1, total) else 1
    last = data.draw(st.lists(st.integers(length - 1, total - 1), min_size=batch, max_size=batch))
    last = last if length == 1 else [total - 1] * batch
    heads, size, packed = G * pick(1, 2, 3), pick(8, 16), pick(False, True)
    feeds = {"q": draw(batch, length, (heads + 2 * G * packed) * size), "n": integers(*last)}
    names = ["q", "-", "-", "-", "-", "n", "t", "-", "-", "-", "-", "-"]
    if not packed:
        feeds |= {name: draw(batch, length, G * size) for name in "kv"}
        names[1:3] = ["k", "v"]
    if before:
        feeds |= {name: draw(batch, G, before, size) for name in ("pk", "pv")}
        names[3:5] = ["pk", "pv"]
    options: dict[str, Any] = {"softcap": pick(0.0, 0.9), "scale": pick(0.0, 0.4)}
    if size == 16 and pick(False, True):
        options |= {"do_rotary": 1, "rotary_interleaved": pick(0, 1)}
        names[7:9] = ["cos", "sin"]
    if pick(False, True):
        feeds["bias"] = draw(pick(1, batch), pick(1, heads), length, total)
        names[10] = "bias"
    options |= pick({}, {"smooth_softmax": 1}, {"causal": 0}, {"local_window_size": pick(1, 2, 5)})
    used = node(
        "GroupQueryAttention", " ".join(names), "y keys values", num_heads=heads, kv_num_heads=G, **options
    )
    made = graph([used], feeds, {"t": integers(total), **ROTATION})
    expected = onnxruntime.InferenceSession(made.SerializeToString()).run(None, feeds)
    found = run(made, feeds, "native")
    for name, wanted in zip(("y", "keys", "values"), expected, strict=True):
        for n, count in enumerate(last):
            rows = np.s_[n, :, : count + 1] if wanted.ndim == 4 else np.s_[n]
            np.testing.assert_allclose(found[name][rows], wanted[rows], rtol=1e-3, atol=1e-4, err_msg=name)


def test_group_query_attention_of_a_later_part_of_a_prompt() -> None:
    feeds = grouped_feeds(1, 3, n=integers(5), pk=draw(1, G, 3, SIZE), pv=draw(1, G, 3, SIZE))
    plain = "q k v pk pv n t"
    nodes = [
        grouped(plain, "y keys values"),
        grouped(f"{plain} cos sin", "turned turned_keys turned_values", do_rotary=1),
    ]
    same(nodes, feeds, {"t": integers(6), **ROTATION}, atol=1e-4)


def test_heads_are_normalised_before_they_are_turned() -> None:
    """onnxruntime has no kernel for this: compare with what it makes of normalised ones."""
    feeds = grouped_feeds(1, 3, n=integers(2))
    weights = {"wq": draw(SIZE), "wk": draw(SIZE)}
    constants = {"t": integers(3), **ROTATION}
    turned = grouped(
        "q k v - - n t cos sin - - - - - wq wk", "y keys values", do_rotary=1, k_norm_epsilon=1e-3
    )
    found = run(graph([turned], feeds, {**constants, **weights}), feeds, "native")
    normal = dict(feeds)
    for name, epsilon in (("q", 1e-6), ("k", 1e-3)):
        heads = feeds[name].reshape(1, 3, -1, SIZE)
        mean = np.mean(heads * heads, axis=-1, keepdims=True)
        normal[name] = (heads / np.sqrt(mean + epsilon) * weights[f"w{name}"]).reshape(1, 3, -1)
    made = graph([grouped("q k v - - n t cos sin", "y keys values", do_rotary=1)], feeds, constants)
    y, keys, _ = onnxruntime.InferenceSession(made.SerializeToString()).run(None, normal)
    np.testing.assert_allclose(found["y"], y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["keys"], keys, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [6, 9])
def test_tokens_that_a_cache_has_no_room_for_are_index_errors(length: int) -> None:
    feeds = grouped_feeds(1, 1, n=integers(5), pk=draw(1, G, 5, SIZE), pv=draw(1, G, 5, SIZE))
    made = graph([grouped("q k v pk pv n t", "y keys values")], feeds, {"t": integers(6)})
    with wg.load(wg.compile(made, target="native")) as session:
        session.run(feeds)
        with pytest.raises(IndexRangeError, match="GroupQueryAttention"):
            session.run({**feeds, "n": integers(length)})


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embeddings(interleaved: int) -> None:
    feeds = {
        "x": draw(2, 3, 16),
        "x4": draw(2, 4, 3, 8),
        "each": np.array([[0, 1, 5], [2, 0, 3]]),
        "first": np.array([2]),
    }
    constants = {"c": draw(6, 4), "s": draw(6, 4), "c2": draw(6, 2), "s2": draw(6, 2)}
    some = {"interleaved": interleaved, "rotary_embedding_dim": 4}
    nodes = [
        node("RotaryEmbedding", "x each c s", "a", interleaved=interleaved),
        node("RotaryEmbedding", "x first c s", "b", interleaved=interleaved, num_heads=2),
        node("RotaryEmbedding", "x4 each c s", "c4", interleaved=interleaved),
        node("RotaryEmbedding", "x each c2 s2", "d", num_heads=2, **some),
        node("RotaryEmbedding", "x4 first c2 s2", "e", num_heads=4, **some),
    ]
    same(nodes, feeds, constants)
    made = graph(nodes[:1], {k: feeds[k] for k in ("x", "each")}, constants)
    with (
        wg.load(wg.compile(made, target="native")) as session,
        pytest.raises(IndexRangeError, match="Rotary"),
    ):
        session.run({"x": feeds["x"], "each": feeds["each"] + 1})


def test_caches_before_the_first_step_are_empty() -> None:
    feeds = {"x": draw(B, S, W), "past": draw(2, B, N, 0, H), "p": draw(B, N, 0, H)}
    nodes = [
        attention("x w b - past", "a1 a2", unidirectional=1),
        multi_head("x x x - - - p p", "b1 b2 b3", unidirectional=1),
    ]
    same(nodes, feeds, {"w": draw(W, 3 * W), "b": draw(3 * W)})
    feeds = grouped_feeds(2, 4, n=integers(3, 3), p=draw(2, G, 0, SIZE))
    same([grouped("q k v p p n t", "y keys values")], feeds, {"t": integers(4)})


def test_empty_batches() -> None:
    feeds = {"x": draw(0, S, W), "ids": np.zeros((0, 3), np.int32)}
    constants = {"w": draw(W, 3 * W), "b": draw(3 * W), "g": draw(W)}
    nodes = [
        attention("x w b", "a"),
        multi_head("x x x", "m"),
        node("Gelu", "x", "gelu"),
        node("SkipLayerNormalization", "x x g", "normal"),
        node("SkipSimplifiedLayerNormalization", "x x g", "simple"),
        node("FusedMatMul", "x w", "product"),
        node("EmbedLayerNormalization", "ids - w w - b b", "e n"),
    ]
    same(nodes, feeds, constants)


def test_half_precision_is_a_storage_format() -> None:
    feeds = {"x": draw(B, S, W).astype(np.float16)}
    nodes = [node("Gelu", "x", "y"), node("SkipLayerNormalization", "x x g", "z"), multi_head("x x x", "a")]
    found = run(graph(nodes, feeds, {"g": np.ones(W, np.float16)}), feeds, "native")
    single = {"x": feeds["x"].astype(np.float32)}
    made = graph(nodes, single, {"g": np.ones(W, np.float32)})
    expected = onnxruntime.InferenceSession(made.SerializeToString()).run(None, single)
    for name, wanted in zip("yza", expected, strict=True):
        assert found[name].dtype == np.float16
        np.testing.assert_allclose(found[name].astype(np.float32), wanted, rtol=2e-3, atol=2e-3)


# --- what is refused ---


FITTING = {
    "x": draw(2, 4, 16), "w": draw(16, 48), "b": draw(48), "g": draw(16), "c": draw(9, 4),
    "n": integers(3, 3), "tt": integers(4), "p": np.zeros((2, 4), np.int64), "k4": draw(2, 2, 4, 8),
    "past": draw(2, 2, 2, 3, 8), "g3": draw(2, 3, 16), "g64": draw(2, 4, 64), "g32": draw(2, 4, 32),
    "m": np.ones((2, 9), np.int32), "m1": np.ones(8, np.int32), "m4": draw(2, 2, 4, 9),
    "mm": np.ones((2, 1, 9, 9), np.int32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (attention("x w b m", "y"), r"makes 'y' \(Attention\): its 'mask_index' has the shape \[2, 9\]"),
        (node("Attention", "x w b", "y", num_heads=3), "3 heads do not divide the width 16"),
        (attention("x w b", "y", qkv_hidden_sizes=[8, 8, 8]), "do not make up weights of 48"),
        (multi_head("x x x - m", "y"), "'key_padding_mask' has the shape"),
        (node("MultiHeadAttention", "x x x", "y", num_heads=3), "3 heads do not divide the width 16"),
        (multi_head("x x x - - m4", "y"), "'attention_bias' has the shape"),
        (
            node("GroupQueryAttention", "x x x - - n t", "y", num_heads=3, kv_num_heads=2),
            "no multiple of 2",
        ),
        (node("GroupQueryAttention", "x x x - - n t", "y", num_heads=3, kv_num_heads=3), "do not divide"),
        (node("RotaryEmbedding", "x p c c", "y", num_heads=3), "3 heads do not divide the width 16"),
        (node("RotaryEmbedding", "x p c c", "y", num_heads=4), "rotates 4 elements"),
        (node("SkipLayerNormalization", "x g g", "y"), r"adds \[16\] to \[2, 4, 16\]"),
    ],
)
def test_shapes_that_do_not_fit_are_errors_of_the_model(made: onnx.NodeProto, match: str) -> None:
    refused([made], FITTING, match)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (attention("x w b", "y", do_rotary=1), "Attention with do_rotary = 1"),
        (attention("x w b - past - n", "y z"), "'past_sequence_length'"),
        (attention("x w b mm", "y"), r"'mask_index' of the shape \[2, 1, 9, 9\]"),
        (attention("x w b m1", "y"), r"'mask_index' of the shape \[8\]"),
        (multi_head("x k4 k4 b", "y"), "'bias', and keys that are already split"),
        (multi_head("x x x - m1", "y"), "cumulated lengths"),
        (multi_head("x x x - - - k4 k4 n", "y k v"), "'past_sequence_length'"),
        (multi_head("x g3 g3", "y", unidirectional=1), "unidirectional, of 4 queries and 3 keys"),
        (grouped("g64 g32 g32 - - n t", "y keys values qk", qk_output=1), "qk_output = 1"),
        (grouped("g64 g32 g32 - - n t", "y", sliding_window_cache=1), "sliding_window_cache = 1"),
        (grouped("g64 g32 g32 - - n t", "y", k_quant_type="PER_TENSOR"), "k_quant_type = 'PER_TENSOR'"),
        (grouped("g64 g32 g32 - - n t - - - - - g", "y"), "'k_scale'"),
        (grouped("g64 g32 g32 - - n t - - - - - - - - - n", "y"), "'query_seqlens'"),
        (grouped("g64 g32 g32 - - n tt", "y"), "'total_sequence_length' from data"),
        (node("RotaryEmbedding", "x p c c", "y", scale=2.0), "scale = 2.0"),
        (node("RotaryEmbedding", "x p c c", "y", is_packed_batching=1), "is_packed_batching = 1"),
        (node("SkipLayerNormalization", "x x g", "y mean"), "the output 'mean'"),
        (node("MatMulNBits", "x u one", "y", N=3, K=16, block_size=16), "packed weights of the shape"),
        (node("Gelu", "x", "y", secret=1), "the attribute 'secret'"),
    ],
)
def test_options_that_are_not_built_are_refused(made: onnx.NodeProto, match: str) -> None:
    feeds = {
        **FITTING,
        "g3": draw(2, 3, 16),
        "g64": draw(2, 4, 64),
        "g32": draw(2, 4, 32),
        "tt": integers(4),
    }
    refused([made], feeds, match, UnsupportedOperatorError)


def test_operators_of_another_optimizer_level_are_refused_with_a_remedy() -> None:
    x = {"x": draw(1, 8, 4, 4)}
    reorder = helper.make_node("ReorderInput", ["x"], ["y"], domain=f"{MICROSOFT}.nchwc")
    made = model([reorder], x, ["y"], opsets={f"{MICROSOFT}.nchwc": 1})
    with pytest.raises(UnsupportedOperatorError, match="compile the model as it was before"):
        wg.compile(made)


def test_no_input_or_attribute_is_overlooked() -> None:
    """Against the schemas of the onnxruntime that is installed."""
    schemas = {s.name: s for s in get_all_operator_schema() if s.domain in (MICROSOFT, "")}
    for operator, attributes in ATTRIBUTES.items():
        found = schemas[operator]
        domain = "" if operator == "SimplifiedLayerNormalization" else MICROSOFT
        parameters = list(inspect.signature(CONVERTERS[domain, operator]).parameters)[1:]
        assert (operator, len(parameters)) == (operator, len(found.inputs))
        assert (operator, set(found.attributes) - attributes) == (operator, set())


# --- whole files ---


def test_the_domain_need_not_be_imported() -> None:
    x = {"x": draw(3, 4)}
    made = graph([node("Gelu", "x", "y")], x)
    agrees(made, x, "native")
    kept = [o for o in made.opset_import if o.domain != MICROSOFT]
    del made.opset_import[:]
    made.opset_import.extend(kept)
    agrees(made, x, "native")


def test_functions_and_subgraphs_need_not_import_the_domain() -> None:
    x, g = draw(2, 4), draw(4)
    norm, gelu = node("SimplifiedLayerNormalization", "x g", "t"), node("Gelu", "t", "y")
    function = helper.make_function(
        "own", "F", ["x", "g"], ["y"], [norm, gelu], [helper.make_opsetid("", 17)]
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xyt"]
    call = helper.make_node("F", ["x", "g"], ["y"], domain="own")
    branches = [
        helper.make_graph([norm], "b", [], values[2:]),
        helper.make_graph([gelu], "b", [], values[1:2]),
    ]
    branches[1].node[0].input[0] = "x"
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for nodes, inputs, feeds in (
        ([call], values[:1], {"x": x}),
        ([choice], [values[0], condition], {"x": x, "c": np.array(True)}),
        ([choice], [values[0], condition], {"x": x, "c": np.array(False)}),
    ):
        constants = [numpy_helper.from_array(g, "g")]
        whole = helper.make_graph(nodes, "test", inputs, values[1:2], constants)
        functions = [function] if nodes == [call] else []
        made = helper.make_model(whole, opset_imports=imports, functions=functions, ir_version=9)
        if functions:  # onnxruntime does not survive this
            plain = graph([norm, gelu], feeds, {"g": g})
            expected = onnxruntime.InferenceSession(plain.SerializeToString()).run(["y"], feeds)[0]
            np.testing.assert_allclose(run(made, feeds, "native")["y"], expected, rtol=1e-4, atol=1e-5)
        else:
            agrees(made, feeds, "native")


def test_nodes_of_constants_are_computed_while_compiling() -> None:
    constants = {"c": draw(3, 4), "b": draw(4)}
    nodes = [node("BiasGelu", "c b", "d"), helper.make_node("Mul", ["x", "d"], ["y"])]
    same(nodes, {"x": draw(3, 4)}, constants)


def test_a_model_that_onnxruntime_optimised(tmp_path: Path) -> None:
    """At the extended level it writes operators of its own."""
    config = bert.Config(32, 2, 4, 64, 50, 16)
    plain = bert.build(config, bert.random_weights(config), "tiny", {})
    shape = dict.fromkeys(bert.INPUTS, (2, 8))
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3])
    feeds = {bert.IDS: RNG.integers(0, 50, (2, 8)), bert.MASK: mask, bert.KINDS: np.zeros((2, 8), np.int64)}
    session = onnxruntime.InferenceSession(plain.SerializeToString())
    (expected,) = session.run([bert.EMBEDDING], feeds)
    written: set[str] = set()
    for bound in (False, True):
        for value in plain.graph.input if bound else ():
            for dim, size in zip(value.type.tensor_type.shape.dim, shape[value.name], strict=True):
                dim.dim_value = size
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(plain.SerializeToString(), options)
        optimised = onnx.load(tmp_path / "optimised.onnx")
        written |= {n.op_type for n in optimised.graph.node if n.domain == MICROSOFT}
        with wg.load(wg.compile(tmp_path / "optimised.onnx", shapes=shape)) as session:
            found = session.run(feeds)[bert.EMBEDDING]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert {"FusedMatMul", "BiasGelu", "SkipLayerNormalization"} <= written


def quantised(constants: dict[str, np.ndarray], name: str, inputs: int, outputs: int) -> dict[str, int]:
    """Weights of 4 bits under that name; the attributes of the product that reads them."""
    constants[f"{name}.b"] = RNG.integers(0, 256, (outputs, inputs // 16, 8)).astype(np.uint8)
    constants[f"{name}.s"] = (np.abs(draw(outputs * inputs // 16)) * 0.05).astype(np.float32)
    return {"N": outputs, "K": inputs, "bits": 4, "block_size": 16}


@pytest.mark.parametrize(("new", "past"), [(4, 0), (1, 4), (2, 4)])
def test_a_decoder_of_few_bits(new: int, past: int) -> None:
    """A layer as onnxruntime's builders write it: the lengths are computed from a mask and its shape."""
    width, inner, words = HEADS * SIZE, 96, 40
    constants = {
        "table": draw(words, width), "g1": draw(width), "g2": draw(width), "g3": draw(width),
        "one": np.array([1], np.int64), **ROTATION,
    }  # fmt: skip
    sizes = {
        name: quantised(constants, name, rows, columns)
        for name, rows, columns in (
            ("qkv", width, (HEADS + 2 * G) * SIZE), ("o", width, width),
            ("gate", width, inner), ("up", width, inner), ("down", inner, width), ("head", width, words),
        )
    }  # fmt: skip

    def product(source: str, name: str) -> onnx.NodeProto:
        return node("MatMulNBits", f"{source} {name}.b {name}.s", f"{name}.y", **sizes[name])

    def plain(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(operator, inputs.split(), [output], **attributes)

    nodes = [
        plain("Gather", "table ids", "x"),
        plain("ReduceSum", "mask one", "counts", keepdims=0),
        plain("Sub", "counts one", "last"),
        plain("Cast", "last", "last32", to=TensorProto.INT32),
        plain("Shape", "mask", "total", start=1, end=2),
        plain("Cast", "total", "total32", to=TensorProto.INT32),
        node("SimplifiedLayerNormalization", "x g1", "n1"),
        product("n1", "qkv"),
        grouped("qkv.y - - pk pv last32 total32 cos sin", "a keys values", do_rotary=1),
        product("a", "o"),
        node("SkipSimplifiedLayerNormalization", "x o.y g2", "n2 - - x2", epsilon=1e-5),
        product("n2", "gate"),
        product("n2", "up"),
        plain("Sigmoid", "gate.y", "share"),
        plain("Mul", "gate.y share", "swish"),
        plain("Mul", "swish up.y", "gated"),
        product("gated", "down"),
        node("SkipSimplifiedLayerNormalization", "x2 down.y g3", "n3", epsilon=1e-5),
        product("n3", "head"),
    ]
    feeds = {
        "ids": RNG.integers(0, words, (1, new)),
        "mask": np.ones((1, past + new), np.int64),
        "pk": draw(1, G, past, SIZE),
        "pv": draw(1, G, past, SIZE),
    }
    made = model(nodes, feeds, ["head.y", "keys", "values"], constants, {MICROSOFT: 1})
    for value in made.graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    agrees(made, feeds, "native" if past else "wasm32-simd128", atol=1e-3)
