"""Many threads at once: `make stress` in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trials.stress import WAYS, Kind, stress


@pytest.mark.parametrize("way", WAYS)
def test_many_threads_at_once(kind: Kind, way: str, file_of: Callable[[Kind], Path]) -> None:
    outcome = stress(file_of(kind), kind.options, way, threads=8, runs=30)
    assert (outcome.runs, outcome.wrong, outcome.errors) == (240, 0, [])
