from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import wasmgraph as wg
from wasmgraph.errors import ExecutionError
from wasmgraph.measure.sessions import memory_of_one_more, run_together
from wasmgraph.runtimes.base import Session
from wasmgraph.tensors import Array, TensorSpec


class Sleeper(Session):
    """Takes a known time, and counts who is inside at once."""

    inside = most = 0
    lock = threading.Lock()

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__((), (TensorSpec("y", (1,), "float32"),))
        self.fails_at, self.calls = fails_at, 0

    def _run(self, arrays: list[Array]) -> list[Array]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ExecutionError("gave up")
        with Sleeper.lock:
            Sleeper.inside += 1
            Sleeper.most = max(Sleeper.most, Sleeper.inside)
        time.sleep(0.02)
        with Sleeper.lock:
            Sleeper.inside -= 1
        return [np.zeros(1, np.float32)]


def test_sessions_run_at_the_same_time() -> None:
    sessions = [Sleeper() for _ in range(3)]
    found = run_together(sessions, {}, 4)
    assert Sleeper.most == 3
    assert [session.calls for session in sessions] == [5, 5, 5]  # one call ahead
    assert (found.sessions, len(found.seconds)) == (3, 12)
    assert min(found.seconds) >= 0.02
    assert found.runs_per_s == pytest.approx(12 / (4 * np.mean(found.seconds)), rel=0.5)


def test_a_failure_is_raised_after_the_others_are_done() -> None:
    sessions = [Sleeper(), Sleeper(fails_at=3)]
    with pytest.raises(ExecutionError, match="gave up"):
        run_together(sessions, {}, 4)
    assert sessions[0].calls == 5


def test_a_session_shares_parameters_with_the_next(
    small_artifact: Callable[[str], Path], small_input: np.ndarray
) -> None:
    path = small_artifact("wasm32-simd128")
    extra = memory_of_one_more(lambda: wg.load(path), {"x": small_input})
    assert 0 < extra < wg.Artifact.open(path).manifest.arena_bytes + 4_000_000
