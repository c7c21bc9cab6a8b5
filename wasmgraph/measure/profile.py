"""Where an inference spends its time: every call of the plan timed in the order of the run, so
that caches hold what they hold in a real inference, not one warm kernel.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from wasmgraph.runtimes.base import Session
from wasmgraph.tensors import Array

PEAK, FILL, STREAM = 0, 1, 2  # the steps of a roofline artifact
_ROOFLINE_ROUNDS = 7


@dataclass(frozen=True)
class Roofline:
    """The most that a core does here: floating-point operations, and bytes read, a second."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class StepTime:
    """One call of the plan: median seconds over the rounds, and what it had to do."""

    kernel: str
    operator: str
    rule: str
    flops: int
    traffic_bytes: int
    seconds: float


@dataclass(frozen=True)
class OperatorTime:
    """All calls of one kernel together. ``share`` is of the whole run's time; ``roofline_share``
    is flops a second over the roofline's peak (a Winograd convolution, whose flops are counted as
    if direct, may exceed 1), None without a roofline or without flops."""

    kernel: str
    operator: str
    rule: str
    calls: int
    seconds: float
    share: float
    gflops_per_s: float | None
    roofline_share: float | None


def profile_steps(
    session: Session,
    feeds: Mapping[str, Array],
    steps: Sequence[tuple[str, str, str, int, int]],
    rounds: int,
) -> list[StepTime]:
    """Time every step, ``rounds`` times through the whole plan, after one untimed run.

    Parameters
    ----------
    steps : for each call its kernel, operator, rule, flops and traffic in bytes
    """
    session.run(feeds)
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for index, times in enumerate(seconds):
            began = time.perf_counter()
            session.run_step(index)
            times.append(time.perf_counter() - began)
    return [StepTime(*step, median(times)) for step, times in zip(steps, seconds, strict=True)]


def measure_roofline(session: Session, flops: int, traffic_bytes: int) -> Roofline:
    """Run a roofline artifact: the best of several rounds of computing and of reading."""
    session.run_step(FILL)  # memory that nobody wrote is one shared page of zeros
    best = {}
    for step in (PEAK, STREAM):
        times = []
        for _ in range(_ROOFLINE_ROUNDS):
            began = time.perf_counter()
            session.run_step(step)
            times.append(time.perf_counter() - began)
        best[step] = min(times)
    return Roofline(flops / best[PEAK], traffic_bytes / best[STREAM])


def by_kernel(steps: Sequence[StepTime], roofline: Roofline | None) -> list[OperatorTime]:
    """Steps summed by kernel, longest first."""
    total = sum(step.seconds for step in steps)
    groups: dict[str, list[StepTime]] = {}
    for step in steps:
        groups.setdefault(step.kernel, []).append(step)
    found = []
    for kernel, group in groups.items():
        seconds = sum(step.seconds for step in group)
        flops = sum(step.flops for step in group)
        rate = flops / seconds if flops else None
        found.append(
            OperatorTime(
                kernel,
                group[0].operator,
                group[0].rule,
                len(group),
                seconds,
                seconds / total,
                None if rate is None else rate * 1e-9,
                None if rate is None or roofline is None else rate / roofline.flops_per_s,
            )
        )
    return sorted(found, key=lambda operator: -operator.seconds)


def roofline_share(steps: Sequence[StepTime], rule: str, roofline: Roofline) -> float | None:
    """Share of the roofline that all steps of one rule reach together, weighted by time."""
    chosen = [step for step in steps if step.rule == rule]
    seconds = sum(step.seconds for step in chosen)
    return sum(s.flops for s in chosen) / seconds / roofline.flops_per_s if chosen else None


def time_share_without(steps: Sequence[StepTime], operator: str) -> float:
    """Share of the time that goes to steps whose operators do not include ``operator``."""
    total = sum(step.seconds for step in steps)
    return sum(s.seconds for s in steps if operator not in s.operator.split("+")) / total
