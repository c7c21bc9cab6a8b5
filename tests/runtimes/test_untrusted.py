"""A graph that nobody vouches for spends what it may, and not more; nobody else notices."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import wasmgraph as wg
from tests.runtimes.test_checks import GOOD, MEMORY, POOL, RUN, SHARED, STEP, forge
from wasmgraph.errors import ArtifactError, ExecutionError, LimitError, UsageError
from wasmgraph.runtimes import Limits, untrusted

ENDLESS = GOOD.replace("i32.const 0)", "(loop $again (br $again)) i32.const 0)", 1)
WAITING = f"(module {SHARED} {RUN} {STEP} {POOL})".replace(
    "i32.const 0)", "(memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))", 1
)


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128-threads"])
def test_the_result_is_that_of_a_trusted_session(
    small_artifact, small_input: np.ndarray, target: str
) -> None:
    path, threads = small_artifact(target), 2 if target.endswith("threads") else 1
    with (
        wg.load(path, threads=threads) as trusted,
        wg.load(path, threads=threads, untrusted=True) as session,
    ):
        assert (session.inputs, session.outputs) == (trusted.inputs, trusted.outputs)
        for scale in (1, 2):
            feeds = {"x": small_input * scale}
            expected, actual = trusted.run(feeds), session.run(feeds)
            for name, array in expected.items():
                np.testing.assert_array_equal(actual[name], array)
                assert actual[name].flags.owndata
        session.run_step(0)
        with pytest.raises(ExecutionError, match="wasmgraph_step returned"):
            session.run_step(10_000)
    with pytest.raises(UsageError, match="closed"):
        session.run(feeds)


@pytest.mark.parametrize(
    ("wat", "limits", "words"),
    [
        (ENDLESS, Limits(cpu_s=0.7), "used more than 0.7 s of processor time"),
        (ENDLESS, Limits(wall_s=2.5), "took longer than 2.5 s"),
        (WAITING, Limits(wall_s=2.5), "took longer than 2.5 s"),
    ],
    ids=["endless-loop", "endless-loop-by-the-clock", "atomic-wait"],
)
def test_who_does_not_end_is_ended(
    tmp_path: Path, small_artifact, small_input: np.ndarray, wat: str, limits: Limits, words: str
) -> None:
    path = forge(tmp_path / "hostile.wasm", small_artifact("wasm32"), wat)
    bystander = wg.load(small_artifact("wasm32"), untrusted=True)
    expected = bystander.run({"x": small_input})["logits"]
    session = wg.load(path, untrusted=True, limits=limits)
    child = psutil.Process(session.process_id)
    began = time.monotonic()
    with pytest.raises(LimitError, match=words):
        session.run({"x": small_input})
    assert time.monotonic() - began < min(limits.cpu_s, limits.wall_s) + 5  # make faults measures it
    assert not child.is_running()
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": small_input})
    np.testing.assert_array_equal(bystander.run({"x": small_input})["logits"], expected)
    bystander.close()


def test_memory_that_is_not_allowed(tmp_path: Path, small_artifact, small_input: np.ndarray) -> None:
    touch_all = """(local $at i32) (loop $next
      (i32.store (local.get $at) (i32.const 1))
      (br_if $next (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 4096))) (i32.const 0))))"""
    wat = GOOD.replace(MEMORY, '(memory (export "memory") 65536 65536)').replace(
        "i32.const 0)", f"{touch_all} i32.const 0)", 1
    )
    path = forge(tmp_path / "bomb.wasm", small_artifact("wasm32"), wat)
    with pytest.raises(
        LimitError, match="declares 4,294,967,296 bytes of memory, 1,000,000,000 are allowed"
    ):
        wg.load(path, untrusted=True, limits=Limits(memory_bytes=1_000_000_000))
    with pytest.raises(
        (LimitError, ArtifactError), match="memory"
    ):  # the declared part fits, with all else it does not
        wg.load(path, untrusted=True, limits=Limits(memory_bytes=(4 << 30) + 1))


def test_a_child_that_dies_is_said_and_leaves_nothing(small_artifact, small_input: np.ndarray) -> None:
    session = wg.load(small_artifact("wasm32"), untrusted=True)
    os.kill(session.process_id, signal.SIGUSR1)
    with pytest.raises(ExecutionError, match="its process was ended by SIGUSR1"):
        session.run({"x": small_input})
    session.close()
    forgotten = wg.load(small_artifact("wasm32"), untrusted=True)
    child = psutil.Process(forgotten.process_id)
    del forgotten
    assert not child.is_running()


def test_what_the_child_refuses_is_the_same_error(tmp_path: Path, small_artifact) -> None:
    path = forge(tmp_path / "start.wasm", small_artifact("wasm32"), GOOD.replace(STEP, ""))
    with pytest.raises(ArtifactError, match="does not export wasmgraph_step") as caught:
        wg.load(path, untrusted=True)
    assert caught.value.check == "exports"
    with pytest.raises(ArtifactError, match="another file than was expected"):
        wg.load(small_artifact("wasm32"), untrusted=True, sha256="0" * 64)


def test_what_has_no_limits(small_artifact, small_onnx: Path) -> None:
    with pytest.raises(UsageError, match="untrusted graphs are wasm artifacts"):
        wg.load(small_onnx, untrusted=True)
    with pytest.raises(UsageError, match="untrusted graphs are wasm artifacts"):
        wg.load(small_artifact("native"), untrusted=True)
    with pytest.raises(UsageError, match="in Wasmtime"):
        wg.load(small_artifact("wasm32"), runtime="node", untrusted=True)
    with pytest.raises(UsageError, match="untrusted graphs only"):
        wg.load(small_artifact("wasm32"), limits=Limits())
    with pytest.raises(UsageError, match="greater than 0"):
        Limits(wall_s=0)


ANSWERS = [
    b"[]",
    b"5",
    b"{",
    b"[" * 100_000,
    b"{}",
    b'{"inputs": 5, "outputs": []}',
    b'{"inputs": [["x"]], "outputs": []}',
    b'{"inputs": [["x", [-1], "float32"]], "outputs": []}',
    b'{"inputs": [["x", [1e999], "float32"]], "outputs": []}',
    b'{"inputs": [["x", [1], "object"]], "outputs": []}',
    b'{"inputs": [["x", [1099511627776], "float32"]], "outputs": []}',
    b'{"error": ["KeyboardInterrupt"], "message": 5}',
]


@pytest.mark.parametrize("answer", ANSWERS, ids=[f"{answer[:60]!r}" for answer in ANSWERS])
def test_a_child_that_was_taken_over(
    small_artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    hostile = tmp_path / "hostile.py"
    hostile.write_text(
        f"""import socket, sys, time
channel = socket.socket(fileno=int(sys.argv[1]))
answer = {answer!r}
channel.sendall(len(answer).to_bytes(4, "little") + answer)
time.sleep(60)"""
    )
    monkeypatch.setattr(untrusted, "_COMMAND", ("-B", str(hostile)))
    with pytest.raises(wg.WasmgraphError):
        wg.load(small_artifact("wasm32"), untrusted=True)
    assert not psutil.Process().children()
