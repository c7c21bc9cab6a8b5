"""Attention, rotary embeddings, RMS normalisation and Swish of ONNX's own domain, over their options."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import Arrays, agrees, model
from wasmgraph.errors import IndexRangeError, ModelError

RNG = np.random.default_rng(23)
B, HEADS, GROUPS, S, L, P, SIZE = 2, 4, 2, 3, 5, 2, 8


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def bits(*shape: int) -> np.ndarray:
    """A mask that allows each query its first key."""
    mask = RNG.integers(0, 2, shape).astype(bool)
    mask[..., 0] = True
    return mask


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    names = [[name if name != "-" else "" for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(operator, *names, **attributes)


def same(nodes: list[onnx.NodeProto], feeds: Arrays, opset: int, target: str = "native") -> None:
    """All that the nodes make agrees with onnxruntime."""
    outputs = [name for n in nodes for name in n.output if name]
    agrees(model(nodes, feeds, outputs, opsets={"": opset}), feeds, target)


def test_attention_over_its_options() -> None:
    feeds = {
        "q": draw(B, HEADS, S, SIZE), "k": draw(B, HEADS, L, SIZE), "v": draw(B, HEADS, L, 4),
        "kg": draw(B, GROUPS, L, SIZE), "vg": draw(B, GROUPS, L, 4), "q3": draw(B, S, HEADS * SIZE),
        "k3": draw(B, L, GROUPS * SIZE), "v3": draw(B, L, GROUPS * 4), "pk": draw(B, GROUPS, P, SIZE),
        "pv": draw(B, GROUPS, P, 4), "m2": draw(S, L), "m3": draw(1, S, L), "m4": draw(B, HEADS, S, L),
        "b2": bits(S, L), "b4": bits(B, 1, S, L), "all": bits(S, P + L),
    }  # fmt: skip
    three = {"q_num_heads": HEADS, "kv_num_heads": GROUPS}
    nodes = [
        node("Attention", "q k v", "plain"),
        node("Attention", "q k v", "scaled", scale=0.3, softcap=0.8),
        node("Attention", "q k v", "causal", is_causal=1),
        node("Attention", "q kg vg", "grouped"),
        node("Attention", "q3 k3 v3", "flat", **three),
        node("Attention", "q k v m2", "y_m2"),
        node("Attention", "q k v m3", "y_m3", softcap=0.8),
        node("Attention", "q k v m4", "y_m4", is_causal=1),
        node("Attention", "q k v b2", "y_b2"),
        node("Attention", "q kg vg b4", "y_b4"),
        node("Attention", "q kg vg - pk pv", "y_past k_past v_past", is_causal=1),
        node("Attention", "q3 k3 v3 all pk pv", "flat_past k_flat v_flat", **three),
        *(
            node("Attention", "q k v m2", f"y{mode} - - qk{mode}", qk_matmul_output_mode=mode, softcap=0.8)
            for mode in range(4)
        ),
    ]
    same(nodes, feeds, 23)
    chosen = {name: feeds[name] for name in ("q3", "k3", "v3", "all", "pk", "pv")}
    same(nodes[11:12], chosen, 24, "wasm32-simd128")


def test_attention_to_the_keys_that_a_sequence_has() -> None:
    feeds = {
        "q": draw(B, HEADS, S, SIZE), "k": draw(B, GROUPS, L, SIZE), "v": draw(B, GROUPS, L, 4),
        "n": np.array([4, 5]), "m": draw(S, L),
    }  # fmt: skip
    nodes = [
        node("Attention", "q k v - - - n", "y"),
        node("Attention", "q k v m - - n", "masked"),
        node("Attention", "q k v - - - n", "causal", is_causal=1),
    ]
    same(nodes, feeds, 24)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embeddings(interleaved: int) -> None:
    feeds = {
        "x": draw(B, HEADS, S, SIZE),
        "flat": draw(B, S, HEADS * SIZE),
        "at": np.array([[0, 3, 5], [1, 1, 4]]),
        "c": draw(6, 4), "s": draw(6, 4), "c2": draw(6, 2), "s2": draw(6, 2),
        "cb": draw(B, S, 4), "sb": draw(B, S, 4),
    }  # fmt: skip
    some = {"interleaved": interleaved, "rotary_embedding_dim": 4}
    nodes = [
        node("RotaryEmbedding", "x c s at", "a", interleaved=interleaved),
        node("RotaryEmbedding", "x cb sb", "b", interleaved=interleaved),
        node("RotaryEmbedding", "x c2 s2 at", "d", **some),
        node("RotaryEmbedding", "flat c s at", "e", interleaved=interleaved, num_heads=HEADS),
        node("RotaryEmbedding", "flat c2 s2 at", "f", num_heads=HEADS, **some),
    ]
    same(nodes, feeds, 23)
    used = {name: feeds[name] for name in ("x", "c", "s", "at")}
    with wg.load(wg.compile(model(nodes[:1], used, ["a"], opsets={"": 23}), target="native")) as session:
        with pytest.raises(IndexRangeError, match="RotaryEmbedding"):
            session.run({**used, "at": used["at"] + 1})


def test_rms_normalisation_and_swish() -> None:
    feeds = {"x": draw(2, 3, 4, 5), "s": draw(5), "s2": draw(4, 5), "s3": draw(3, 4, 5)}
    nodes = [
        node("RMSNormalization", "x s", "a"),
        node("RMSNormalization", "x s", "b", epsilon=0.1),
        node("RMSNormalization", "x s2", "c", axis=2),
        node("RMSNormalization", "x s3", "d", axis=-3, stash_type=1),
        node("RMSNormalization", "s2 s2", "all", axis=0),
        node("RMSNormalization", "s s", "vector"),
        node("Swish", "x", "e"),
        node("Swish", "x", "f", alpha=0.5),
    ]
    same(nodes, feeds, 24)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (
            node("Attention", "q k v m", "y"),
            r"Attention\): its mask of the shape \[3, 6\] .* \[2, 4, 3, 5\]",
        ),
        (node("Attention", "q k v m3", "y"), r"its mask of the shape \[3, 3, 5\] does not broadcast"),
        (
            node("Attention", "f f f", "y", q_num_heads=5, kv_num_heads=5),
            "5 heads do not divide the width 16",
        ),
        (node("Attention", "q k3 k3", "y"), "4 heads are no multiple of 3"),
        (node("Attention", "q f f", "y"), "all have 3 dimensions or all 4"),
        (node("RotaryEmbedding", "f c c", "y", num_heads=5), "5 heads do not divide the width 16"),
    ],
)
@pytest.mark.parametrize("opset", [23, 24])
def test_shapes_that_do_not_fit_are_errors_of_the_model(
    opset: int, made: onnx.NodeProto, match: str
) -> None:
    feeds = {
        "q": draw(B, HEADS, S, SIZE), "k": draw(B, HEADS, L, SIZE), "v": draw(B, HEADS, L, SIZE),
        "m": draw(S, 6), "m3": draw(3, S, L), "f": draw(B, S, 16), "k3": draw(B, 3, L, SIZE),
        "c": draw(B, S, 4),
    }  # fmt: skip
    whole = model([made], feeds, ["y"], opsets={"": opset})
    whole.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    with pytest.raises(ModelError, match=match):
        wg.compile(whole, target="native")
