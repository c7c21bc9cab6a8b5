"""A comparison as a table in the terminal, as Markdown for a pull request, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite

from rich.console import Console
from rich.table import Table

from wasmgraph.analysis import Comparison, Verdict
from wasmgraph.analysis.compare import BY_KERNEL, OUTCOMES, TIME
from wasmgraph.report.summary import format_bytes, format_ms
from wasmgraph.text import markdown, terminal

_STYLES = {"worse": "bold red", "better": "green"}
_COLUMNS = ("series", "metric", "base", "head", "change", "verdict")


def comparison_table(comparison: Comparison, console: Console, everything: bool = False) -> None:
    """Print what is worse or better, and why the rest was not compared; ``everything`` lists it all."""
    for notice in comparison.notices:
        console.print(f"[bold yellow]{terminal(notice)}[/]")
    console.print(terminal(_headline(comparison)))
    changed, kernels = _changed(comparison)
    shown = comparison.verdicts if everything else changed
    if shown:
        table = Table()
        for column in _COLUMNS:
            right = column in ("base", "head", "change")
            table.add_column(column, justify="right" if right else "left", overflow="fold")
        for verdict in shown:
            cells = [terminal(cell) for cell in _cells(verdict)]
            table.add_row(*cells, style=_STYLES.get(verdict.outcome))
        console.print(table)
    if not everything:
        if kernels:
            console.print(f"better: {len(kernels)} × work_fuel of a kernel")
        reasons = Counter(verdict.why for verdict in comparison.of("not comparable"))
        for why, count in reasons.most_common():
            console.print(terminal(f"not comparable: {count} × {why}"))
    console.print(terminal(_conclusion(comparison)))


def comparison_markdown(comparison: Comparison) -> str:
    """The same for a pull request; what comes from files is escaped."""
    lines = [
        "### wasmgraph: " + markdown(_conclusion(comparison)),
        "",
        markdown(_headline(comparison)),
        "",
    ]
    for notice in comparison.notices:
        lines += [markdown(notice), ""]
    changed, kernels = _changed(comparison)
    if changed:
        lines += _markdown_table(changed)
    rest = {"better, by kernel": kernels} | {outcome: comparison.of(outcome) for outcome in OUTCOMES[2:]}
    for words, found in rest.items():
        if found:
            lines += ["", f"<details><summary>{len(found)} × {words}</summary>", ""]
            lines += [*_markdown_table(found), "", "</details>"]
    return "\n".join(lines) + "\n"


def comparison_json(comparison: Comparison) -> str:
    """Every verdict, and the counts."""
    counts = {outcome: len(comparison.of(outcome)) for outcome in OUTCOMES}
    verdicts = [
        {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in row.items()
        }
        for row in map(asdict, comparison.verdicts)
    ]
    content = {"worse": comparison.worse, "counts": counts, "verdicts": verdicts}
    return json.dumps(content, indent=1, allow_nan=False)


def _changed(comparison: Comparison) -> tuple[list[Verdict], list[Verdict]]:
    """What is worse or better; kernels that do less work are apart, because there may be many."""
    better = comparison.of("better")
    kernels = [verdict for verdict in better if verdict.metric.startswith(BY_KERNEL)]
    others = [verdict for verdict in better if not verdict.metric.startswith(BY_KERNEL)]
    return [*comparison.of("worse"), *others], kernels


def _headline(comparison: Comparison) -> str:
    base, head = comparison.base, comparison.head
    return f"base {base.commit} ({base.path.name}), head {head.commit} ({head.path.name})"


def _conclusion(comparison: Comparison) -> str:
    counts = ", ".join(f"{len(comparison.of(outcome))} {outcome}" for outcome in OUTCOMES)
    return f"{'WORSE' if comparison.worse else 'not worse'}: {counts}"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    change = "" if verdict.ratio is None else f"{verdict.ratio - 1:+.2%}"
    if verdict.low is not None and verdict.high is not None:
        change += f" [{verdict.low - 1:+.1%}, {verdict.high - 1:+.1%}]"
    outcome = f"{verdict.outcome}: {verdict.why}" if verdict.why else verdict.outcome
    values = [_value(verdict.metric, value) for value in (verdict.base, verdict.head)]
    return (verdict.series, verdict.metric, *values, change, outcome)


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if metric == TIME:
        return f"{format_ms(value)} ms"
    if metric.endswith("_bytes") and value >= 1e6:
        return format_bytes(value)
    if metric.endswith("_diff"):
        return f"{value:.1e}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


def _markdown_table(verdicts: Sequence[Verdict]) -> list[str]:
    rows = ["| " + " | ".join(markdown(cell) for cell in _cells(verdict)) + " |" for verdict in verdicts]
    return ["| " + " | ".join(_COLUMNS) + " |", "|---|---|--:|--:|--:|---|", *rows]
