"""The result table that ``make bench`` ends with."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wasmgraph.report.summary import (
    Summary,
    format_bytes,
    format_count,
    format_difference,
    format_ms,
    format_ratio,
)


def result_table(summary: Summary, console: Console) -> None:
    """Print one table a model, after the run's notices; names from files are escaped."""
    for notice in summary.info.notices:
        console.print(f"[bold yellow]{escape(notice)}[/]")
    for model in summary.models:
        rows = [row for row in summary.rows if row.model == model]
        first = rows[0]
        how = f"{first.get('threads')} thread(s), batch {first.get('batch')}"
        title = f"{model} ({first.get('weights')} weights, {how})"
        table = Table(title=escape(title), title_justify="left")
        table.add_column("backend")
        columns = ("median ms", "over reference [95 %]", "top-1", "top-5", "agreement")
        for column in (*columns, "max Δ prob", "max Δ logit", "ready ms", "without params"):
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(
                escape(row.backend),
                format_ms(row.median_s),
                format_ratio(row),
                format_count(row, "top1"),
                format_count(row, "top5"),
                format_count(row, "agreement"),
                format_difference(row.get("max_prob_diff")),
                format_difference(row.get("max_logit_diff")),
                format_ms(row.get("ready_s")),
                format_bytes(row.get("module_bytes")),
            )
        console.print(table)
    for name, seconds in summary.overhead_s.items():
        console.print(f"harness overhead, {escape(name)}: {seconds * 1e6:.0f} µs a call")
    for title, cases in (("skipped", summary.info.skipped), ("failed", summary.info.failed)):
        for case, reason in cases.items():
            console.print(f"[bold]{title}[/]: {escape(case)}: {escape(reason)}")
