"""Figures from run to run: an append-only file of JSON lines, and the steps in it.

One line is one backend on one model in one run: ``{"schema": 1, "run": …, "datetime": …, "commit": …,
"host": …, "series": "resnet50-wasm32@wasmtime", "of": {"model": …, "inputs": …}, "values": {"ratio": …}}``.
``of`` holds digests of the model's file and of the inputs; a new trend begins when they change. A ``+``
marks a commit with changes. A line that was cut off while it was written is not JSON: it is counted, never
read as data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wasmgraph.analysis.runs import read_run
from wasmgraph.errors import RecordError, needing
from wasmgraph.files import cache_lock

SCHEMA = 1
# What a benchmark's median is called.
_MEDIANS = {"test_latency": "latency_s", "test_compile": "compile_s", "test_cold_start": "ready_s"}
_WINDOW = 1000  # latest runs that are searched for steps
_SHORTEST = 3  # runs between two steps
_LEAST = 5e-4  # of a value: a smaller change is no step, however steady the other values are


class Point(NamedTuple):
    """A figure of one run. There are hundreds of thousands: a tuple."""

    datetime: str
    commit: str
    value: float


@dataclass(frozen=True)
class Step:
    """A lasting change: the first run of the new level, and the levels' medians before and after."""

    at: Point
    before: float
    after: float

    @property
    def words(self) -> str:
        """The change in words: ``+4.2%``, or ``0 to 5`` where there is no percentage."""
        if not self.before:
            return f"{self.before:g} to {self.after:g}"
        return f"{self.after / self.before - 1:+.1%}"


@dataclass(frozen=True)
class Trend:
    """One metric of one series on one host, in the order of time, and the steps in its latest runs."""

    series: str
    metric: str
    host: str
    points: Sequence[Point]
    steps: Sequence[Step]


@dataclass(frozen=True)
class History:
    """What a file holds; ``torn`` counts lines that are not whole, ``newer`` those of a newer schema."""

    trends: Sequence[Trend]
    lines: int
    torn: int
    newer: int


def add(history: Path, results: str | Path) -> int:
    """Append a results file's figures, one line for each new series. Returns how many lines were added.

    Raises
    ------
    RecordError
        The results cannot be read, or the history cannot be written.
    """
    lines = list(_lines(Path(results)))
    try:
        with cache_lock(history):
            known = set()
            tail = b""
            if history.exists():
                known = {(line["run"], line["series"]) for line in _read(history)[0]}
                with history.open("rb") as stream:
                    stream.seek(-min(1, history.stat().st_size), os.SEEK_END)
                    tail = stream.read()
            new = [line for line in lines if (line["run"], line["series"]) not in known]
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in new)
            # The rest of a killed writer's line becomes a line of its own, which is not JSON.
            start = "\n" if tail not in (b"", b"\n") else ""
            with history.open("ab") as stream:
                stream.write((start + text).encode())
                stream.flush()
                os.fsync(stream.fileno())
    except OSError as error:
        raise RecordError(f"{history} cannot be written: {error.strerror}.") from error
    return len(new)


def _lines(results: Path) -> Iterator[dict[str, Any]]:
    run = read_run(results)
    if not run.subjects:
        raise RecordError(f"{results} holds no benchmark: there is nothing to keep.")
    head = {
        "schema": SCHEMA,
        "run": hashlib.sha256(results.read_bytes()).hexdigest()[:16],
        "datetime": run.datetime,
        "commit": run.commit + ("+" if run.dirty else ""),
        "host": run.info.host or "unknown",
    }
    for series, subject in run.subjects.items():
        values = subject.metrics | subject.noted
        for timing in run.timings.values():
            if timing.subject == series and timing.test in _MEDIANS:
                values[_MEDIANS[timing.test]] = timing.median_s
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        inputs = None if subject.inputs is None else subject.inputs[1][:12]
        of = {"model": str(subject.identity["model_sha256"])[:12], "inputs": inputs}
        yield head | {"series": series, "of": of, "values": finite}


def _read(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Whole lines of a known schema, and how many are torn, and of a newer schema."""
    whole, torn, newer = [], 0, 0
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}.") from error
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if data["schema"] > SCHEMA:
                newer += 1
                continue
            for name in ("run", "datetime", "commit", "host", "series"):
                if not isinstance(data[name], str):
                    raise TypeError(name)
            data["of"] = json.dumps(data.get("of"), sort_keys=True)
            values = {str(name): float(value) for name, value in data["values"].items()}
            data["values"] = {name: value for name, value in values.items() if math.isfinite(value)}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            torn += 1
            continue
        whole.append(data)
    return whole, torn, newer


def read_history(path: Path, metrics: Sequence[str], series: str = "*") -> History:
    """The trends of some metrics of the series whose names match a pattern.

    Raises
    ------
    RecordError
        There is no such file, or nothing in it is a line of a history.
    MissingDependencyError
        ruptures, which finds steps, is not installed.
    """
    lines, torn, newer = _read(path)
    if not lines and (torn or newer):
        raise RecordError(f"{path} is no history: {torn} lines are not whole, {newer} of a newer schema.")
    lines.sort(key=lambda line: line["datetime"])
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["series"], line["host"], line["of"]), []).append(line)
    trends = [
        _trend(name, metric, host, runs)
        for (name, host, _), runs in sorted(found.items())
        if fnmatchcase(name, series)
        for metric in metrics
    ]
    return History([trend for trend in trends if trend.points], len(lines), torn, newer)


def _trend(series: str, metric: str, host: str, runs: Sequence[Mapping[str, Any]]) -> Trend:
    points = [
        Point(run["datetime"], run["commit"], run["values"][metric])
        for run in runs
        if metric in run["values"]
    ]
    return Trend(series, metric, host, points, steps(points))


def steps(points: Sequence[Point]) -> list[Step]:
    """Where the level of a figure changed permanently, in the latest thousand runs.

    Penalised least squares of piecewise constant logarithms (of values where one is zero), solved by pruned
    exact linear time (PELT: Killick, Fearnhead & Eckley, JASA 107, 2012), with the penalty 3 σ² log n; σ is
    estimated from the differences of neighbours, which steps hardly touch.
    """
    recent = points[-_WINDOW:]
    values = np.array([point.value for point in recent])
    if len(values) < 2 * _SHORTEST or np.ptp(values) == 0:
        return []
    with needing("finding steps", "report"):
        import ruptures
    signal = np.log(values) if (values > 0).all() else values / np.abs(values).max()
    differences = np.abs(np.diff(signal))
    sigma = max(float(np.median(differences)) / (0.6745 * math.sqrt(2)), _LEAST)
    penalty = 3 * sigma**2 * math.log(len(values))
    search = ruptures.KernelCPD(kernel="linear", min_size=_SHORTEST).fit(signal.reshape(-1, 1))
    ends = [0, *search.predict(pen=penalty)]
    found = []
    for begin, change, end in zip(ends, ends[1:], ends[2:], strict=False):
        before, after = float(np.median(values[begin:change])), float(np.median(values[change:end]))
        if abs(after - before) > _LEAST * abs(before):
            found.append(Step(recent[change], before, after))
    return found
