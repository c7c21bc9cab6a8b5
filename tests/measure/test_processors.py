from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wasmgraph.measure import processors
from wasmgraph.measure.processors import on_quiet_processor

binding = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="binds threads to one of several processors, which takes Linux and two of them",
)


@binding
def test_one_thread_runs_on_one_processor_and_is_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), on_quiet_processor(1):
        assert len(os.sched_getaffinity(0)) == 1
        raise KeyError
    assert os.sched_getaffinity(0) == before


@binding
def test_several_threads_run_anywhere() -> None:
    before = os.sched_getaffinity(0)
    with on_quiet_processor(2):
        assert os.sched_getaffinity(0) == before


@binding
def test_an_engine_in_a_child_process_goes_along() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        before = os.sched_getaffinity(child.pid)
        with on_quiet_processor(1):
            assert len(os.sched_getaffinity(child.pid)) == 1
            assert os.sched_getaffinity(child.pid) == os.sched_getaffinity(0)
        assert os.sched_getaffinity(child.pid) == before
    finally:
        child.communicate(b"\n")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Processors whose probes take the seconds that a test puts here; the last ones for good."""
    seconds: dict[int, list[float]] = {}

    def probe(processor: int) -> float:
        left = seconds[processor]
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(processors, "_probe", probe)
    monkeypatch.setattr(processors, "_seen", processors._Seen())
    return seconds


def test_the_first_quiet_one_is_found(machine: dict[int, list[float]]) -> None:
    machine.update({3: [1.5], 5: [1.1], 7: [1.0]})
    assert processors._wait([3, 5, 7], 1, 9) == 5


def test_as_many_as_there_are_threads_must_be_quiet(machine: dict[int, list[float]]) -> None:
    machine.update({0: [1.0, 1.5, 1.0, 1.1], 1: [1.5, 1.0, 1.5, 1.05]})
    assert processors._wait([0, 1], 2, 9) == 0
    assert machine == {0: [1.1], 1: [1.05]}


def test_patience_ends(machine: dict[int, list[float]]) -> None:
    machine.update({0: [1.0, 2.0], 1: [2.0, 1.9]})
    processors._wait([0, 1], 1, 9)
    assert processors._wait([0, 1], 1, 0) == 1
    processors._seen.waited = processors._MOST_WAITING
    assert processors._wait([0, 1], 1, 9) == 1
