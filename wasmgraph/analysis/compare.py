"""Two results files, one verdict a series.

Deterministic metrics are judged against thresholds. Time is judged only where both files come from one
interleaved run on one host. There every round of the base was measured beside one of the head, in pairs of
processes. Each process has a bias of its own (where its memory lies), so the median ratio of a pair of
processes is one independent observation. The median of these ratios has an exact, distribution-free
interval (order statistics of the sign test: Conover, Practical Nonparametric Statistics, 1999, ch. 3.2).
Everything else is shown with the reason why it is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from wasmgraph.analysis.runs import ACCURACY, KERNEL_WORK, Run, Subject, Timing, read_run, why_not_the_same
from wasmgraph.analysis.thresholds import Limit, Thresholds, TimeLimit
from wasmgraph.records import Pairing, RunInfo

Outcome = Literal["worse", "better", "no significant difference", "not comparable"]
OUTCOMES: tuple[Outcome, ...] = ("worse", "better", "no significant difference", "not comparable")
TIME = "time"
_OF_THE_HOST = ("native", "native-128")  # compiled for the processor that they are compiled on
FAILURE = "failure"
BY_KERNEL = "work_fuel of "


@dataclass(frozen=True)
class Verdict:
    """A series is a metric of one backend on one model, or the time of one benchmark (in seconds).

    ``ratio`` is head over base, for time with its interval; ``why`` gives the reason where the outcome
    needs one.
    """

    series: str
    metric: str
    outcome: Outcome
    base: float | None
    head: float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """All verdicts, worst first; within one outcome, times first."""

    base: Run
    head: Run
    verdicts: Sequence[Verdict]

    def of(self, outcome: Outcome) -> list[Verdict]:
        """The verdicts of one outcome."""
        return [verdict for verdict in self.verdicts if verdict.outcome == outcome]

    @property
    def notices(self) -> list[str]:
        """Notices of both runs, to be shown first."""
        return list(dict.fromkeys([*self.base.info.notices, *self.head.info.notices]))

    @property
    def worse(self) -> bool:
        """Whether anything is worse. No improvement offsets that."""
        return any(verdict.outcome == "worse" for verdict in self.verdicts)

    @property
    def judged(self) -> int:
        """How many series could be compared."""
        return len(self.verdicts) - len(self.of("not comparable"))


def compare(base: str | Path, head: str | Path, thresholds: Thresholds) -> Comparison:
    """Compare two results files.

    Raises
    ------
    RecordError
        One of them cannot be read as a results file of the bench.
    """
    before, after = read_run(base), read_run(head)
    verdicts = [
        *_failures(before, after),
        *_subjects(before, after, thresholds),
        *_timings(before, after, thresholds.time),
    ]
    verdicts.sort(key=lambda verdict: (OUTCOMES.index(verdict.outcome), verdict.metric != TIME))
    return Comparison(before, after, verdicts)


def _failures(base: Run, head: Run) -> Iterator[Verdict]:
    """Backends that failed, even if they have figures as well. A failure in head alone is worse."""
    for case in dict.fromkeys([*base.info.failed, *head.info.failed]):
        before, after = base.info.failed.get(case), head.info.failed.get(case)
        outcome: Outcome = "worse" if before is None else "not comparable"
        where = "both" if before is not None and after is not None else "head" if before is None else "base"
        yield Verdict(case, FAILURE, outcome, None, None, why=f"failed in {where}: {after or before}")


def _subjects(base: Run, head: Run, thresholds: Thresholds) -> Iterator[Verdict]:
    for name in dict.fromkeys([*base.subjects, *head.subjects]):
        before, after = base.subjects.get(name), head.subjects.get(name)
        if before is None or after is None:
            yield _missing(name, "all", base, head, before is None)
            continue
        why = why_not_the_same(before, after)
        if why is None and base.architecture != head.architecture:
            why = "another architecture"
        if why is None and before.identity["target"] in _OF_THE_HOST and base.info.host != head.info.host:
            why = "native code of another machine"
        if why:
            yield Verdict(name, "all", "not comparable", None, None, why=why)
            continue
        yield from _metrics(name, before, after, thresholds)


def _missing(series: str, metric: str, base: Run, head: Run, in_base: bool) -> Verdict:
    """A series that one file lacks, with the reason if it was skipped there."""
    side, lacking = ("base", base) if in_base else ("head", head)
    skipped = [why for case, why in lacking.info.skipped.items() if case.replace(" on ", "-") == series]
    why = f"skipped in {side}: {skipped[0]}" if skipped else f"not in {side}"
    return Verdict(series, metric, "not comparable", None, None, why=why)


def _metrics(name: str, base: Subject, head: Subject, thresholds: Thresholds) -> Iterator[Verdict]:
    for metric in dict.fromkeys([*base.metrics, *head.metrics]):
        before, after = base.metrics.get(metric), head.metrics.get(metric)
        why = ""
        if metric in ACCURACY and base.inputs != head.inputs:
            why = "accuracy over other inputs"
        yield _judge(name, metric, before, after, thresholds.limit(name, metric), why)
    if bool(base.kernel_work) != bool(head.kernel_work):
        side = "head" if base.kernel_work else "base"
        yield Verdict(name, KERNEL_WORK, "not comparable", None, None, why=f"not in {side}")
        return
    limit = thresholds.limit(name, KERNEL_WORK)
    for kernel in dict.fromkeys([*base.kernel_work, *head.kernel_work]):
        pair = base.kernel_work.get(kernel), head.kernel_work.get(kernel)
        yield _judge(name, f"{BY_KERNEL}{kernel}", *pair, limit, "")


def _judge(
    series: str, metric: str, base: float | None, head: float | None, limit: Limit | None, why: str
) -> Verdict:
    ratio = head / base if base and head is not None else None
    if base is None or head is None:
        why = f"not in {'base' if base is None else 'head'}"
    elif math.isfinite(base) and not math.isfinite(head):
        return Verdict(series, metric, "worse", base, head, why="no finite number any more")
    elif not math.isfinite(base):
        why = "not a finite number in base"
    elif limit is None:
        why = why or "no threshold is set for it"
    if why or base is None or head is None or limit is None:
        return Verdict(series, metric, "not comparable", base, head, why=why)
    change = head - base if limit.better == "less" else base - head
    room = limit.relative * abs(base) + limit.absolute
    outcome: Outcome = "worse" if change > room else "better" if -change > room else OUTCOMES[2]
    return Verdict(series, metric, outcome, base, head, ratio)


def _timings(base: Run, head: Run, limit: TimeLimit) -> Iterator[Verdict]:
    apart = _why_apart(base.info, head.info)
    for name in dict.fromkeys([*base.timings, *head.timings]):
        before, after = base.timings.get(name), head.timings.get(name)
        if before is None or after is None:
            yield _missing(name, TIME, base, head, before is None)
            continue
        why = why_not_the_same(base.subjects[before.subject], head.subjects[after.subject]) or apart
        medians = before.median_s, after.median_s
        if why or head.info.pairing is None:
            yield Verdict(name, TIME, "not comparable", *medians, why=why or "")
        else:
            yield _judge_time(name, before, after, head.info.pairing, limit)


def _why_apart(base: RunInfo, head: RunInfo) -> str | None:
    if base.host != head.host or not base.host:
        return "time on another host"
    if base.pairing is None or head.pairing is None or base.pairing.run != head.pairing.run:
        return "time of another run: `wasmgraph regress` measures both revisions in one"
    if base.pairing.per_process != head.pairing.per_process:
        return "processes of another number of rounds"
    if (base.pairing.side, head.pairing.side) != ("base", "head"):
        return f"these are the {base.pairing.side} and the {head.pairing.side} of that run"
    return None


def _judge_time(series: str, base: Timing, head: Timing, pairing: Pairing, limit: TimeLimit) -> Verdict:
    medians = base.median_s, head.median_s
    rounds = np.array([*base.rounds_s, *head.rounds_s])
    processes, rest = divmod(len(base.rounds_s), pairing.per_process)
    why = ""
    if len(base.rounds_s) != len(head.rounds_s) or rest:
        why = f"{len(base.rounds_s)} rounds beside {len(head.rounds_s)}"
    elif not (np.isfinite(rounds) & (rounds > 0)).all():
        why = "a round that is no positive number"
    elif processes < limit.processes:
        why = f"{processes} pairs of processes, at least {limit.processes} are needed"
    if why:
        return Verdict(series, TIME, "not comparable", *medians, why=why)
    ratios = process_ratios(base.rounds_s, head.rounds_s, pairing.per_process)
    low, high = median_interval(ratios, limit.confidence)
    outcome: Outcome = OUTCOMES[2]
    if low > 1 + limit.least:
        outcome = "worse"
    elif high < 1 / (1 + limit.least):
        outcome = "better"
    return Verdict(series, TIME, outcome, *medians, float(np.median(ratios)), low, high)


def process_ratios(base: Sequence[float], head: Sequence[float], per_process: int) -> np.ndarray:
    """The median ratio of each pair of processes, from rounds that were measured beside each other."""
    ratios = np.divide(head, base).reshape(-1, per_process)
    medians: np.ndarray = np.median(ratios, axis=1)
    return medians


def median_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the median of independent values that holds with at least ``confidence``. With too few
    values it reaches from the least to the greatest."""
    ordered = np.sort(values)
    rank = _rank(len(ordered), confidence)
    return float(ordered[rank]), float(ordered[-1 - rank])


@cache
def _rank(count: int, confidence: float) -> int:
    """Most values that may be left out at each end: the largest r with P(Binomial(count, 1/2) ≤ r) ≤
    (1 - confidence) / 2."""
    rank = below = 0
    for left_out in range((count + 1) // 2):
        below += math.comb(count, left_out)
        if below / 2**count > (1 - confidence) / 2:
            break
        rank = left_out
    return rank
