"""How much a metric may change before the change counts as better or worse: ``thresholds.toml``."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from wasmgraph.analysis.runs import DETERMINISTIC, KERNEL_WORK
from wasmgraph.errors import RecordError

SCHEMA = 1
OWN = resources.files("wasmgraph.analysis").joinpath("thresholds.toml")


@dataclass(frozen=True)
class Limit:
    """A change within ``relative`` of the base value plus ``absolute`` (in the metric's unit) does not
    count."""

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


def read_thresholds(path: str | Path | None = None) -> Thresholds:
    """Read a thresholds file; without a path wasmgraph's own.

    Raises
    ------
    RecordError
        It cannot be read, is not TOML, or says something that is no threshold.
    """
    source = OWN if path is None else Path(path)
    try:
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{path} is not TOML: {error}.") from error
    if data.get("schema") != SCHEMA:
        raise RecordError(f"{path}: schema is {data.get('schema')!r}; this wasmgraph reads {SCHEMA}.")
    try:
        return Thresholds(
            {_metric(name): _limit(raw) for name, raw in data["metrics"].items()},
            _time_limit(data["time"]),
            tuple(_override(raw) for raw in data.get("override", ())),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecordError(
            f'{path}: {error}. Expected [metrics.NAME] with better = "less" or "more" and relative or'
            " absolute, and [time] with least, confidence, processes."
        ) from error


def _metric(name: str) -> str:
    if name not in (*DETERMINISTIC, KERNEL_WORK):
        raise ValueError(f"there is no metric {name!r}")
    return name


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, no finite number")
    return float(value)


def _time_limit(raw: Mapping[str, Any]) -> TimeLimit:
    limit = TimeLimit(**raw)
    for field in fields(limit):
        _finite(field.name, getattr(limit, field.name))
    if not (
        limit.least > 0
        and 0 < limit.confidence < 1
        and type(limit.processes) is int
        and limit.processes > 0
    ):
        raise ValueError("[time] has a value that is out of range")
    return limit


def _override(raw: Mapping[str, Any]) -> Override:
    if not isinstance(raw["series"], str):
        raise TypeError("an override's series is no text")
    rest = {key: value for key, value in raw.items() if key not in ("series", "metric")}
    return Override(raw["series"], _metric(raw["metric"]), _limit(rest))


def _limit(raw: Mapping[str, Any]) -> Limit:
    unknown = set(raw) - {field.name for field in fields(Limit)}
    if unknown or raw.get("better") not in ("less", "more"):
        raise ValueError(f"a limit has {dict(raw)!r}")
    limit = Limit(**raw)
    if min(_finite("relative", limit.relative), _finite("absolute", limit.absolute)) < 0:
        raise ValueError("a limit is negative")
    return limit
