"""A history as a table in the terminal, as JSON, and as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wasmgraph.analysis.history import History, Step, Trend
from wasmgraph.errors import MissingDependencyError, UsageError

_MOST_PLOTTED = 24


def trend_table(history: History, console: Console) -> None:
    """Print a row a trend: how many runs, the first and latest value, the latest steps."""
    table = Table(title=f"{history.lines:,} lines", title_justify="left")
    for column in ("series", "metric", "host"):
        table.add_column(column)
    for column in ("runs", "first", "latest"):
        table.add_column(column, justify="right")
    table.add_column("steps, with the commit of the first run after each")
    for trend in history.trends:
        table.add_row(
            *(escape(text) for text in (trend.series, trend.metric, trend.host)),
            str(len(trend.points)),
            *(f"{trend.points[i].value:.6g}" for i in (0, -1)),
            escape("; ".join(_words(step) for step in trend.steps) or "none"),
        )
    console.print(table)
    if history.torn:
        console.print(f"[bold yellow]{history.torn} lines are not whole and were left out[/]")
    if history.newer:
        console.print(f"[bold yellow]{history.newer} lines are of a newer wasmgraph and were left out[/]")


def trend_json(history: History) -> str:
    """Every trend with its points and steps."""
    trends = [
        asdict(trend)
        | {
            "points": [point._asdict() for point in trend.points],
            "steps": [asdict(step) | {"at": step.at._asdict()} for step in trend.steps],
        }
        for trend in history.trends
    ]
    return json.dumps(asdict(history) | {"trends": trends}, indent=1)


def _words(step: Step) -> str:
    return f"{step.after / step.before - 1:+.1%} at {step.at.commit} ({step.at.datetime[:10]})"


def trend_plot(trends: Sequence[Trend], path: Path) -> None:
    """Draw a panel a trend: every run, a line where the level changed, its commit beside it.

    Raises
    ------
    UsageError
        There are more trends than a reader can look at.
    """
    if len(trends) > _MOST_PLOTTED or not trends:
        raise UsageError(
            f"{len(trends)} trends; a plot holds 1 to {_MOST_PLOTTED}: choose with --series and --metric."
        )
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingDependencyError("plots need: pip install 'wasmgraph[report]'.") from error

    figure, axes = plt.subplots(len(trends), 1, figsize=(9, 2.2 * len(trends)), squeeze=False)
    for axis, trend in zip(axes[:, 0], trends, strict=True):
        values = [point.value for point in trend.points]
        axis.plot(values, ".-", color="#4477aa", linewidth=0.6, markersize=3)
        for step in trend.steps:
            at = trend.points.index(step.at)
            axis.axvline(at - 0.5, color="#cc3311", linewidth=1)
            label = f"{step.after / step.before - 1:+.1%}\n{step.at.commit}"
            axis.annotate(label, (at - 0.5, 0.04), xycoords=("data", "axes fraction"), fontsize=7)
        axis.set_ylim(0, max(values) * 1.15)
        axis.set_title(f"{trend.series}, host {trend.host}", fontsize=9, loc="left", parse_math=False)
        axis.set_ylabel(trend.metric, fontsize=8)
        axis.set_xlabel("run", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, format="svg")
    plt.close(figure)
