"""The names and behaviour that code outside this repository relies on."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("module", ["wasmgraph", "wasmgraph.cli", "wasmgraph.report"])
def test_importing_loads_no_engine(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('tvm', 'wasmtime', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
