"""What floating point costs at its edges: the form of the code, not its speed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import model


@pytest.mark.parametrize(
    ("operator", "inputs", "expected"),
    [
        ("Relu", ["x"], {"f32x4.lt": 1, "v128.andnot": 1}),
        ("Clip", ["x", "low", "high"], {"f32x4.pmax": 1, "f32x4.pmin": 1}),
        ("Max", ["x", "y"], {"f32x4.pmax": 1, "f32x4.ne": 1, "v128.or": 1}),
    ],
)
def test_nan_costs_a_constant_limit_nothing_and_two_values_two_instructions(
    operator: str, inputs: list[str], expected: dict[str, int], tmp_path
) -> None:
    feeds = {name: np.zeros(4, np.float32) for name in ("x", "y") if name in inputs}
    limits = {"low": np.array(-1, np.float32), "high": np.array(3, np.float32)}
    used = {name: value for name, value in limits.items() if name in inputs}
    wg.compile(model([helper.make_node(operator, inputs, ["z"])], feeds, ["z"], used), keep=tmp_path)
    words = (tmp_path / "graph.wat").read_text().split()
    assert {word: words.count(word) for word in expected} == expected
    assert "f32x4.max" not in words
    assert "f32x4.min" not in words


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "wasm32-simd128-threads", "native"])
@pytest.mark.parametrize("kind", ["Max", "Tanh"])
def test_a_function_of_truth_values_compiles(target: str, kind: str) -> None:
    """TVM's generator of LLVM refused to name the vector of truth values that is cast."""
    nodes = [
        helper.make_node("Greater", ["x", "by"], ["g"]),
        helper.make_node("Cast", ["g"], ["c"], to=1),
        helper.make_node(kind, ["c", "least"][: 2 if kind == "Max" else 1], ["y"]),
    ]
    x = np.random.default_rng(0).normal(0, 1, (1, 13, 11, 5)).astype(np.float32)
    by, least = np.arange(5, dtype=np.float32) / 5, np.full(1, 0.5, np.float32)
    proto = model(nodes, {"x": x}, ["y"], {"by": by, "least": least})
    with wg.load(wg.compile(proto, target=target)) as session:
        found = session.run({"x": x})["y"]
    truth = (x > by).astype(np.float32)
    expected = np.maximum(truth, least) if kind == "Max" else np.tanh(truth)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
