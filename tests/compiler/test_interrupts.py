"""Ctrl-C ends a compile as Ctrl-C, whoever swallows or renames the exception."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wasmgraph.compiler.interrupts import keeping_interrupts


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def test_an_interrupt_that_becomes_another_exception() -> None:
    with pytest.raises(KeyboardInterrupt), keeping_interrupts():
        try:
            press()
        except KeyboardInterrupt:
            raise RuntimeError("") from None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_lost() -> None:
    with pytest.raises(KeyboardInterrupt), keeping_interrupts():
        with contextlib.suppress(KeyboardInterrupt):
            press()
    with pytest.raises(RuntimeError), keeping_interrupts():
        raise RuntimeError


def test_other_threads_and_other_handlers_are_left_alone() -> None:
    met: list[bool] = []

    def work() -> None:
        with keeping_interrupts():
            met.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert met == [True]


@pytest.mark.parametrize("after", [0.5, 1.2, 1.9, 2.6])
def test_a_compile_that_is_interrupted_leaves_nothing(
    small_onnx: Path, tmp_path: Path, after: float
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    output = tmp_path / "out.wasm"
    program = f"""
import wasmgraph as wg
for _ in range(50):
    wg.compile({str(small_onnx)!r}).save({str(output)!r})
"""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, said
    assert "KeyboardInterrupt" in said
    assert not [path.name for path in temporary.iterdir() if path.name.startswith("wasmgraph-")]
    assert not list(tmp_path.glob("*.part"))
