"""Limits for untrusted models and graphs, and how a child process is held to them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from wasmgraph.errors import UsageError

_PASSED_ON = ("HOME", "PATH", "WASMGRAPH_CACHE", "XDG_CACHE_HOME", "TMPDIR")


@dataclass(frozen=True)
class Limits:
    """Limits of loading a graph, of each call, or of compiling a model: bytes of memory, seconds of
    processor time over all threads, seconds of wall-clock time."""

    memory_bytes: int = 4 << 30
    cpu_s: float = 60.0
    wall_s: float = 60.0

    def __repr__(self) -> str:
        size = self.memory_bytes
        memory = size if size % (1 << 20) else f"{size >> 20} << 20"
        return f"Limits(memory_bytes={memory}, cpu_s={self.cpu_s:g}, wall_s={self.wall_s:g})"

    def __post_init__(self) -> None:
        if min(self.memory_bytes, self.cpu_s, self.wall_s) <= 0:
            raise UsageError(f"{self}: limits must be greater than 0.")


COMPILE_LIMITS = Limits(memory_bytes=8 << 30, cpu_s=600.0, wall_s=600.0)


def check_platform(what: str) -> None:
    """Raise UsageError on a system that cannot limit child processes."""
    if sys.platform != "linux":
        raise UsageError(f"{what}: limits need Linux, this is {sys.platform}.")


def child_environment(**more: str) -> dict[str, str]:
    """The part of this process's environment that a child needs to find Python's packages and the cache."""
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return environment | more


def restrict_memory(allowed: int) -> None:
    """Limit this process. The kernel limits private writable memory, not memory that is only reserved. No
    file may grow beyond the limit either, and no core is dumped."""
    import resource

    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, allowed),
        (resource.RLIMIT_FSIZE, allowed),
    ):
        _, hard = resource.getrlimit(kind)  # which only root may raise
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def end_with_parent(group: bool = False) -> None:
    """End this process when its parent has ended, whatever it is doing; with ``group``, all processes of
    its group."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if group:
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
