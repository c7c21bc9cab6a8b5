"""Results as Markdown, for a document or a pull request; what comes from files is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wasmgraph.report.summary import (
    Row,
    Summary,
    format_count,
    format_difference,
    format_ms,
    format_ratio,
)
from wasmgraph.report.sweep import Sweep, sweeps
from wasmgraph.text import markdown


def markdown_table(head: Sequence[str], text_columns: int, rows: Iterable[Sequence[str]]) -> str:
    """A table whose first ``text_columns`` are text and whose others are figures."""
    align = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows))


def sweep_markdown(found: Sweep) -> str:
    """A network over the values of its dimensions."""
    return markdown_table([markdown(name) for name in found.columns], 0, found.cells)


def summary_markdown(summary: Summary) -> str:
    """A results file: one table a model, and one a network at several values of its dimensions."""
    parts = [f"## {markdown(summary.path.name)}", *map(markdown, summary.info.notices)]
    swept = sweeps(summary)
    shown = {row.model for found in swept for row in found.rows}
    for found in swept:
        parts += [f"### {markdown(found.network)}", sweep_markdown(found)]
    for model in summary.models:
        if model not in shown:
            rows = [row for row in summary.rows if row.model == model]
            parts += [f"### {markdown(model)}", _latencies(rows)]
    for title, cases in (("Skipped", summary.info.skipped), ("Failed", summary.info.failed)):
        parts += [f"{title}: {markdown(case)}: {markdown(why)}" for case, why in cases.items()]
    return "\n\n".join(parts) + "\n"


def _latencies(rows: Sequence[Row]) -> str:
    head = (
        "backend",
        "median, ms",
        "over reference [95 %]",
        "top-1",
        "agreement",
        "largest Δ",
        "ready, ms",
    )
    cells = (
        [
            markdown(row.backend),
            format_ms(row.median_s),
            format_ratio(row),
            format_count(row, "top1"),
            format_count(row, "agreement"),
            format_difference(row.get("max_prob_diff")),
            format_ms(row.get("ready_s")),
        ]
        for row in rows
    )
    return markdown_table(head, 1, cells)
