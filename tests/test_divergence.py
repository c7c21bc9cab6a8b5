"""Finding the first node that diverges: one whose converter is wrong on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

import wasmgraph as wg
from tests.conftest import model_of
from wasmgraph.cli import main
from wasmgraph.compiler.importing.frontend import registry
from wasmgraph.divergence import compare_with_onnxruntime, difference
from wasmgraph.errors import FeedError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"], "first"),
        helper.make_node("Mul", ["a", "k"], ["b"], "second"),
        helper.make_node("Softplus", ["b"], ["c"], "third"),
        helper.make_node("Add", ["c", "x"], ["y"], "fourth"),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(model_of(nodes, {"x": [2, 3]}, ["y"], {"k": np.full((3,), 2, np.float32)}), path)
    return path


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.CONVERTERS, ("", "Softplus"), lambda op, x: op("Relu", x))


def test_a_model_that_agrees(model: Path, tmp_path: Path) -> None:
    found = compare_with_onnxruntime(model, "wasm32-simd128", {}, {}, 1e-5, tmp_path / "d.onnx")
    assert found.divergence is None
    assert set(found.outputs) == {"y"}
    assert found.outputs["y"] < 1e-6
    assert not (tmp_path / "d.onnx").exists()


def test_given_arrays_meet_the_check_that_a_sessions_do(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    arguments = ["diff", str(model), "--input", f"x={tmp_path / 'x.npy'}", "-o", str(tmp_path / "d.onnx")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "expected x: float32[2, 3], got x: float64[2, 3]" in done.stderr
    assert "--no-strict" in done.stderr
    assert CliRunner().invoke(main, [*arguments, "--no-strict"]).exit_code == 0


@pytest.mark.usefixtures("wrong")
def test_the_node_is_found_and_saved_with_its_inputs(model: Path, tmp_path: Path) -> None:
    saved = tmp_path / "d.onnx"
    found = compare_with_onnxruntime(model, "wasm32-simd128", {}, {}, 1e-3, saved).divergence
    assert found is not None
    assert (found.node, found.operator, found.output, found.alone) == ("third", "Softplus", "c", True)
    (statistics,) = found.inputs
    assert statistics.name == "b"
    assert 0 < statistics.least <= statistics.mean <= statistics.greatest < 2
    small = onnx.load(saved)
    assert [n.op_type for n in small.graph.node] == ["Softplus"]
    with np.load(saved.with_suffix(".npz")) as inputs, wg.load(saved) as session:
        assert (session.run(dict(inputs))["c"] > inputs["b"]).all()


@pytest.mark.usefixtures("wrong")
def test_operators_whose_types_onnx_does_not_infer(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[0].CopyFrom(helper.make_node("Gelu", ["x"], ["a"], "first", domain="com.microsoft"))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    del proto.graph.value_info[:]
    onnx.save(proto, model)
    found = compare_with_onnxruntime(model, "native", {}, {}, 1e-3, tmp_path / "d.onnx")
    assert found.divergence is not None
    assert found.divergence.node == "third"


@pytest.mark.usefixtures("wrong")
def test_a_fault_that_hides_when_all_is_shown_is_searched_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wasmgraph import divergence

    real = divergence._Search.differences

    def differences(self: object, proto: onnx.ModelProto, names: list[str]) -> dict[str, float]:
        return dict.fromkeys(names, 0.0) if len(names) > 1 else real(self, proto, names)

    monkeypatch.setattr(divergence._Search, "differences", differences)
    found = compare_with_onnxruntime(model, "wasm32", {}, {}, 1e-3, tmp_path / "d.onnx").divergence
    assert found is not None
    assert found.node == "third"
    assert found.difference > 1e-3


def test_an_input_that_is_none(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="called 'z'.*takes x: float32"):
        compare_with_onnxruntime(model, "wasm32", {}, {"z": np.zeros(1)}, 1e-3, tmp_path / "d.onnx")


@pytest.mark.usefixtures("wrong")
def test_on_the_command_line(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["diff", str(model), "-o", str(tmp_path / "d.onnx")])
    assert done.exit_code == 1, done.output
    assert "first divergence: Softplus third, output c" in done.output
    assert "input b: float32[2, 3]" in done.output
    as_json = CliRunner().invoke(main, ["diff", str(model), "--json", "-o", str(tmp_path / "d.onnx")])
    assert '"operator": "Softplus"' in as_json.stdout


def test_differences() -> None:
    one, inf, nan = np.ones(2), np.array([1, np.inf]), np.array([1, np.nan])
    assert difference(one, one) == difference(inf, inf) == difference(nan, nan) == 0
    assert difference(one * 3, one * 2) == 0.5
    assert difference(nan, one) == difference(inf, one) == difference(one, np.ones(3)) == float("inf")
    assert difference(np.zeros(0), np.zeros(0)) == 0
