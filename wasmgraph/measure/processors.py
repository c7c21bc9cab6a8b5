"""On which processor to measure, and when: where and while the neighbours are quiet.

A virtual processor is often one of a core's two threads, the other of which is somebody else's. While that
computes, everything takes up to 1.5 times as long here, for tenths of a second or for minutes, on one
processor and not on the next; and the system moves a session between them. How quick a processor is now is
asked of a loop that has nothing to do with what is measured.
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

# Products of vectors in the first-level cache: some tenths of a millisecond of what a neighbour slows most.
_PRODUCTS, _ELEMENTS, _TRIES = 300, 4096, 4
_LINE = 64  # bytes: how the vectors are aligned, so that all probes are alike
_QUIET = 1.12  # of the quickest probe there was
_PAUSE = 0.02  # seconds between two looks
_MOST_WAITING = 120.0  # seconds of a process, for a machine that is never quiet


@dataclass
class _Seen:
    """Of this process: seconds of the quickest probe, and of all waiting."""

    fastest: float = math.inf
    waited: float = 0.0


_seen = _Seen()


@contextmanager
def on_quiet_processor(threads: int, patience: float = 1.0) -> Iterator[None]:
    """Run what follows when as many processors as ``threads`` are quiet, after ``patience`` seconds in any
    case, or at once if this process has waited for two minutes in all. One thread is bound to a quiet one:
    this thread, and the main threads of child processes, which are engines; several run on all processors.
    Where a system binds no threads nothing is done.
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
            # The first that is quiet, so that a session stays where its caches are.
            return quiet[0] if quiet else min(seconds, key=seconds.__getitem__)
        time.sleep(_PAUSE)


def _probe(processor: int) -> float:
    """Seconds of the probe on a processor, to which this thread is bound then."""
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
            continue  # it ended meanwhile


def _children() -> list[int]:
    """Child processes, of whichever thread; none where the kernel does not tell."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(number) for children in lists for number in children.read_text().split()]
