"""Tensors without elements, in and out, on every runtime: what a cache is before the first step."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import wasmgraph as wg
from tests.conftest import model_of, wasmtime_program

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scalar": ({"target": "wasm32"}, {}),
    "node": ({}, {"runtime": "node"}),
    "untrusted": ({}, {"untrusted": True}),
    "native": ({"target": "native"}, {}),
    "threads": ({"target": "wasm32-simd128-threads"}, {"threads": 2}),
    "parameter file": ({"params": "wasi"}, {}),
}


def model() -> Any:
    """Beside what is empty alone, what is joined to it, multiplied over it and summed over it."""
    nodes = [
        helper.make_node("Concat", ["cache", "new"], ["grown"], axis=1),
        helper.make_node("MatMul", ["cache", "w"], ["none"]),
        helper.make_node("ReduceSum", ["cache"], ["sum"], keepdims=0),
        helper.make_node("Identity", ["cache"], ["same"]),
        helper.make_node("MatMul", ["new", "w"], ["one"]),
    ]
    inputs = {"cache": [2, 0, 3], "new": [2, 1, 3]}
    return model_of(
        nodes, inputs, ["none", "grown", "sum", "same", "one"], {"w": np.ones((3, 5), np.float32)}
    )


NEW = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
CACHE = np.zeros((2, 0, 3), np.float32)


@pytest.mark.parametrize("way", WAYS)
def test_every_runtime_takes_and_gives_them(way: str) -> None:
    compiled, loaded = WAYS[way]
    with wg.load(wg.compile(model(), **compiled), **loaded) as session:
        for _ in range(2):
            found = session.run({"cache": CACHE, "new": NEW})
            np.testing.assert_array_equal(found["grown"], NEW)
            np.testing.assert_array_equal(found["one"], NEW @ np.ones((3, 5), np.float32))
            assert found["none"].shape == (2, 0, 5)
            assert found["same"].shape == CACHE.shape
            assert found["sum"] == 0


@pytest.mark.parametrize("target", ["wasm32", "native"])
def test_a_graph_of_nothing_else(target: str) -> None:
    made = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [0, 3]}, ["y"])
    artifact = wg.compile(made, target=target)
    assert artifact.manifest.arena_bytes == artifact.manifest.param_bytes == 0
    with wg.load(artifact) as session:
        assert session.run(np.zeros((0, 3), np.float32))["y"].shape == (0, 3)


def test_a_command_reads_and_writes_only_what_is_there(tmp_path: Path) -> None:
    path = wg.compile(model(), target="wasm32", command=True).save(tmp_path / "graph.wasm")
    done = subprocess.run(
        [wasmtime_program(), "run", path], input=NEW.tobytes(), capture_output=True, check=True
    )
    expected = (NEW, np.float32(0), NEW @ np.ones((3, 5), np.float32))
    assert done.stdout == b"".join(array.tobytes() for array in expected)
