"""The JavaScript peers agree with onnxruntime, or say why they cannot run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import wasmgraph as wg
from bench.peers import PEERS
from bench.tfjs import translate
from wasmgraph.errors import MissingDependencyError, ModelError, UnsupportedOperatorError, UsageError
from wasmgraph.runtimes import LoadOptions

NODE_MODULES = Path(__file__).parent.parent / "bench/js/node_modules"
needs_peers = pytest.mark.skipif(
    not (shutil.which("node") and NODE_MODULES.exists()),
    reason="the JavaScript peers are not installed: npm ci --prefix bench/js",
)


def model(
    path: Path, nodes: Sequence[onnx.NodeProto], shapes: dict[str, list[int]], **weights: np.ndarray
) -> Path:
    """A model of inputs ``x``, outputs ``y`` and random weights of the given shapes."""
    graph = make_graph(
        nodes,
        "peer",
        [make_tensor_value_info("x", onnx.TensorProto.FLOAT, shapes["x"])],
        [make_tensor_value_info("y", onnx.TensorProto.FLOAT, shapes["y"])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(0.1, 1, shape).astype(np.float32)


def agree(path: Path, peer: str) -> None:
    with PEERS[peer].load(path, LoadOptions()) as web, wg.load(path) as native:
        assert web.inputs == native.inputs
        assert web.outputs == native.outputs
        rng = np.random.default_rng(7)
        feeds = {s.name: rng.normal(0, 1, s.shape).astype(np.float32) for s in web.inputs}
        for _ in range(2):
            expected, found = native.run(feeds), web.run(feeds)
            for name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


@needs_peers
@pytest.mark.parametrize("peer", PEERS)
def test_agrees_with_onnxruntime(small_onnx: Path, peer: str) -> None:
    agree(small_onnx, peer)
    assert "V8" in PEERS[peer].version()


CASES: dict[str, tuple[list[onnx.NodeProto], list[int], list[int], dict[str, Any]]] = {
    "depthwise": (
        [make_node("Conv", ["x", "w", "b"], ["y"], group=6, pads=[1, 0, 2, 1], strides=[2, 1])],
        [1, 6, 9, 8],
        [1, 6, 5, 7],
        {"w": random(6, 1, 3, 3), "b": random(6)},
    ),
    "batch_norm_after_concat": (
        [
            make_node("Relu", ["x"], ["r"]),
            make_node("Concat", ["x", "r"], ["c"], axis=1),
            make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["y"]),
        ],
        [1, 3, 4, 5],
        [1, 6, 4, 5],
        {"s": random(6), "o": random(6), "m": random(6), "v": random(6)},
    ),
    "flatten_of_pixels": (
        [
            make_node("AveragePool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            make_node("Flatten", ["p"], ["f"]),
            make_node("Gemm", ["f", "w", "b"], ["g"], transB=1, alpha=0.5),
            make_node("Relu", ["g"], ["h"]),
            make_node("Softmax", ["h"], ["y"]),
        ],
        [1, 3, 4, 6],
        [1, 5],
        {"w": random(5, 18), "b": random(5)},
    ),
    "residual": (
        [
            make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            make_node("Add", ["c", "x"], ["a"]),
            make_node("Relu", ["a"], ["r"]),
            make_node("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            make_node("Sigmoid", ["m"], ["t"]),
            make_node("GlobalAveragePool", ["t"], ["y"]),
        ],
        [1, 4, 6, 6],
        [1, 4, 1, 1],
        {"w": random(4, 4, 3, 3)},
    ),
}


@needs_peers
@pytest.mark.parametrize("case", CASES)
def test_tfjs_translations(case: str, tmp_path: Path) -> None:
    nodes, x, y, weights = CASES[case]
    agree(model(tmp_path / "m.onnx", nodes, {"x": x, "y": y}, **weights), "tfjs-wasm")


def test_batch_norm_bias_and_activation_are_in_the_convolution(small_onnx: Path) -> None:
    steps = [step["step"] for step in translate(small_onnx).steps]
    assert "conv2d" in steps
    assert "mul" not in steps
    assert steps.count("relu") == 1  # after the residual sum


def test_what_tfjs_has_no_translation_for_is_named(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", [make_node("Erf", ["x"], ["y"])], {"x": [2], "y": [2]})
    with pytest.raises(UnsupportedOperatorError, match="no translation of Erf"):
        translate(path)


def test_a_missing_peer_says_how_to_get_it(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.peers._JS", tmp_path)
    for peer in PEERS.values():
        with pytest.raises(MissingDependencyError, match="npm ci --prefix bench/js"):
            peer.load(small_onnx, LoadOptions())


@needs_peers
@pytest.mark.parametrize("peer", PEERS)
def test_what_a_peer_cannot_load_is_its_failure(tmp_path: Path, peer: str) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="broken"):
        PEERS[peer].load(tmp_path / "broken.onnx", LoadOptions())


@needs_peers
def test_tfjs_has_one_thread(small_onnx: Path) -> None:
    with pytest.raises(UsageError, match="one thread"):
        PEERS["tfjs-wasm"].load(small_onnx, LoadOptions(threads=2))


@needs_peers
def test_onnxruntime_web_is_fed_integers_of_any_alignment(tmp_path: Path) -> None:
    tensor = onnx.TensorProto
    kinds = {"x": tensor.FLOAT, "n": tensor.INT64, "i": tensor.INT32}
    nodes = [make_node("Cast", [name], [f"{name}f"], to=tensor.FLOAT) for name in kinds]
    nodes.append(make_node("Sum", [f"{name}f" for name in kinds], ["y"]))
    graph = make_graph(
        nodes,
        "peer",
        [make_tensor_value_info(name, kind, [3]) for name, kind in kinds.items()],
        [make_tensor_value_info("y", tensor.FLOAT, [3])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    feeds = {
        "x": np.array([0.5, 1, 2], np.float32),
        "n": np.array([-7, 0, 2**20], np.int64),
        "i": np.array([3, -3, 1], np.int32),
    }
    with PEERS["ort-web"].load(path, LoadOptions()) as web:
        np.testing.assert_array_equal(web.run(feeds)["y"], sum(feeds.values()).astype(np.float32))
