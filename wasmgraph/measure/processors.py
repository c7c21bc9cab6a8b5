"""Chooses the processor and the moment to measure: where and while the neighbours are quiet.

A virtual processor is often one of a core's two threads, and the other thread belongs to another machine.
While that thread computes, code here takes up to 1.5 times as long, for tenths of a second or for minutes,
on one processor and not on the next. The system also moves a session between processors. A probe, unrelated
to what is measured, tells how fast a processor is now.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from wasmgraph.host import processors_of_this_process
from wasmgraph.tensors import Array

# Products of vectors in the first-level cache, for some tenths of a millisecond: neighbours slow this most.
_PRODUCTS, _ELEMENTS, _TRIES = 300, 4096, 4
_LINE = 64  # bytes: how the vectors are aligned, so that all probes are alike
_QUIET = 1.12  # of the fastest probe so far
_PAUSE = 0.02  # seconds between two probes
_MOST_WAITING = 120.0  # seconds of a process, for a machine that is never quiet


@dataclass
class _Seen:
    """State of this process: seconds of the fastest probe, and of all waiting."""

    fastest: float = math.inf
    waited: float = 0.0


_seen = _Seen()


@contextmanager
def on_quiet_processor(threads: int, patience: float = 1.0) -> Iterator[None]:
    """Run the body when as many processors as ``threads`` are quiet: after ``patience`` seconds at the
    latest, or at once if this process has waited for two minutes in all. For one thread, this thread and
    the main threads of child processes (engines) are bound to a quiet processor; several threads run on all
    processors. Does nothing where a system cannot bind threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = processors_of_this_process()
    try:
        chosen = _wait(allowed, threads, patience)
        _bind([chosen] if threads == 1 else allowed)
        yield
    finally:
        _bind(allowed)


def _wait(processors: Sequence[int], threads: int, patience: float) -> int:
    """Wait for quiet; return a quiet processor, or the quickest if none became quiet."""
    began = time.monotonic()
    patience = min(patience, _MOST_WAITING - _seen.waited)
    while True:
        seconds = {processor: _probe(processor) for processor in processors}
        _seen.fastest = min(_seen.fastest, *seconds.values())
        quiet = [processor for processor in processors if seconds[processor] <= _QUIET * _seen.fastest]
        passed = time.monotonic() - began
        if len(quiet) >= min(threads, len(processors)) or passed >= patience:
            _seen.waited += passed
            # The first quiet one, so that a session stays where its caches are.
            return quiet[0] if quiet else min(seconds, key=seconds.__getitem__)
        time.sleep(_PAUSE)


def _probe(processor: int) -> float:
    """Seconds of the probe on a processor. Binds this thread to it."""
    os.sched_setaffinity(0, [processor])
    factor, product = _vectors()
    passed = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        for _ in range(_PRODUCTS):
            np.multiply(factor, factor, product)
        passed.append(time.perf_counter() - began)
    return min(passed)


@cache
def _vectors() -> tuple[Array, Array]:
    """Two vectors, aligned."""
    size = 4 * _ELEMENTS
    memory = np.ones(2 * size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    factor, product = memory[begin : begin + 2 * size].view(np.float32).reshape(2, _ELEMENTS)
    factor[:] = 1.0
    return factor, product


def _bind(processors: Sequence[int]) -> None:
    for process in (0, *_children()):
        try:
            os.sched_setaffinity(process, processors)
        except ProcessLookupError:
            continue  # the process has ended meanwhile


def _children() -> list[int]:
    """Child processes of any thread; none where the kernel does not list them."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(number) for children in lists for number in children.read_text().split()]
