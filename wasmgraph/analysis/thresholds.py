"""How much a metric may change before that is called better or worse: ``results/thresholds.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from wasmgraph.errors import RecordError

SCHEMA = 1


@dataclass(frozen=True)
class Limit:
    """A change within ``relative`` of the base value plus ``absolute`` (in the metric's unit) is none."""

    better: Literal["less", "more"]
    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class TimeLimit:
    """A change of time counts if the whole interval, at this ``confidence``, lies beyond ``least`` (a share
    of the base's time); with fewer pairs of ``processes`` it is not judged."""

    least: float
    confidence: float
    processes: int


@dataclass(frozen=True)
class Override:
    """Another limit for the metric of some series; ``series`` may hold ``*``."""

    series: str
    metric: str
    limit: Limit


@dataclass(frozen=True)
class Thresholds:
    """Limits by metric. A metric without a limit is not judged."""

    metrics: Mapping[str, Limit]
    time: TimeLimit
    overrides: Sequence[Override] = ()

    def limit(self, series: str, metric: str) -> Limit | None:
        """The limit of a series' metric: the last override that names it, else the metric's own."""
        chosen = self.metrics.get(metric)
        for override in self.overrides:
            if override.metric == metric and fnmatchcase(series, override.series):
                chosen = override.limit
        return chosen


def read_thresholds(path: str | Path) -> Thresholds:
    """Read a thresholds file.

    Raises
    ------
    RecordError
        It cannot be read, is not TOML, or says something that is no threshold.
    """
    try:
        data = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not TOML: {error}.") from error
    if data.get("schema") != SCHEMA:
        raise RecordError(f"{path}: schema is {data.get('schema')!r}; this wasmgraph reads {SCHEMA}.")
    try:
        time = TimeLimit(**data["time"])
        _positive(time.least, time.confidence, 1 - time.confidence, time.processes)
        return Thresholds(
            {name: _limit(raw) for name, raw in data["metrics"].items()},
            time,
            tuple(
                Override(raw["series"], raw["metric"], _limit(_only_limit(raw)))
                for raw in data.get("override", ())
            ),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordError(
            f'{path}: {error}. Expected [metrics.NAME] with better = "less" or "more" and relative or'
            " absolute, and [time] with least, confidence, processes."
        ) from error


def _positive(*values: float) -> None:
    if any(value <= 0 for value in values):
        raise ValueError("[time] has a value that is out of range")


def _only_limit(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in ("series", "metric")}


def _limit(raw: Mapping[str, Any]) -> Limit:
    unknown = set(raw) - {field.name for field in fields(Limit)}
    if unknown or raw.get("better") not in ("less", "more"):
        raise ValueError(f"a limit has {dict(raw)!r}")
    limit = Limit(**raw)
    if not (limit.relative >= 0 and limit.absolute >= 0):
        raise ValueError("a limit is negative")
    return limit
