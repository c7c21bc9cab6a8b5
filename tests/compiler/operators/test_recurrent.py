"""Recurrent layers are one kernel with a loop over the steps; options are tested with the converters."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import wasmgraph as wg
from wasmgraph.compiler import CompileLog
from wasmgraph.models.recurrent import build

TARGETS = ("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "wasm32-simd128-threads", "native")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("hidden", "batch", "both"), [(20, 2, True), (37, 1, False)])
def test_every_target_is_right(kind, target: str, hidden: int, batch: int, both: bool) -> None:
    proto, log = build(kind, 9, 12, hidden, batch, both), CompileLog()
    x = np.random.default_rng(0).normal(0, 1, (9, batch, 12)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"input": x})
    artifact = wg.compile(proto, target=target, log=log)
    with wg.load(artifact, threads=2 if "threads" in target else 1) as session:
        np.testing.assert_allclose(session.run(x)["sequence"], expected, rtol=1e-4, atol=1e-5)
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
