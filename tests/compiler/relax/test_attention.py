"""Attention as one kernel, against numpy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import model

TARGETS = ("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "native")
Arrays = dict[str, np.ndarray]


def attention(
    outer: tuple[int, ...], rows: int, length: int, size: int, width: int, mask: str = "add", seed: int = 0
) -> tuple[onnx.ModelProto, Arrays, np.ndarray]:
    """A model of attention, its feeds, and what it must give."""
    rng = np.random.default_rng(seed)
    shapes = {"q": (*outer, rows, size), "k": (*outer, size, length), "v": (*outer, length, width)}
    feeds = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    scale = np.float32(np.sqrt(size))
    nodes = [helper.make_node("MatMul", ["q", "k"], ["p"]), helper.make_node("Div", ["p", "scale"], ["s"])]
    scores = feeds["q"].astype(float) @ feeds["k"] / scale
    if mask == "add":
        feeds["mask"] = np.where(rng.random((rows, length)) < 0.3, np.float32(-1e30), np.float32(0))
        nodes.append(helper.make_node("Add", ["mask", "s"], ["m"]))
        scores = scores + feeds["mask"]
    elif mask == "where":
        feeds["mask"] = rng.random((length,)) < 0.8
        feeds["mask"][0] = True
        nodes.append(helper.make_node("Where", ["mask", "s", "least"], ["m"]))
        scores = np.where(feeds["mask"], scores, -1e30)
    else:
        nodes.append(helper.make_node("Neg", ["s"], ["m"]))
        scores = -scores
    nodes += [
        helper.make_node("Softmax", ["m"], ["w"], axis=-1),
        helper.make_node("MatMul", ["w", "v"], ["y"]),
    ]
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    expected = powers / powers.sum(-1, keepdims=True) @ feeds["v"]
    constants = {"scale": scale, "least": np.float32(-1e30)}
    return model(nodes, feeds, ["y"], constants), feeds, expected


def rules(artifact: wg.Artifact) -> set[str]:
    return {step.rule for step in artifact.manifest.steps}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mask", ["add", "where", "neg"])
def test_it_is_one_kernel_and_right(mask: str, target: str) -> None:
    proto, feeds, expected = attention((2, 3), 16, 24, 8, 16, mask)
    artifact = wg.compile(proto, target=target)
    with wg.load(artifact) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-5)
    assert "attention" in rules(artifact)
    assert "row-reduction" not in rules(artifact)
    assert artifact.manifest.ops_slow == artifact.manifest.ops_fallback == 0


def test_with_threads_it_stays_three_kernels() -> None:
    """Threads would share the arrays in which a chunk of scores is held."""
    proto, feeds, expected = attention((2, 3), 16, 24, 8, 16)
    artifact = wg.compile(proto, target="wasm32-simd128-threads")
    with wg.load(artifact, threads=2) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-5)
    assert "attention" not in rules(artifact)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 20),
    st.sampled_from(["add", "where", "neg"]),
    st.sampled_from(["wasm32-simd128", "native"]),
)
def test_any_sizes(
    outer: tuple[int, ...], rows: int, length: int, size: int, width: int, mask: str, target: str
) -> None:
    proto, feeds, expected = attention(outer, rows, length, size, width, mask)
    artifact = wg.compile(proto, target=target)
    with wg.load(artifact) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-5)
    assert artifact.manifest.ops_fallback == 0


@pytest.mark.parametrize("rows", [128, 127, 130])
def test_chunks_of_long_rows(rows: int) -> None:
    """A chunk of whole tiles, all rows as one chunk, and a number of rows that is no power of two."""
    proto, feeds, expected = attention((2,), rows, 512, 8, 8)
    artifact = wg.compile(proto)
    with wg.load(artifact) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-5)
    assert "attention" in rules(artifact)
    held = artifact.manifest.arena_bytes
    assert held < 4 * 2 * rows * 512 * 2  # two matrices of scores


def test_scores_that_something_else_uses_are_not_hidden() -> None:
    proto, feeds, expected = attention((2,), 8, 8, 8, 8)
    proto.graph.output.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2, 8, 8]))
    artifact = wg.compile(proto)
    with wg.load(artifact) as session:
        found = session.run(feeds)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["w"].sum(-1), np.ones((2, 8)), rtol=1e-5)
    assert "attention" not in rules(artifact)


def test_a_row_that_is_masked_with_infinities_is_nan_as_onnxruntime_s() -> None:
    proto, feeds, _ = attention((1,), 4, 8, 8, 8)
    feeds["mask"][2] = -np.inf
    with wg.load(wg.compile(proto)) as session:
        found = session.run(feeds)["y"]
    assert np.isnan(found[0, 2]).all()
    assert np.isfinite(found[0, [0, 1, 3]]).all()
