"""On which processor to measure: the one that others leave alone at the moment.

A virtual processor is often one of a core's two threads, the other of which is somebody else's. While that
computes, everything takes up to 1.5 times as long here, for seconds, on one processor and not on the next;
and the system moves a session between them. Which processor is quick now is asked of a loop that has
nothing to do with what is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from wasmgraph.host import processors_of_this_process

# Products of vectors in the first-level cache: about half a millisecond, and what a neighbour slows most.
_PRODUCTS, _ELEMENTS, _TRIES = 300, 4096, 4


@contextmanager
def on_quiet_processor(threads: int) -> Iterator[None]:
    """Run what follows on the processor that is quickest now: this thread, and the main threads of child
    processes, which are engines. With more ``threads`` than one it runs anywhere, as it does where a system
    binds no threads.
    """
    allowed = processors_of_this_process()
    if threads > 1 or len(allowed) == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    try:
        _bind([_quickest(allowed)])
        yield
    finally:
        _bind(allowed)


def _quickest(processors: Sequence[int]) -> int:
    vector = np.ones(_ELEMENTS, np.float32)
    product = np.empty_like(vector)
    seconds: dict[int, float] = {}
    for processor in processors:
        os.sched_setaffinity(0, [processor])
        for _ in range(_TRIES):
            began = time.perf_counter()
            for _ in range(_PRODUCTS):
                np.multiply(vector, vector, product)
            passed = time.perf_counter() - began
            seconds[processor] = min(passed, seconds.get(processor, passed))
    return min(seconds, key=seconds.__getitem__)


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
