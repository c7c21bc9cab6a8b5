"""A results file's content by model and backend, for the page and the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wasmgraph.records import RunInfo, read_results, table


@dataclass(frozen=True)
class Row:
    """One backend on one model: the records of all its tests merged; ``rounds_s`` of the latency."""

    model: str
    backend: str
    values: Mapping[str, Any]
    median_s: float | None
    rounds_s: Sequence[float]
    compile_s: float | None
    profile: Sequence[Mapping[str, Any]] = ()
    doubts: Sequence[Mapping[str, Any]] = ()

    @property
    def unstable(self) -> str | None:
        """Why the rounds cannot be relied on, with a remedy; None if they are steady."""
        return self.get("unstable") or None

    def get(self, key: str) -> Any:
        """A field of the merged record, None where it was not measured."""
        return self.values.get(key)


@dataclass(frozen=True)
class Summary:
    """A results file: rows in order of latency a model; by backend the harness's overhead and what a change
    of a dimension costs; the run."""

    path: Path
    rows: Sequence[Row]
    overhead_s: Mapping[str, float]
    change_s: Mapping[str, float]
    info: RunInfo
    machine: Mapping[str, Any]
    commit: Mapping[str, Any]
    datetime: str

    @property
    def cpu(self) -> Mapping[str, Any]:
        """What pytest-benchmark tells of the processor."""
        cpu = self.machine.get("cpu")
        return cpu if isinstance(cpu, dict) else {}

    @property
    def models(self) -> list[str]:
        """Model names in the order in which they were measured."""
        return list(dict.fromkeys(row.model for row in self.rows))


def summarize(path: str | Path) -> Summary:
    """Read a results file.

    Raises
    ------
    RecordError
        It is not a results file.
    """
    data = read_results(path)
    frame = table(data, path)
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    rounds: dict[tuple[str, str], list[float]] = {}
    medians: dict[tuple[str, str], float] = {}
    compiles: dict[tuple[str, str], float] = {}
    overhead: dict[str, float] = {}
    changes: dict[str, float] = {}
    profiles, doubts = (_tables(data, name) for name in ("profile", "doubts"))
    for raw in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        row = {str(key): value for key, value in raw.items()}
        test, key = row["test"], (row["model"], row["backend"])
        if test == "test_noop":
            overhead[row["backend"]] = row["median_s"]
            continue
        if test == "test_change":
            if row["change_s"] is not None:
                changes[row["backend"]] = row["change_s"]
            continue
        values = merged.setdefault(key, {})
        values.update({k: v for k, v in row.items() if v is not None and k != "rounds_s"})
        if test == "test_latency":
            rounds[key], medians[key] = row["rounds_s"], row["median_s"]
        elif test == "test_compile":
            compiles[key] = row["median_s"]
    rows = [
        Row(
            *key,
            values,
            medians.get(key),
            rounds.get(key, []),
            compiles.get(key),
            profiles.get(key, ()),
            doubts.get(key, ()),
        )
        for key, values in merged.items()
    ]
    order = list(dict.fromkeys(row.model for row in rows))
    rows.sort(key=lambda row: (order.index(row.model), row.median_s or float("inf")))
    return Summary(
        Path(path),
        rows,
        overhead,
        changes,
        RunInfo.of(data, path),
        data.get("machine_info") or {},
        data.get("commit_info") or {},
        str(data.get("datetime", "")),
    )


def _tables(data: Mapping[str, Any], name: str) -> dict[tuple[str, str], Any]:
    """A table in ``extra_info``, by model and backend."""
    extras = [benchmark["extra_info"] for benchmark in data["benchmarks"]]
    return {(extra["model"], extra["backend"]): extra[name] for extra in extras if name in extra}


def summary_json(summaries: Sequence[Summary], report: Path) -> str:
    """Every row of the results, without its rounds."""
    rows = [
        {key: value for key, value in row.values.items() if key not in ("test", "rounds")}
        | {"median_s": row.median_s, "compile_s": row.compile_s, "results": str(summary.path)}
        for summary in summaries
        for row in summary.rows
    ]
    return json.dumps({"report": str(report), "rows": rows}, indent=1, default=str)


def engines(summary: Summary) -> list[tuple[str, str]]:
    """Every engine with its version and configuration, as recorded."""
    found = [(str(row.get("engine")), str(row.get("engine_config"))) for row in summary.rows]
    return list(dict.fromkeys(found))


def format_ratio(row: Row) -> str:
    """``4.91 × [4.85, 4.97]``, or nothing without a reference."""
    if row.get("ratio") is None:
        return ""
    if row.get("reference") == row.backend:
        return "1 (reference)"
    return f"{row.get('ratio'):.2f} × [{row.get('ratio_low'):.2f}, {row.get('ratio_high'):.2f}]"


def format_count(row: Row, key: str) -> str:
    """``19/20``, or a dash where there were no labels."""
    if row.get(key) is None:
        return "–"
    return f"{row.get(key):.0f}/{row.get('inputs'):.0f}"


def format_closeness(row: Row) -> str:
    """How far the least cosine is from 1, ``1.1e-12``, or a dash where there are no vectors of texts."""
    least = row.get("cosine_min")
    return "–" if least is None else format_difference(max(0.0, 1 - least))


def format_difference(value: Any) -> str:
    """``1.2e-06``, or a dash."""
    return "–" if value is None else f"{value:.1e}"


def format_bytes(value: Any) -> str:
    """Decimal units: ``49.9 kB``."""
    if value is None:
        return "–"
    size = float(value)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def format_ms(value: Any) -> str:
    """Seconds as milliseconds, three significant digits."""
    if value is None:
        return "–"
    return format_figure(float(value) * 1e3)


def format_figure(value: float) -> str:
    """Three significant digits, or all of a whole number, never an exponent for large ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def accuracy_words(row: Row) -> str:
    """What is known of a row's accuracy, in words."""
    if row.get("cosine_min") is not None:
        equal = format_count(row, "neighbours_agree")
        return (
            f"Its vectors' cosines with the reference's are at least 1 − {format_closeness(row)}, and the"
            f" nearest neighbour is the reference's of {equal} texts."
        )
    if row.get("top1") is not None:
        right, equal = format_count(row, "top1"), format_count(row, "agreement")
        return f"Top-1 is right on {right} photographs, and equal to the reference's on {equal}."
    if row.get("agreement") is not None:
        return f"Its first class is the reference's on {format_count(row, 'agreement')} inputs."
    return ""


def latency_words(row: Row) -> str:
    """What a row's latency means, in words."""
    if row.median_s is None:
        return f"{row.backend}: latency not measured."
    if row.get("ratio") is None or row.get("reference") == row.backend:
        return f"{row.backend} takes {format_ms(row.median_s)} ms."
    return (
        f"{row.backend} takes {row.get('ratio'):.2f}× [{row.get('ratio_low'):.2f},"
        f" {row.get('ratio_high'):.2f}] as long as {row.get('reference')}"
        f" ({format_ms(row.median_s)} ms)."
    )


def sentences(rows: Sequence[Row]) -> list[str]:
    """One sentence for each backend; an accuracy that all share comes once, at the end."""
    words = {accuracy_words(row) for row in rows}
    if len(words) == 1 and len(rows) > 1:
        (common,) = words
        return [*map(latency_words, rows), *([f"Every backend: {common}"] if common else [])]
    return [f"{latency_words(row)} {accuracy_words(row)}".strip() for row in rows]
