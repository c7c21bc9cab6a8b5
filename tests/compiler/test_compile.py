from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import wasmgraph as wg
from tests.conftest import TARGETS, model_of
from wasmgraph.compiler import CompileLog
from wasmgraph.errors import TargetError, UsageError
from wasmgraph.tensors import TensorSpec


@pytest.mark.parametrize("target", TARGETS)
def test_agrees_with_onnxruntime(
    target: str, small_onnx: Path, small_artifact, small_input: np.ndarray
) -> None:
    with wg.load(small_artifact(target)) as ours, wg.load(small_onnx) as theirs:
        assert ours.inputs == theirs.inputs == (TensorSpec("x", (1, 3, 19, 17), "float32"),)
        assert ours.outputs == theirs.outputs
        expected = theirs.run({"x": small_input})
        for name, array in ours.run({"x": small_input}).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)


def test_the_manifest_tells_what_was_compiled(small_artifact) -> None:
    manifest = wg.Artifact.open(small_artifact("wasm32-simd128")).manifest
    operators = [step.operator for step in manifest.steps]
    assert "conv2d+add+relu" in operators
    assert manifest.weights == "unknown"
    assert manifest.features == ("simd128",)
    assert manifest.ops_scheduled + manifest.ops_fallback == len(manifest.steps)
    assert {step.rule for step in manifest.steps} >= {"direct-conv2d", "reduction", "dense"}


def test_padding_and_residual_cost_no_step_of_their_own(small_artifact) -> None:
    operators = [s.operator for s in wg.Artifact.open(small_artifact("wasm32")).manifest.steps]
    assert not [o for o in operators if o in ("pad", "add", "relu")]


def test_the_log_has_every_stage(small_onnx: Path) -> None:
    seen: list[str] = []
    log = CompileLog(observer=lambda stage: seen.append(stage.name))
    wg.compile(small_onnx, log=log)
    names = ["import", "transform", "schedule", "codegen", "plan", "link"]
    assert [stage.name for stage in log.stages] == names
    assert seen == [name for name in names for _ in range(2)]
    assert log.rules.total() > 0
    assert all(stage.outcome for stage in log.stages)


def test_keep_leaves_what_the_compiler_made(small_onnx: Path, tmp_path: Path) -> None:
    wg.compile(small_onnx, keep=tmp_path / "kept")
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    texts = {"graph.ll", "graph.wat", "machine-code.elf"}
    assert kept == {"graph.json", "graph.o", "graph.params", "libgraph_wasm32.a"} | texts
    plan = json.loads((tmp_path / "kept" / "graph.json").read_text())
    assert (tmp_path / "kept" / "graph.params").stat().st_size == plan["param_bytes"]
    listed = subprocess.run(
        [sys.executable, "-m", "ziglang", "ar", "t", str(tmp_path / "kept" / "libgraph_wasm32.a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.split() == ["graph.o", "entry.o"]


def test_compiling_twice_gives_the_same_bytes(small_onnx: Path) -> None:
    first, second = (wg.compile(small_onnx, target="wasm32").sha256 for _ in range(2))
    assert first == second


def test_other_weights_give_another_module(small_onnx: Path, tmp_path: Path) -> None:
    """Zig's cache once returned the old parameters: it does not see that an .incbin file changed."""
    model = onnx.load(small_onnx)
    before = wg.compile(model, target="wasm32")
    weight = next(t for t in model.graph.initializer if t.name == "b3")
    weight.raw_data = np.full(21, 7, np.float32).tobytes()
    after = wg.compile(model, target="wasm32")
    x = {"x": np.zeros((1, 3, 19, 17), np.float32)}
    with wg.load(before) as one, wg.load(after) as other:
        assert np.abs(one.run(x)["logits"] - other.run(x)["logits"]).max() > 1


def test_unknown_target_and_params(small_onnx: Path) -> None:
    with pytest.raises(TargetError, match="unknown target 'wasm64'; there are wasm32,"):
        wg.compile(small_onnx, target="wasm64")
    with pytest.raises(UsageError, match="params='elsewhere' is not supported"):
        wg.compile(small_onnx, params="elsewhere")


def test_graphs_without_kernels() -> None:
    """An output that is the input, and one that is a constant, are copied."""
    constant = helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0])
    nodes = [
        constant,
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Identity", ["c"], ["z"]),
    ]
    for target in ("wasm32", "native"):
        with wg.load(wg.compile(model_of(nodes, {"x": [3]}, ["y", "z"]), target=target)) as session:
            out = session.run({"x": np.array([4, 5, 6], np.float32)})
        np.testing.assert_array_equal(out["y"], [4, 5, 6])
        np.testing.assert_array_equal(out["z"], [1, 2])


def test_integer_tensors() -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "integers",
        [helper.make_tensor_value_info(n, onnx.TensorProto.INT64, [5]) for n in "ab"],
        [helper.make_tensor_value_info("c", onnx.TensorProto.INT64, [5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    a = np.array([1, -2, 3, 1 << 40, 5])
    with wg.load(wg.compile(model)) as session:
        np.testing.assert_array_equal(session.run({"a": a, "b": a})["c"], 2 * a)


def test_a_channel_shuffle_keeps_its_convolutions_scheduled(tmp_path: Path) -> None:
    """TVM's layout pass knows no layout for the 5-D tensor and once ended the compile."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(0, 1, (6, 4, 1, 1)).astype(np.float32),
        "w2": rng.normal(0, 1, (5, 6, 3, 3)).astype(np.float32),
        "five": np.array([1, 2, 3, 6, 6]),
        "four": np.array([1, 6, 6, 6]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"]),
        helper.make_node("Reshape", ["c", "five"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "four"], ["s"]),
        helper.make_node("Conv", ["s", "w2"], ["y"], pads=[1] * 4),
    ]
    model = model_of(nodes, {"x": [1, 4, 6, 6]}, ["y"], constants)
    onnx.save(model, tmp_path / "shuffle.onnx")
    artifact = wg.compile(model)
    assert not [s for s in artifact.manifest.steps if "conv2d" in s.operator and s.rule == "fallback"]
    x = {"x": rng.normal(0, 1, (1, 4, 6, 6)).astype(np.float32)}
    with wg.load(artifact) as ours, wg.load(tmp_path / "shuffle.onnx") as theirs:
        np.testing.assert_allclose(ours.run(x)["y"], theirs.run(x)["y"], rtol=1e-4, atol=1e-4)
