"""Where an inference spends its time: every call of the plan is timed in the order of the run, so that
caches hold what they hold in a real inference.

The best round counts, for steps and roofline alike. A profile is about the code, and neighbours on the core
only add time. (Latencies are medians.) Neighbours stay for seconds, so fast code is measured for as long as
slow code, not for as many rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wasmgraph.measure.processors import on_quiet_processor
from wasmgraph.runtimes.base import Session
from wasmgraph.tensors import Array

CHAINS, TILE, FILL, STREAM = range(4)  # the steps of a roofline artifact
DIRECT_RULES = ("direct-conv2d", "pointwise-conv2d")
PRODUCT_RULES, ATTENTION_RULES = ("dense",), ("attention", "product")
SLOW = 0.25  # a product that reaches a smaller share of its roofline is slow
_PATIENCE = 0.2  # seconds that a round waits for quiet; short, because there are many rounds
_PEAKS = 4  # they are short, so a round has several


@dataclass(frozen=True)
class Roofline:
    """The peak of the threads on this machine: floating-point operations and bytes read, a second."""

    flops_per_s: float
    bytes_per_s: float


class Work(Protocol):
    """What a call of a plan is and has to do; an artifact's manifest lists them."""

    @property
    def kernel(self) -> str: ...  # noqa: D102
    @property
    def operator(self) -> str: ...  # noqa: D102
    @property
    def rule(self) -> str: ...  # noqa: D102
    @property
    def flops(self) -> int: ...  # noqa: D102
    @property
    def traffic_bytes(self) -> int: ...  # noqa: D102
    @property
    def product(self) -> bool: ...  # noqa: D102
    @property
    def turns(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class StepTime:
    """One call of the plan: seconds of its best round, and what it had to do; in a loop, of all turns."""

    kernel: str
    operator: str
    rule: str
    flops: int
    traffic_bytes: int
    product: bool
    seconds: float
    turns: int = 1


@dataclass(frozen=True)
class OperatorTime:
    """All calls of one kernel together. ``share`` is of the whole run's time; ``roofline_share``
    is flops a second over the roofline's peak (a Winograd convolution, whose flops are counted as
    if direct, may exceed 1), None without flops; ``traffic_bytes`` are those of all operands, once.
    ``slow`` is a product that takes more than four times as long as its arithmetic at the peak, or as
    reading its operands from memory, whichever is longer."""

    kernel: str
    operator: str
    rule: str
    calls: int
    seconds: float
    share: float
    gflops_per_s: float | None
    roofline_share: float | None
    flops: int
    traffic_bytes: int
    slow: bool


@dataclass(frozen=True)
class Profile:
    """Every call's time, and the roofline measured between the rounds of the same minutes."""

    steps: list[StepTime]
    roofline: Roofline


def profile_steps(
    session: Session,
    feeds: Mapping[str, Array],
    steps: Sequence[Work],
    limit: Session,
    limit_steps: Sequence[Work],
    rounds: int,
    seconds: float = 0.0,
    threads: int = 1,
    done: Callable[[float], None] = lambda _: None,
) -> Profile:
    """Time every step, ``rounds`` times through the whole plan and for ``seconds`` at least, after one
    untimed run.

    Parameters
    ----------
    steps : the calls of the session's plan
    limit : the roofline artifact of the same target, run once after every round, so that steps and
        peak meet the same disturbances
    limit_steps : the calls of its plan
    threads : of both sessions; every one of them does the whole of the roofline's arithmetic
    done : called after each round with the share of rounds that is done
    """
    session.run(feeds)
    limit.run_step(FILL)  # unwritten memory is one shared page of zeros
    durations: list[list[float]] = [[] for _ in steps]
    chains: list[float] = []
    tiles: list[float] = []
    streams: list[float] = []

    def timed(run: Session, index: int, times: list[float]) -> None:
        began = time.perf_counter()
        run.run_step(index)
        times.append(time.perf_counter() - began)

    start, number, passed = time.perf_counter(), 0, 0.0
    while number < rounds or passed < seconds:
        with on_quiet_processor(threads, _PATIENCE):
            for index, times in enumerate(durations):
                timed(session, index, times)
            for _ in range(_PEAKS):
                timed(limit, CHAINS, chains)
                timed(limit, TILE, tiles)
            timed(limit, STREAM, streams)
        number, passed = number + 1, time.perf_counter() - start
        done(min(number / rounds, passed / seconds if seconds else 1.0, 1.0))
    roofline = Roofline(
        threads * max(limit_steps[CHAINS].flops / min(chains), limit_steps[TILE].flops / min(tiles)),
        limit_steps[STREAM].traffic_bytes / min(streams),
    )
    timings = [
        StepTime(
            s.kernel,
            s.operator,
            s.rule,
            s.turns * s.flops,
            s.turns * s.traffic_bytes,
            s.product,
            s.turns * min(times),
            s.turns,
        )
        for s, times in zip(steps, durations, strict=True)
    ]
    return Profile(timings, roofline)


def by_kernel(profile: Profile) -> list[OperatorTime]:
    """Steps summed by kernel, longest first."""
    steps, roofline = profile.steps, profile.roofline
    total = sum(step.seconds for step in steps)
    groups: dict[str, list[StepTime]] = {}
    for step in steps:
        groups.setdefault(step.kernel, []).append(step)
    found = []
    for kernel, group in groups.items():
        seconds = sum(step.seconds for step in group)
        flops = sum(step.flops for step in group)
        traffic = sum(step.traffic_bytes for step in group)
        least = max(flops / roofline.flops_per_s, traffic / roofline.bytes_per_s)
        rate = flops / seconds if flops else None
        found.append(
            OperatorTime(
                kernel,
                group[0].operator,
                group[0].rule,
                sum(step.turns for step in group),
                seconds,
                seconds / total,
                None if rate is None else rate * 1e-9,
                None if rate is None else rate / roofline.flops_per_s,
                flops,
                traffic,
                group[0].product and least < SLOW * seconds,
            )
        )
    return sorted(found, key=lambda operator: -operator.seconds)


def roofline_share(profile: Profile, rules: Sequence[str]) -> float | None:
    """Share of the roofline that all steps of some rules reach together, weighted by time."""
    rate = _rate(profile, rules, lambda step: step.flops)
    return None if rate is None else rate / profile.roofline.flops_per_s


def read_share(profile: Profile, rules: Sequence[str]) -> float | None:
    """Bytes of the operands of all steps of some rules a second, over those that the roofline reads."""
    rate = _rate(profile, rules, lambda step: step.traffic_bytes)
    return None if rate is None else rate / profile.roofline.bytes_per_s


def _rate(profile: Profile, rules: Sequence[str], amount: Callable[[StepTime], int]) -> float | None:
    """What all steps of some rules do a second; None if there are none."""
    chosen = [step for step in profile.steps if step.rule in rules]
    seconds = sum(step.seconds for step in chosen)
    return sum(map(amount, chosen)) / seconds if seconds else None


def time_share_outside(profile: Profile, rules: Sequence[str]) -> float | None:
    """Share of the time that goes to steps of other rules; None if no step has one of these."""
    total = sum(step.seconds for step in profile.steps)
    inside = sum(step.seconds for step in profile.steps if step.rule in rules)
    return 1 - inside / total if inside else None


def time_share_without(profile: Profile, operator: str) -> float:
    """Share of the time that goes to steps whose operators do not include ``operator``."""
    total = sum(step.seconds for step in profile.steps)
    rest = sum(s.seconds for s in profile.steps if operator not in s.operator.split("+"))
    return rest / total
