"""Recurrent layers are one kernel with a loop over the steps. The converters test has more options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import agrees, model, run
from wasmgraph.compiler import CompileLog
from wasmgraph.models.recurrent import build

TARGETS = ("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "wasm32-simd128-threads", "native")
TARGETS += ("native-128",)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    ("hidden", "batch", "both"), [(20, 2, True), (37, 1, False), (3, 3, True), (5, 12, False)]
)
def test_every_target_is_right(kind, target: str, hidden: int, batch: int, both: bool) -> None:
    proto, log = build(kind, 9, 12, hidden, batch, both), CompileLog()
    x = np.random.default_rng(0).normal(0, 1, (9, batch, 12)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"input": x})
    artifact = wg.compile(proto, target=target, log=log)
    with wg.load(artifact, threads=2 if "threads" in target else 1) as session:
        np.testing.assert_allclose(session.run(x)["sequence"], expected, rtol=1e-4, atol=1e-5)
    assert log.rules["recurrent"] == 1
    assert not log.slow


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("hidden", "batch", "both", "kind", "per_channel"),
    [(20, 2, True, "QUInt8", False), (37, 1, False, "QInt8", True), (3, 3, True, "QInt8", False)],
)
def test_quantised_layers_are_onnxruntime_s(
    target: str, hidden: int, batch: int, both: bool, kind: str, per_channel: bool, tmp_path: Path
) -> None:
    """Seven bits: on processors without VNNI, onnxruntime's sums of two products saturate."""
    onnx.save(build("LSTM", 9, 12, hidden, batch, both), tmp_path / "layer.onnx")
    made = tmp_path / "quantised.onnx"
    quantize_dynamic(
        tmp_path / "layer.onnx",
        made,
        weight_type=QuantType[kind],
        per_channel=per_channel,
        reduce_range=True,
    )
    assert [node.op_type for node in onnx.load(made).graph.node] == ["DynamicQuantizeLSTM"]
    x = np.random.default_rng(0).normal(0, 1, (9, batch, 12)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads would quantise their rows apart
    (expected,) = onnxruntime.InferenceSession(made, options).run(None, {"input": x})
    log = CompileLog()
    artifact = wg.compile(made, target=target, log=log)
    with wg.load(artifact, threads=2 if "threads" in target else 1) as session:
        np.testing.assert_allclose(session.run(x)["sequence"], expected, rtol=1e-5, atol=1e-6)
    assert log.rules["recurrent"] == 1
    assert not log.slow


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_code_does_not_grow_with_the_steps(kind) -> None:
    """Steps were unrolled: 64 of them made 900 calls, and compiled for 20 s."""
    sizes, calls = [], []
    for steps in (32, 512):
        artifact = wg.compile(build(kind, steps, 16, 32))
        sizes.append(artifact.path.stat().st_size - artifact.manifest.param_bytes)
        calls.append(len(artifact.manifest.steps))
    assert calls[0] == calls[1]
    assert sizes[1] < 1.1 * sizes[0]


def layer(kind: str, dtype: str = "float32", **attributes: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A layer of two directions whose weights are inputs, and its feeds."""
    rng, gates, hidden = np.random.default_rng(1), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 18
    shapes = {"x": (5, 3, 4), "w": (2, gates * hidden, 4), "r": (2, gates * hidden, hidden)}
    feeds = {name: rng.normal(0, 0.3, shape).astype(dtype) for name, shape in shapes.items()}
    node = helper.make_node(
        kind, list(feeds), ["y", "y_h"], direction="bidirectional", hidden_size=hidden, **attributes
    )
    return model([node], feeds, ["y", "y_h"]), feeds


FUNCTIONS = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus", "LeakyRelu", "ThresholdedRelu")


@pytest.mark.parametrize("name", (*FUNCTIONS, "HardSigmoid", "Elu", "ScaledTanh", "Affine"))
@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128"])
def test_each_direction_has_functions_of_its_own(target: str, name: str) -> None:
    """Alphas and betas are listed for the functions that take one, of both directions."""
    given: dict[str, Any] = {"activations": ["Sigmoid", name, "HardSigmoid", "Tanh"]}
    given["activation_alpha"], given["activation_beta"] = [0.4, 0.3], [0.1, 0.6]
    if name in FUNCTIONS[:5]:
        given["activation_alpha"] = [0.3]
    if name in FUNCTIONS or name == "Elu":
        given["activation_beta"] = [0.6]
    agrees(*layer("GRU", **given), target)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_doubles(target: str, kind: str) -> None:
    """onnxruntime has no layers of float64."""
    single, feeds = layer(kind)
    double, _ = layer(kind, "float64")
    expected = run(single, feeds)
    found = run(double, {name: array.astype("float64") for name, array in feeds.items()}, target)
    for name, array in found.items():
        assert array.dtype == "float64"
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
