"""The names and behaviour that code outside this repository relies on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import wasmgraph as wg
from wasmgraph import errors


def test_all_is_what_can_be_had() -> None:
    assert sorted(dir(wg)) == sorted(wg.__all__)
    for name in wg.__all__:
        assert getattr(wg, name) is not None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        wg.nonsense  # noqa: B018


def test_every_error_is_in_the_drawn_tree() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(error, wg.WasmgraphError) for error in found)
    assert all(error.__name__ in (errors.__doc__ or "") for error in found)


def test_what_is_printed_says_what_it_is(small_artifact: Callable[[str], Path]) -> None:
    artifact = wg.Artifact.open(small_artifact("wasm32"))
    takes_and_gives = "x: float32[1, 3, 19, 17] → probabilities: float32[1, 21], logits: float32[1, 21]"
    assert repr(artifact) == f"<Artifact small for wasm32, '{artifact.path}': {takes_and_gives}>"
    with wg.load(artifact) as session:
        assert repr(session) == f"<WasmtimeSession: {takes_and_gives}>"
    assert repr(session) == f"<WasmtimeSession, closed: {takes_and_gives}>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (wg.TensorSpec("x", (1, 3), "int8"), "TensorSpec('x', (1, 3), 'int8')"),
        (wg.Limits(), "Limits(memory_bytes=4096 << 20, cpu_s=60, wall_s=60)"),
        (wg.Limits(1000, 0.5), "Limits(memory_bytes=1000, cpu_s=0.5, wall_s=60)"),
    ],
)
def test_a_records_text_makes_it_again(value: object, text: str) -> None:
    assert repr(value) == text
    assert eval(text, {"TensorSpec": wg.TensorSpec, "Limits": wg.Limits}) == value


@pytest.mark.parametrize("module", ["wasmgraph", "wasmgraph.cli", "wasmgraph.report"])
def test_importing_loads_no_engine(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('tvm', 'wasmtime', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
