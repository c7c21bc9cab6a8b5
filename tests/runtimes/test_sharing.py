"""Sessions among threads, signal handlers, forked children and clones."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import wasmgraph as wg
from tests.runtimes.test_checks import MEMORY, STEP, forge
from trials.stress import Kind
from wasmgraph.errors import ExecutionError, UsageError
from wasmgraph.runtimes.base import Session
from wasmgraph.tensors import Array, TensorSpec

Load = Callable[[], wg.Session]


class Slow(Session):
    """Runs until it is let go, and does on the way what a test wants."""

    def __init__(self, meanwhile: Callable[[Slow], None] = lambda _: None) -> None:
        super().__init__((), (TensorSpec("y", (1,), "float32"),))
        self.began, self.go = threading.Event(), threading.Event()
        self.meanwhile, self.released = meanwhile, 0

    def _run(self, arrays: list[Array]) -> list[Array]:
        assert not self.released
        self.began.set()
        self.meanwhile(self)
        assert self.go.wait(10)
        assert not self.released
        return [np.zeros(1, np.float32)]

    def _release(self) -> None:
        self.released += 1


def started(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that does it, and what it gave or raised."""
    results: list[object] = []

    def target() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread, results


def test_close_waits_for_a_run_and_whoever_waits_is_told() -> None:
    session = Slow()
    run, ran = started(lambda: session.run({}))
    session.began.wait(10)
    waiting = [started(lambda: session.run({})) for _ in range(3)]
    closing = [started(session.close) for _ in range(2)]
    time.sleep(0.05)
    assert all(thread.is_alive() for thread, _ in (*waiting, *closing))
    assert not session.released
    session.go.set()
    for thread, _ in ((run, ran), *waiting, *closing):
        thread.join(10)
        assert not thread.is_alive()
    assert isinstance(ran[0], dict)
    assert [type(results[0]) for _, results in waiting] == [UsageError] * 3
    assert session.released == 1


def test_who_interrupts_a_run_can_close_its_session_but_not_run_it() -> None:
    def interrupt(session: Slow) -> None:
        with pytest.raises(UsageError, match="whose call it interrupted"):
            session.run({})
        session.close()
        session.close()
        assert not session.released
        session.go.set()

    session = Slow(interrupt)
    assert session.run({})["y"] == 0
    assert session.released == 1
    with pytest.raises(UsageError, match="closed"):
        session.run({})


def test_a_session_that_failed_is_free_again() -> None:
    def fail(session: Slow) -> None:
        raise ExecutionError("gave up")

    session = Slow(fail)
    with pytest.raises(ExecutionError):
        session.run({})
    session.meanwhile = lambda session: session.go.set()
    assert session.run({})["y"] == 0


class AlarmError(Exception):
    pass


def test_an_interrupted_call_leaves_the_session_whole(
    kind: Kind, load: Load, small_input: np.ndarray
) -> None:
    def interrupt(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with load() as session:
            expected = [session.run({"x": small_input * n})["logits"] for n in range(2)]
            interrupted = 0
            for turn in range(40):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + turn * 2e-5)
                    end = time.monotonic() + 0.1
                    while time.monotonic() < end:  # Python ignores what is raised in a callback from C
                        session.run({"x": small_input * 0})
                except AlarmError:
                    interrupted += 1
                    if session.closed:  # the call ended a child process
                        break
                np.testing.assert_array_equal(session.run({"x": small_input})["logits"], expected[1])
            if session.closed:
                with pytest.raises(UsageError, match="closed"):
                    session.run({"x": small_input})
            else:
                assert interrupted > 20
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_closing_in_the_midst_of_runs(load: Load, small_input: np.ndarray) -> None:
    """Every call gives a right answer or says that the session is closed."""
    session = load()
    expected = session.run({"x": small_input})["logits"]

    def until_closed() -> int:
        for count in range(100_000):
            try:
                found = session.run({"x": small_input})["logits"]
            except UsageError:
                return count
            np.testing.assert_array_equal(found, expected)
        raise AssertionError

    threads = [started(until_closed) for _ in range(4)]
    time.sleep(0.05)
    session.close()
    for thread, results in threads:
        thread.join(20)
        assert not thread.is_alive()
        assert isinstance(results[0], int), results


def test_clones_are_independent(load: Load, small_input: np.ndarray) -> None:
    first = load()
    second = first.clone()
    assert (second.inputs, second.outputs) == (first.inputs, first.outputs)
    expected = first.run({"x": small_input})["logits"]
    other = second.run({"x": small_input * 2})["logits"]
    first.close()
    with pytest.raises(UsageError, match="closed"):
        first.clone()
    with second, second.clone() as third:
        np.testing.assert_array_equal(second.run({"x": small_input})["logits"], expected)
        np.testing.assert_array_equal(third.run({"x": small_input * 2})["logits"], other)


