"""A history as a table in the terminal, as JSON, and as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wasmgraph.analysis.history import History, Step, Trend
from wasmgraph.errors import UsageError, needing
from wasmgraph.files import write_atomically
from wasmgraph.text import terminal

MOST_PLOTTED = 24


def trend_table(history: History, console: Console) -> None:
    """Print one row for each trend: number of runs, first and latest value, latest steps."""
    table = Table(title=f"{history.lines:,} lines", title_justify="left")
    for column in ("series", "metric", "host"):
        table.add_column(column)
    for column in ("runs", "first", "latest"):
        table.add_column(column, justify="right")
    table.add_column("steps, with the commit of the first run after each")
    for trend in history.trends:
        table.add_row(
            *(terminal(text) for text in (trend.series, trend.metric, trend.host)),
            str(len(trend.points)),
            *(f"{trend.points[i].value:.6g}" for i in (0, -1)),
            terminal("; ".join(_words(step) for step in trend.steps) or "none"),
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
    return f"{step.words} at {step.at.commit} ({step.at.datetime[:10]})"


def trend_plot(trends: Sequence[Trend], path: Path) -> None:
    """Write :func:`trend_svg` to a file.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    svg = trend_svg(trends)
    try:
        write_atomically(path, svg.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def trend_svg(trends: Sequence[Trend]) -> str:
    """Draw one panel for each trend: every run, and a line with the commit where the level changed.

    Raises
    ------
    UsageError
        There are too many trends for one plot.
    """
    if not 1 <= len(trends) <= MOST_PLOTTED:
        raise UsageError(
            f"{len(trends)} trends; a plot holds 1 to {MOST_PLOTTED}: choose with --series and --metric."
        )
    with needing("a plot", "report"):
        from wasmgraph.report.plots import trends_plot
    return trends_plot(trends)
