from __future__ import annotations

import copy
import pickle
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import wasmgraph as wg
from tests.runtimes.test_checks import GOOD, forge
from tests.runtimes.test_sharing import in_a_fork, started
from wasmgraph.errors import FeedError, LimitError, UsageError
from wasmgraph.runtimes import Limits, session_pool


def test_a_pool_runs_as_a_session_does(small_artifact, small_input: np.ndarray) -> None:
    path = small_artifact("wasm32")
    with wg.load(path) as session, wg.SessionPool(path, 2) as pool:
        assert (pool.inputs, pool.outputs, pool.size) == (session.inputs, session.outputs, 2)
        expected = session.run({"x": small_input})
        for _ in range(5):
            found = pool.run({"x": small_input})
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)
        with pytest.raises(FeedError):
            pool.run({})
        assert repr(pool) == f"<SessionPool of 2: {pool._sessions[0]!r}>"
    assert ", closed: " in repr(pool)
    with pytest.raises(UsageError, match="closed"):
        pool.run({"x": small_input})
    pool.close()


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_sizes_that_are_none(small_artifact, size: object) -> None:
    with pytest.raises(UsageError, match="whole number of sessions"):
        wg.SessionPool(small_artifact("wasm32"), size)


def test_options_are_those_of_load(small_artifact) -> None:
    with pytest.raises(UsageError, match="compiled for one thread"):
        wg.SessionPool(small_artifact("wasm32"), 2, threads=2)


def test_who_waits_while_the_pool_is_closed_is_told(small_artifact, small_input: np.ndarray) -> None:
    pool = wg.SessionPool(small_artifact("wasm32"), 1)
    inside, go = threading.Event(), threading.Event()
    run = pool._sessions[0]._run

    def slowly(arrays):
        inside.set()
        go.wait(10)
        return run(arrays)

    pool._sessions[0]._run = slowly
    running, ran = started(lambda: pool.run({"x": small_input}))
    inside.wait(10)
    waiting = [started(lambda: pool.run({"x": small_input})) for _ in range(3)]
    closing, _ = started(pool.close)
    for thread, results in waiting:
        thread.join(10)
        assert isinstance(results[0], UsageError)
    assert closing.is_alive()
    go.set()
    for thread in (running, closing):
        thread.join(10)
        assert not thread.is_alive()
    assert isinstance(ran[0], dict)


def test_a_signal_handler_does_not_wait_for_the_call_that_it_interrupted(
    small_artifact, small_input: np.ndarray
) -> None:
    with wg.SessionPool(small_artifact("wasm32"), 1) as pool:
        run, caught = pool._sessions[0]._run, []

        def interrupted(arrays):
            signal.raise_signal(signal.SIGUSR1)
            return run(arrays)

        def handler(*_: object) -> None:
            with pytest.raises(UsageError, match="make the pool larger") as error:
                pool.run({"x": small_input})
            caught.append(error.value)

        pool._sessions[0]._run = interrupted
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            pool.run({"x": small_input})
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert len(caught) == 1
        pool._sessions[0]._run = run
        pool.run({"x": small_input})


def test_a_session_that_was_lost_in_an_interrupted_call_is_found(
    small_artifact, small_input: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_pool, "_STARVING_S", 0.05)
    with wg.SessionPool(small_artifact("wasm32"), 1) as pool:
        pool._free.get()  # what an exception right after it amounts to
        for _ in range(3):
            pool.run({"x": small_input})
        assert pool._free.qsize() == 1


def test_a_session_that_ended_is_replaced(tmp_path: Path, small_artifact, small_input: np.ndarray) -> None:
    """A graph that never ends on inputs whose first bit pattern is 0."""
    place = wg.Artifact.open(small_artifact("wasm32")).manifest.inputs[0].offset
    wat = GOOD.replace(
        "i32.const 0)",
        f"(loop $again (br_if $again (i32.eqz (i32.load (i32.const {place}))))) i32.const 0)",
        1,
    )
    path = forge(tmp_path / "endless.wasm", small_artifact("wasm32"), wat)
    with wg.SessionPool(path, 1, untrusted=True, limits=Limits(cpu_s=0.3)) as pool:
        for _ in range(2):
            pool.run({"x": small_input})
            with pytest.raises(LimitError):
                pool.run({"x": small_input * 0})
        pool.run({"x": small_input})


def test_a_pool_stays_in_its_process(small_artifact, small_input: np.ndarray) -> None:
    with wg.SessionPool(small_artifact("wasm32"), 1) as pool:
        for way in (pickle.dumps, copy.copy):
            with pytest.raises(UsageError, match="cannot be pickled or copied"):
                way(pool)

        def use() -> str:
            with pytest.raises(UsageError, match="make another in this process"):
                pool.run({"x": small_input})
            pool.close()
            return "told"

        assert in_a_fork(use) == "told"
        pool.run({"x": small_input})