def test_a_clone_outlives_the_artifact_that_was_never_saved(kind: Kind, file_of, small_onnx) -> None:
    if kind.target == "onnx":
        return  # its artifact is a file of the user's
    session = wg.load(wg.compile(small_onnx, target=kind.target), **kind.options)
    gc.collect()
    with session, session.clone() as clone:
        assert clone.inputs == session.inputs


def test_a_session_cannot_be_pickled(load: Load) -> None:
    with load() as session:
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match="cannot be pickled or copied.*path.*clone"):
                way(session)


def in_a_fork(work: Callable[[], str], patience_s: float = 20) -> str:
    """What a forked child says; the child ends as Python programs do, finalizers and all."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "failed"
        try:
            said = work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            gc.collect()
            os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + patience_s
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.01)
    with os.fdopen(reading, "rb") as stream:
        return stream.read().decode()


def test_a_forked_child_gets_the_answer_or_is_told(kind: Kind, load: Load, small_input: np.ndarray) -> None:
    held = [load()]
    session = held[0]
    expected = session.run({"x": small_input})["logits"]

    def use() -> str:
        for _ in range(3):
            try:
                same = np.array_equal(held[0].run({"x": small_input})["logits"], expected)
            except UsageError as error:
                assert "load it again in this process" in str(error)
                said = "told"
            else:
                said = "right" if same else "wrong"
        with load() as own:
            assert np.array_equal(own.run({"x": small_input})["logits"], expected)
        held[0].close()
        held[0].close()
        nonlocal session
        del session
        held.clear()
        gc.collect()
        return said

    assert in_a_fork(use) == ("right" if kind.name in ("wasmtime", "native") else "told")
    np.testing.assert_array_equal(session.run({"x": small_input})["logits"], expected)
    session.close()


def test_a_session_that_runs_during_a_fork(kind: Kind, load: Load, small_input: np.ndarray) -> None:
    with load() as session:
        expected = session.run({"x": small_input})["logits"]
        stop = threading.Event()

        def keep_running() -> None:
            while not stop.is_set():
                np.testing.assert_array_equal(session.run({"x": small_input})["logits"], expected)

        threads = [started(keep_running) for _ in range(2)]

        def use() -> str:
            try:
                found = session.run({"x": small_input})["logits"]
            except UsageError as error:
                assert "load it again in this process" in str(error)
            else:
                np.testing.assert_array_equal(found, expected)
            session.close()
            return "done"

        for _ in range(3):
            assert in_a_fork(use) == "done"
        stop.set()
        for thread, results in threads:
            thread.join(20)
            assert results == [None]


def test_onnxruntimes_threads_do_not_hold_up_a_forked_child(small_onnx, small_input: np.ndarray) -> None:
    held = [wg.load(small_onnx, threads=2)]
    held[0].run({"x": small_input})
    assert in_a_fork(lambda: (held.clear(), gc.collect(), "gone")[-1]) == "gone"
    held[0].close()


ENDINGS = {
    "a forked child": """
if os.fork() == 0:
    sys.exit(0)
assert os.wait()[1] == 0
session.run(feeds)
""",
    "a thread that runs": """
def work():
    while True:
        session.run(feeds)
threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
time.sleep(0.2)
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_programs_end(kind: Kind, file_of: Callable[[Kind], Path], ending: str) -> None:
    """With sessions that nobody closed."""
    if kind.name == "onnxruntime" and "fork" in ending:
        return  # once it is imported, its own exit handlers wait for a thread that a forked child lacks
    program = f"""
import atexit, os, sys, threading, time
threads = []
atexit.register(lambda: [thread.join() for thread in threads])
import numpy as np
import wasmgraph as wg
session = wg.load({str(file_of(kind))!r}, **{kind.options!r})
feeds = {{spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.inputs}}
session.run(feeds)
{ENDINGS[ending]}"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("runtime", ["wasmtime", "node"])
def test_traps_do_not_use_up_the_modules_stack(
    tmp_path: Path, small_artifact, small_input: np.ndarray, runtime: str
) -> None:
    """A graph that takes 8 of its 64 KiB of stack, and traps on an input that begins with 0."""
    if runtime == "node" and shutil.which("node") is None:
        pytest.skip("there is no `node` on the PATH")
    place = wg.Artifact.open(small_artifact("wasm32")).manifest.inputs[0].offset
    wat = f"""(module {MEMORY} {STEP} (global $stack (mut i32) (i32.const 65536))
      (func (export "wasmgraph_run") (result i32)
        (global.set $stack (i32.sub (global.get $stack) (i32.const 8192)))
        (if (i32.lt_s (global.get $stack) (i32.const 0)) (then unreachable))
        (if (i32.eqz (i32.load (i32.const {place}))) (then unreachable))
        (global.set $stack (i32.add (global.get $stack) (i32.const 8192)))
        (i32.const 0)))"""
    path = forge(tmp_path / "stack.wasm", small_artifact("wasm32"), wat)
    with wg.load(path, runtime=runtime) as session:
        for _ in range(10):
            with pytest.raises(ExecutionError, match="unreachable"):
                session.run({"x": small_input * 0})
            session.run({"x": small_input})
