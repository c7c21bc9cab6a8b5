"""The result table that ``make bench`` ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from wasmgraph.report.decomposition import Change, decomposition
from wasmgraph.report.goals import Goal, goals
from wasmgraph.report.summary import (
    Row,
    Summary,
    format_bytes,
    format_count,
    format_difference,
    format_figure,
    format_ms,
    format_ratio,
)
from wasmgraph.report.sweep import Sweep, sweeps
from wasmgraph.text import terminal


def result_table(summary: Summary, console: Console) -> None:
    """Print one table a model, after the run's notices; names from files are escaped."""
    for notice in summary.info.notices:
        console.print(f"[bold yellow]{terminal(notice)}[/]")
    for model in summary.models:
        rows = [row for row in summary.rows if row.model == model]
        first = rows[0]
        length = f", {first.get('length'):.0f} tokens" if first.get("length") else ""
        title = f"{model} ({first.get('weights')} weights, batch {first.get('batch')}{length};"
        title += " :N is N threads)"
        table = Table(title=terminal(title), title_justify="left")
        table.add_column("backend")
        columns = ("median ms", "over reference [95 %]", "top-1", "top-5", "agreement")
        for column in (*columns, "max Δ prob", "max Δ logit", "ready ms", "without params"):
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(
                terminal(row.backend),
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
        _rounds(rows, console)
        _decomposition(decomposition(rows), console)
        _deployment(rows, console)
        _goals(goals(summary, model), console)
    for found in sweeps(summary):
        _sweep(found, console)
    for name, seconds in summary.overhead_s.items():
        console.print(f"harness overhead, {terminal(name)}: {seconds * 1e6:.0f} µs a call")
    for name, seconds in summary.change_s.items():
        console.print(f"change of a dimension, {terminal(name)}: {seconds * 1e6:.0f} µs more")
    for title, cases in (("skipped", summary.info.skipped), ("failed", summary.info.failed)):
        for case, reason in cases.items():
            console.print(f"[bold]{title}[/]: {terminal(case)}: {terminal(reason)}")


def _rounds(rows: Sequence[Row], console: Console) -> None:
    """How the rounds of each backend spread, and which cannot be relied on."""
    measured = [row for row in rows if row.get("mad_s") is not None]
    if not measured:
        return
    table = Table(title="rounds of the latency; nothing was removed", title_justify="left")
    table.add_column("backend")
    for column in ("rounds", "median ms", "p90 ms", "p99 ms", "MAD ms", "warm-up", "outliers"):
        table.add_column(column, justify="right")
    for row in measured:
        table.add_row(
            terminal(row.backend),
            str(len(row.rounds_s)),
            *(format_ms(s) for s in (row.median_s, row.get("p90_s"), row.get("p99_s"), row.get("mad_s"))),
            f"{row.get('warmup_rounds'):.0f}",
            f"{row.get('outliers'):.0f}",
        )
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for row in measured:
        if row.get("unstable"):
            what, _, remedy = row.get("unstable").partition(": ")
            reasons.setdefault(remedy, []).append(f"{row.backend} ({what})")
    for remedy, backends in reasons.items():
        console.print(
            f"[bold yellow]unstable[/]: {terminal('; '.join(backends))}. Remedy: {terminal(remedy)}."
        )


def _deployment(rows: Sequence[Row], console: Console) -> None:
    measured = [row for row in rows if row.get("sessions") is not None]
    if not measured:
        return
    count = f"{measured[0].get('sessions'):.0f}"
    table = Table(title=f"deployed: {count} sessions at once, each in a thread", title_justify="left")
    table.add_column("backend")
    columns = (
        "runs/s",
        "p50 ms",
        "p99 ms",
        "one more session",
        "graph on disk",
        "engine on disk",
        "ready ms",
    )
    for column in (*columns, "first output ms"):
        table.add_column(column, justify="right")
    for row in measured:
        table.add_row(
            terminal(row.backend),
            format_figure(row.get("runs_per_s")),
            format_ms(row.get("sessions_p50_s")),
            format_ms(row.get("sessions_p99_s")),
            format_bytes(row.get("session_bytes")),
            format_bytes(row.get("artifact_bytes")),
            format_bytes(row.get("engine_bytes")),
            format_ms(row.get("ready_s")),
            format_ms(row.get("first_output_s")),
        )
    console.print(table)


def _sweep(found: Sweep, console: Console) -> None:
    title = terminal(found.title)
    table = Table(title=title, title_justify="left")
    for column in found.columns:
        table.add_column(terminal(column), justify="right", overflow="fold")
    for cells in found.cells:
        table.add_row(*map(terminal, cells))
    console.print(table)


def _decomposition(changes: Sequence[Change], console: Console) -> None:
    if not changes:
        return
    table = Table(title="from native to scalar WebAssembly", title_justify="left")
    table.add_column("backend")
    table.add_column("what changes")
    for column in ("median ms", "factor"):
        table.add_column(column, justify="right")
    for change in changes:
        factor = "–" if change.factor is None else f"{change.factor:.2f} ×"
        table.add_row(terminal(change.backend), change.what, format_ms(change.median_s), factor)
    console.print(table)


def _goals(found: Sequence[Goal], console: Console) -> None:
    if not found:
        return
    table = Table(title="goals", title_justify="left")
    table.add_column("figure")
    for column in ("measured", "at least", "aim"):
        table.add_column(column, justify="right")
    table.add_column("")
    for goal in found:
        verdict = {None: "not measured", True: "reached", False: "[bold]NOT REACHED[/]"}[goal.reached]
        bound, aim = f"{goal.sign} {goal.show(goal.bound)}", goal.show(goal.aim)
        table.add_row(terminal(goal.figure), goal.show(goal.measured), bound, aim, verdict)
    console.print(table)


def profile_table(
    kernels: Sequence[Mapping[str, Any]], roofline: Mapping[str, float], console: Console
) -> None:
    """Print a profile: one row a kernel, as ``measure.profile.OperatorTime`` has them."""
    table = Table(title=_roofline_words(roofline), title_justify="left")
    for column in ("kernel", "rule"):
        table.add_column(column)
    for column in ("calls", "ms", "share", "GFLOP/s", "of roofline"):
        table.add_column(column, justify="right")
    for row in kernels:
        rate, share = row["gflops_per_s"], row["roofline_share"]
        table.add_row(
            terminal(row["kernel"]),
            terminal(row["rule"]),
            str(row["calls"]),
            f"{row['seconds'] * 1e3:.3f}",
            f"{row['share']:.1%}",
            "–" if rate is None else f"{rate:.1f}",
            "–" if share is None else f"{share:.0%}{' slow' if row['slow'] else ''}",
        )
    console.print(table)
    total = sum(row["seconds"] for row in kernels)
    text = f"{total * 1e3:.1f} ms in {sum(row['calls'] for row in kernels)} calls"
    slow = sum(row["calls"] for row in kernels if row["slow"])
    if slow:
        text += f"; {slow} are slow: products that take over four times as long as the roofline allows"
    console.print(text)


def _roofline_words(roofline: Mapping[str, float]) -> str:
    peak, read = roofline["flops_per_s"] * 1e-9, roofline["bytes_per_s"] * 1e-9
    return f"roofline measured now: {peak:.1f} GFLOP/s, {read:.1f} GB/s read"
