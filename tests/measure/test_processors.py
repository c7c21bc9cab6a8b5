from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wasmgraph.measure import processors
from wasmgraph.measure.processors import on_quiet_processor

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="binds threads to one of several processors, which takes Linux and two of them",
)


def test_one_thread_runs_on_one_processor_and_is_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), on_quiet_processor(1):
        assert len(os.sched_getaffinity(0)) == 1
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_several_threads_run_anywhere() -> None:
    before = os.sched_getaffinity(0)
    with on_quiet_processor(2):
        assert os.sched_getaffinity(0) == before


def test_an_engine_in_a_child_process_goes_along() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        before = os.sched_getaffinity(child.pid)
        with on_quiet_processor(1):
            assert os.sched_getaffinity(child.pid) == os.sched_getaffinity(0)
        assert os.sched_getaffinity(child.pid) == before
    finally:
        child.communicate(b"\n")


def test_the_quickest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now, processor = 0.0, 0

    def bind(process: int, allowed: list[int]) -> None:
        nonlocal processor
        assert process == 0
        (processor,) = allowed

    def clock() -> float:
        nonlocal now
        now += {3: 1.5, 5: 1.0, 7: 1.4}[processor]
        return now

    monkeypatch.setattr(processors.os, "sched_setaffinity", bind)
    monkeypatch.setattr(processors.time, "perf_counter", clock)
    assert processors._quickest([3, 5, 7]) == 5
