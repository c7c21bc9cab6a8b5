from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

_WAITING = "from wasmgraph.compiler.link.zig import zig; zig('cc', '-E', '-xc', '-')"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_zig_ends_with_the_process_that_waits_for_it() -> None:
    """A killed compile left Zig behind, which built the C library for a quarter of a minute."""
    waiting = subprocess.Popen([sys.executable, "-c", _WAITING], stdin=subprocess.PIPE)
    until = time.monotonic() + 30
    children: list[psutil.Process] = []
    while not any(child.name() == "zig" for child in children) and time.monotonic() < until:
        children = psutil.Process(waiting.pid).children()
        time.sleep(0.05)
    assert children
    waiting.kill()
    waiting.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
