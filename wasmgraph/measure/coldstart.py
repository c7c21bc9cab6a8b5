"""How long a program waits for its first answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wasmgraph.runtimes.base import Session
from wasmgraph.tensors import Array


@dataclass(frozen=True)
class ColdStart:
    """Seconds of each repetition, from calling ``load``: until the session accepts inputs, and
    until the first outputs are there."""

    ready_s: list[float]
    first_output_s: list[float]


def cold_start(load: Callable[[], Session], feeds: Mapping[str, Array], repetitions: int) -> ColdStart:
    """Load, run once, close; repeatedly. The first repetition is untimed: it fills the cache with compiled
    code and digests, as the very first start of a program does."""
    ready, first = [], []
    for number in range(repetitions + 1):
        began = time.perf_counter()
        with load() as session:
            accepting = time.perf_counter()
            session.run(feeds)
            done = time.perf_counter()
        if number:
            ready.append(accepting - began)
            first.append(done - began)
    return ColdStart(ready, first)
