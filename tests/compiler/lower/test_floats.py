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
