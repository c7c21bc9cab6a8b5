"""A results file as :mod:`.compare` needs it: deterministic metrics by model and backend, times by
benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wasmgraph.errors import RecordError
from wasmgraph.records import RunInfo, read_results

# Fields that must be equal for two records to be comparable, and the names of their differences.
_IDENTITY = {
    "model_sha256": "the model's file",
    "weights": "weights",
    "target": "the target",
    "threads": "the number of threads",
    "batch": "the batch",
    "length": "the length of texts",
    "dims": "the value of an open dimension",
}
ACCURACY = (
    *("top1", "top5", "agreement", "max_prob_diff", "max_logit_diff"),
    *("cosine_min", "neighbours_agree"),
)
DETERMINISTIC = (
    *("work_fuel", "module_bytes", "machine_code_bytes", "param_bytes", "arena_bytes", "peak_memory_bytes"),
    *("kernels", "ops_scheduled", "ops_fallback", "ops_slow"),
    *ACCURACY,
)
KERNEL_WORK = "kernel_work"
NOTED = ("ratio", "first_output_s", "session_bytes")


@dataclass
class Subject:
    """One backend on one model: its identity and its deterministic metrics. ``inputs`` (how many, which)
    are of the accuracy figures, ``kernel_work`` is fuel by kernel, a history keeps ``noted`` as well."""

    identity: Mapping[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    noted: dict[str, float] = field(default_factory=dict)
    kernel_work: Mapping[str, float] = field(default_factory=dict)
    inputs: tuple[float, str] | None = None


@dataclass(frozen=True)
class Timing:
    """A benchmark's rounds in seconds, in the order in which they were measured."""

    test: str
    subject: str
    rounds_s: list[float]
    median_s: float


@dataclass(frozen=True)
class Run:
    """A results file."""

    path: Path
    info: RunInfo
    architecture: str
    commit: str
    dirty: bool
    datetime: str
    subjects: Mapping[str, Subject]
    timings: Mapping[str, Timing]


def read_run(path: str | Path) -> Run:
    """Read a results file for comparison.

    Raises
    ------
    RecordError
        It is no results file, not wasmgraph's, of a newer schema, or contradicts itself.
    """
    data = read_results(path)
    if "wasmgraph" not in data:
        raise RecordError(f"{path} is a pytest-benchmark file, but not of `pytest bench`.")
    subjects: dict[str, Subject] = {}
    timings: dict[str, Timing] = {}
    for number, benchmark in enumerate(data["benchmarks"]):
        try:
            name, extra, stats = benchmark["name"], benchmark["extra_info"], benchmark["stats"]
            key = f"{extra['model']}-{extra['backend']}"
            if not isinstance(name, str) or name in timings:
                raise ValueError(f"the name {name!r}, a second time")
            _gather(subjects, key, extra)
            rounds = [_number("a round", value) for value in stats.get("data") or []]
            median = _number("median", stats["median"])
            timings[name] = Timing(name.split("[", 1)[0], key, rounds, median)
        except KeyError as error:
            raise RecordError(f"{path}: benchmark {number} has no {error}.") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RecordError(f"{path}: benchmark {number} has {error}.") from error
    machine = data.get("machine_info")
    commit = data.get("commit_info")
    return Run(
        Path(path),
        RunInfo.of(data, path),
        str(machine.get("machine", "unknown")) if isinstance(machine, dict) else "unknown",
        str(commit.get("id") or "unknown")[:12] if isinstance(commit, dict) else "unknown",
        bool(commit.get("dirty")) if isinstance(commit, dict) else False,
        str(data.get("datetime", "")),
        subjects,
        timings,
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} {value!r}, which is no number")
    return float(value)


def _gather(subjects: dict[str, Subject], key: str, extra: Mapping[str, Any]) -> None:
    """Every benchmark of a backend repeats the backend's metrics: they must agree, and one copy is kept."""
    identity = {name: extra.get(name) for name in _IDENTITY}
    subject = subjects.setdefault(key, Subject(identity))
    if subject.identity != identity:
        raise ValueError(f"another identity than other benchmarks of {key}")
    for name in DETERMINISTIC:
        value = extra.get(name)
        if value is None:
            continue
        number = _number(name, value)
        known = subject.metrics.setdefault(name, number)
        if known != number and not (math.isnan(known) and math.isnan(number)):
            raise ValueError(f"{name} {value!r}, while another benchmark of {key} has {known!r}")
    subject.noted |= {name: _number(name, extra[name]) for name in NOTED if extra.get(name) is not None}
    if KERNEL_WORK in extra:
        subject.kernel_work = {str(name): _number(name, fuel) for name, fuel in extra[KERNEL_WORK].items()}
    if extra.get("inputs") is not None:
        subject.inputs = (_number("inputs", extra["inputs"]), str(extra.get("inputs_sha256", "")))


def why_not_the_same(base: Subject, head: Subject) -> str | None:
    """The reason why two subjects cannot be compared."""
    for name, words in _IDENTITY.items():
        if base.identity[name] != head.identity[name]:
            return f"{words} is another: {_short(base.identity[name])}, {_short(head.identity[name])}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "…"
