from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import wasmgraph as wg
from wasmgraph.errors import UsageError
from wasmgraph.runtimes.metrics import metrics
from wasmgraph.runtimes.wasmtime_meter import meter


@pytest.mark.parametrize(
    "target", ["wasm32", "wasm32-simd128", "wasm32-simd128-threads", "wasm32-relaxed-simd"]
)
def test_a_reading_is_the_same_every_time(
    small_artifact: Callable[[str], Path], small_input: np.ndarray, target: str
) -> None:
    artifact = wg.Artifact.open(small_artifact(target))
    first, second = (meter(artifact, {"x": small_input}) for _ in range(2))
    assert first == second
    assert set(first.kernel_work) == {step.kernel for step in artifact.manifest.steps}
    assert 0.9 < sum(first.kernel_work.values()) / first.work_fuel <= 1.01
    assert first.peak_memory_bytes > artifact.manifest.arena_bytes
    assert 1_000 < (first.machine_code_bytes or 0) < 1_000_000


def test_vectors_are_less_work(small_artifact: Callable[[str], Path], small_input: np.ndarray) -> None:
    scalar, simd = (
        meter(wg.Artifact.open(small_artifact(target)), {"x": small_input})
        for target in ("wasm32", "wasm32-simd128")
    )
    # A quarter of the arithmetic, but fuel also counts what costs no machine time: pipelined loops move
    # more between locals, which Cranelift's registers swallow.
    assert simd.work_fuel < 0.7 * scalar.work_fuel


def test_native_code_has_sizes_only(small_artifact: Callable[[str], Path], small_input: np.ndarray) -> None:
    artifact = wg.Artifact.open(small_artifact("native"))
    found = metrics(artifact, {"x": small_input})
    assert found["ops_fallback"] == 0
    assert "work_fuel" not in found
    with pytest.raises(UsageError, match="native code"):
        meter(artifact, {"x": small_input})


def test_the_same_source_compiles_to_the_same_bytes(
    small_onnx: Path, small_artifact: Callable[[str], Path]
) -> None:
    """Gates on work and bytes rest on it."""
    for target in ("wasm32-simd128", "native"):
        again = wg.compile(small_onnx, target=target)
        assert again.sha256 == wg.Artifact.open(small_artifact(target)).sha256
