"""This machine: its processors, their name and vector features."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path


@cache
def cpu_info() -> dict[str, str]:
    """First processor's ``/proc/cpuinfo`` fields; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_name() -> str:
    """The processor's marketing name, or its architecture where the system does not give the name."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()


@cache
def cpu_features() -> tuple[str, ...]:
    """Sorted feature flags as the kernel names them (``avx2``, ``fma``, ``asimd``)."""
    info = cpu_info()
    return tuple(sorted((info.get("flags") or info.get("Features") or "").split()))


def processors_of_this_process() -> list[int]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_count() -> int:
    """How many processors this process may use."""
    return len(processors_of_this_process())


@cache
def host_id() -> str:
    """Sixteen hexadecimal digits that identify this machine and reveal nothing else about it."""
    try:
        name = Path("/etc/machine-id").read_text().strip()
    except OSError:
        name = ""
    parts = [name or platform.node(), cpu_name(), str(os.cpu_count()), *cpu_features()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
