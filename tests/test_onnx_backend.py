"""The ONNX backend, and a fixed sample of ONNX's own tests: a case that passed must go on passing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import wasmgraph.onnx_backend as backend
from tests.conftest import model_of
from trials.conformance import RESULTS, TARGETS, Worker, cases, run_cases
from wasmgraph.errors import FeedError, ModelError, UnsupportedOperatorError, UsageError

RELU = helper.make_node("Relu", ["x"], ["y"])
X = np.array([[-1, 2, -3]], np.float32)


@pytest.mark.parametrize("device", ["CPU", "CPU:0", "wasm32", "native"])
def test_a_node_on_every_device(device: str) -> None:
    assert backend.supports_device(device)
    (y,) = backend.run_node(RELU, [X], device)
    np.testing.assert_array_equal(y, np.maximum(X, 0))


def test_a_device_that_is_none() -> None:
    assert not backend.supports_device("CUDA")
    with pytest.raises(UsageError, match=r"no device 'CUDA'; there are CPU, .*wasm32-simd128"):
        backend.prepare(model_of([RELU], {"x": [1, 3]}, ["y"]), "CUDA")


def test_a_model_is_compiled_once_for_each_shape() -> None:
    prepared = backend.prepare(model_of([RELU], {"x": ["n", 3]}, ["y"]))
    for rows in (1, 2, 1):
        x = np.repeat(X, rows, axis=0)
        outputs = prepared.run([x])
        np.testing.assert_array_equal(outputs.y, np.maximum(x, 0))
    assert len(prepared._sessions) == 2
    prepared.close()
    assert not prepared._sessions


def test_what_decides_a_shape_is_compiled_in() -> None:
    graph = helper.make_graph(
        [helper.make_node("Tile", ["x", "n"], ["y"])],
        "tile",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("n", onnx.TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["m"])],
    )
    prepared = backend.prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert prepared.static == {"n"}
    x = np.array([1, 2], np.float32)
    for times in (3, 1):
        (y,) = prepared.run({"x": x, "n": np.array([times])})
        np.testing.assert_array_equal(y, np.tile(x, times))
    prepared.close()


def test_which_models_are_compatible() -> None:
    assert backend.is_compatible(model_of([RELU], {"x": [1]}, ["y"]))
    random = helper.make_node("RandomNormalLike", ["x"], ["y"])
    assert not backend.is_compatible(model_of([random], {"x": [1]}, ["y"]))
    assert not backend.is_compatible(model_of([RELU], {"x": [1]}, ["y"]), "CUDA")
    text = model_of([helper.make_node("Identity", ["x"], ["y"])], {"x": [1]}, ["y"])
    for value in (text.graph.input[0], text.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.STRING
    assert not backend.is_compatible(text)


def test_bad_models_and_inputs() -> None:
    with pytest.raises(ModelError):
        backend.prepare(model_of([helper.make_node("Relu", ["x", "x"], ["y"])], {"x": [1]}, ["y"]))
    prepared = backend.prepare(model_of([RELU], {"x": [1, 3]}, ["y"]))
    with pytest.raises(FeedError, match="2 inputs are given; the model takes x"):
        prepared.run([X, X])
    with pytest.raises(ModelError, match="'x' is a list; inputs must be tensors"):
        prepared.run({"x": [X]})
    with pytest.raises(UnsupportedOperatorError):
        backend.run_node(helper.make_node("RandomUniformLike", ["x"], ["y"]), [X])


def test_a_size_within_the_graph_may_be_larger_than_its_outputs() -> None:
    nodes = [
        helper.make_node("Range", ["zero", "n", "one"], ["all"]),
        helper.make_node("ReduceSum", ["all"], ["y"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    kind = onnx.TensorProto.INT64
    constants = [onnx.numpy_helper.from_array(np.array(v), name) for v, name in ((0, "zero"), (1, "one"))]
    graph = helper.make_graph(nodes, "sum", [value("n", kind, [])], [value("y", kind, [])], constants)
    prepared = backend.prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    for n in (10, 3):
        assert prepared.run([np.array(n)])[0] == n * (n - 1) // 2


def _sample() -> list[str]:
    """For each operator the first case that passed on every target, as committed."""
    table = json.loads(RESULTS.read_text())["cases"]
    found: dict[str, str] = {}
    for name, case in table.items():
        if case["counts"] and all(case[target][0] == "passed" for target in TARGETS):
            found.setdefault(case["operator"], name)
    return sorted(found.values())


def test_a_case_of_each_operator_still_passes() -> None:
    names = set(_sample())
    wanted = [case for case in cases() if f"{case.category}/{case.name}" in names]
    assert len(wanted) == len(names) > 100
    failed = {
        case.name: outcome
        for case, outcome in run_cases("wasm32-simd128", wanted, 2)
        if outcome["outcome"] != "passed"
    }
    assert not failed


def test_a_worker_that_dies_is_said_to_and_started_again(tmp_path: Path) -> None:
    relu = next(case for case in cases() if case.name == "test_relu_cpu")
    worker = Worker("wasm32-simd128")
    try:
        assert worker.run(relu)["outcome"] == "passed"
        assert worker.child is not None
        worker.child.close()
        assert worker.run(relu)["outcome"] == "passed"
        absent = worker.run(relu.__class__("Node", "test_absent_cpu", "Relu", True))
        assert absent["outcome"] == "crashed"
        assert "test_absent_cpu" in absent["reason"]
        assert worker.run(relu)["outcome"] == "passed"
    finally:
        worker.close()
