"""Every runtime, as a session is loaded in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import wasmgraph as wg
from trials.stress import KINDS, Kind


@pytest.fixture
def file_of(small_artifact: Callable[[str], Path], small_onnx: Path) -> Callable[[Kind], Path]:
    """The small model's file for a kind of session."""

    def file(kind: Kind) -> Path:
        if kind.options.get("runtime") == "node" and shutil.which("node") is None:
            pytest.skip("there is no `node` on the PATH")
        return small_onnx if kind.target == "onnx" else small_artifact(kind.target)

    return file


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name.replace(", ", "-").replace(" ", "-"))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def load(kind: Kind, file_of: Callable[[Kind], Path]) -> Callable[[], wg.Session]:
    """Load the small model in the runtime of this test's parameter."""
    return lambda: wg.load(file_of(kind), **kind.options)
