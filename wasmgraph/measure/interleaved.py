"""Latency of several backends in one run, measured in turn, so that a disturbance affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from wasmgraph.measure.processors import on_quiet_processor

_CONFIDENCE = 0.95
_RESAMPLES = 2000
_SEED = 0
_LONG = 0.02  # seconds: longer calls outlast a quiet moment, and a probe is short beside them


@dataclass(frozen=True)
class Schedule:
    """``blocks`` times, every backend makes ``calls`` timed calls in a row, after one untimed call.

    The untimed call brings caches and clock frequency back after another backend's turn. Disturbances last
    longer than a block: many short blocks see more of them evenly than few long ones.
    """

    blocks: int = 12
    calls: int = 2


@dataclass(frozen=True)
class Ratio:
    """Ratio of medians, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


Block = Callable[[int], list[float]]  # makes this many timed calls after an untimed one → their seconds


def block_of(call: Callable[[], object], threads: int = 1) -> Block:
    """The block that calls ``call``, which computes with ``threads`` threads; see :mod:`.processors`."""

    def timed() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def block(calls: int) -> list[float]:
        with on_quiet_processor(threads):
            if timed() < _LONG:
                return [timed() for _ in range(calls)]
        seconds = []
        for _ in range(calls):
            with on_quiet_processor(threads):
                seconds.append(timed())
        return seconds

    return block


def interleave(blocks: Mapping[str, Block], schedule: Schedule) -> dict[str, list[float]]:
    """Measure all backends in short blocks, round-robin; the order rotates by one each block.

    Returns
    -------
    By name, seconds of each timed call: ``schedule.blocks * schedule.calls`` of them.
    """
    rounds: dict[str, list[float]] = {name: [] for name in blocks}
    order = list(blocks)
    for number in range(schedule.blocks):
        turn = number % len(order) if order else 0
        for name in order[turn:] + order[:turn]:
            rounds[name].extend(blocks[name](schedule.calls))
    return rounds


def pair(
    base: Callable[[], float], head: Callable[[], float], pairs: int
) -> tuple[list[float], list[float]]:
    """Measure two sides call beside call, after an untimed call of each.

    The two calls of a pair run at nearly the same moment and leave the caches in nearly the same state;
    their order alternates. On a shared machine a pair is worth several calls in blocks, because neighbours
    come and go, but calls are alike for some tens of milliseconds.

    Parameters
    ----------
    base, head : make one call and return its seconds
    """
    sides = base, head
    found: tuple[list[float], list[float]] = ([], [])
    for side in sides:
        side()
    for number in range(pairs):
        for which in (number % 2, 1 - number % 2):
            found[which].append(sides[which]())
    return found


def ratio_of_medians(rounds: list[float], reference: list[float], schedule: Schedule) -> Ratio:
    """Median of ``rounds`` over median of ``reference``, both from one :func:`interleave`.

    The interval resamples whole blocks, in pairs (percentile bootstrap: Efron & Tibshirani,
    1993, ch. 13): rounds of one block share whatever disturbed it. The interval always
    contains the ratio, whose last bits may differ from those of the resamples that equal it.
    """
    shape = (schedule.blocks, schedule.calls)
    ours, theirs = np.reshape(rounds, shape), np.reshape(reference, shape)

    def statistic(index: np.ndarray) -> float:
        chosen = index.astype(int)
        return float(np.median(ours[chosen]) / np.median(theirs[chosen]))

    value = statistic(np.arange(schedule.blocks))
    if schedule.blocks < 2:
        return Ratio(value, value, value)
    found = bootstrap(
        (np.arange(schedule.blocks),),
        statistic,
        vectorized=False,
        confidence_level=_CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    low, high = found.confidence_interval
    return Ratio(value, min(value, float(low)), max(value, float(high)))
