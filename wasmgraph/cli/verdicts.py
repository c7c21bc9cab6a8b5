"""Commands that show and judge results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmgraph.cli.terminal import console, echo, json_option, say
from wasmgraph.errors import UsageError

if TYPE_CHECKING:
    from wasmgraph.analysis import Thresholds

_WORSE = 1


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="reports",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Directory to write into.",
)
@click.option("--history", type=click.Path(path_type=Path), help="Also draw the trends of this history.")
@click.option(
    "--conformance",
    type=click.Path(path_type=Path),
    help="Also show the operators of this record, which `make conformance` writes.",
)
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the tables as Markdown here.")
@json_option
def report(
    results: Sequence[Path],
    output: Path,
    history: Path | None,
    conformance: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Print the result tables of RESULTS files and write an HTML report.

    Example: wasmgraph report results/latest.json -o reports/
    """
    from wasmgraph.report import build_report, result_table, summarize
    from wasmgraph.report.markdown import summary_markdown
    from wasmgraph.report.summary import summary_json

    path = build_report(results, output, history, conformance)
    if markdown is not None:
        _write(markdown, "\n".join(summary_markdown(summarize(result)) for result in results))
    if as_json:
        echo(summary_json([summarize(result) for result in results], path))
        return
    for result in results:
        result_table(summarize(result), console())
    echo(f"report: {path}")


def _write(path: Path, text: str) -> None:
    from wasmgraph.files import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


_thresholds = click.option(
    "--thresholds",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="How much each figure may change [wasmgraph's own thresholds.toml].",
)
_markdown = click.option(
    "--markdown", type=click.Path(path_type=Path), help="Also write the verdicts as Markdown here."
)
_all = click.option("--all", "everything", is_flag=True, help="Also list series that did not change.")


def _verdict(
    base: Path, head: Path, thresholds: Thresholds, markdown: Path | None, as_json: bool, everything: bool
) -> None:
    """Compare, show, and end with 1 if anything is worse."""
    from wasmgraph.analysis import compare as compare_results
    from wasmgraph.report.comparison import comparison_json, comparison_markdown, comparison_table

    compared = compare_results(base, head, thresholds)
    if as_json:
        echo(comparison_json(compared))
    else:
        comparison_table(compared, console(), everything)
    if markdown is not None:
        _write(markdown, comparison_markdown(compared))
    if compared.worse:
        sys.exit(_WORSE)
    if not compared.judged:
        raise UsageError("nothing in these two files could be compared; the reasons are above.")


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("head", type=click.Path(path_type=Path))
@_thresholds
@_markdown
@json_option
@_all
def compare(
    base: Path, head: Path, thresholds: Path | None, markdown: Path | None, as_json: bool, everything: bool
) -> None:
    """Compare two results files, BASE and HEAD: better, worse, or not, and why.

    Deterministic figures are judged against thresholds. Time is judged only between files that `wasmgraph
    regress` measured in one run. Exit code 1 if anything is worse.

    Example: wasmgraph compare results/baseline.json results/latest.json --markdown verdict.md
    """
    from wasmgraph.analysis import read_thresholds

    _verdict(base, head, read_thresholds(thresholds), markdown, as_json, everything)


@click.command()
@click.argument("base_rev")
@click.argument("head_rev", default="HEAD")
@click.option(
    "--models", default="resnet50", show_default=True, help="Comma-separated names or .onnx files."
)
@click.option("--backends", help="Comma-separated; the default is every target in Wasmtime, or native.")
@click.option(
    "--pairs", default=16, show_default=True, type=click.IntRange(4), help="Pairs of calls a process."
)
@click.option(
    "--processes",
    default=20,
    show_default=True,
    type=click.IntRange(10),
    help="At most so many pairs of processes; fewer (at least 10) once ratios are known to 3 %.",
)
@click.option(
    "-o",
    "--output",
    default="results/regress",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Directory for base.json and head.json.",
)
@_thresholds
@_markdown
@json_option
@_all
def regress(
    base_rev: str,
    head_rev: str,
    models: str,
    backends: str | None,
    pairs: int,
    processes: int,
    output: Path,
    thresholds: Path | None,
    markdown: Path | None,
    as_json: bool,
    everything: bool,
) -> None:
    """Measure two revisions of wasmgraph call beside call, and judge HEAD_REV against BASE_REV.

    Both are checked out into worktrees; uncommitted changes are not measured. Exit code 1 if anything is
    worse.

    Example: wasmgraph regress main --models light_squeezenet
    """
    from wasmgraph.analysis import read_thresholds
    from wasmgraph.backends import OURS, parse_list
    from wasmgraph.regress import Options, checkout, measure_pair, repository

    chosen = parse_list(backends or ",".join(OURS), 1, OURS)
    names = [name.strip() for name in models.split(",")]
    limits = read_thresholds(thresholds)  # before ten minutes of measuring
    options = Options(
        names, chosen, pairs, limits.time.processes, processes, confidence=limits.time.confidence
    )
    root = repository()
    with checkout(root, base_rev, say) as base, checkout(root, head_rev, say) as head:
        files = measure_pair(base, head, options, output, say)
    _verdict(*files, limits, markdown, as_json, everything)


_history_file = click.option(
    "--file",
    "path",
    default="results/history.jsonl",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The history: JSON lines, append-only.",
)


@click.group()
def history() -> None:
    """Keep figures from run to run, and find the steps in them."""


@history.command("add")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@_history_file
def history_add(results: Sequence[Path], path: Path) -> None:
    """Append the figures of RESULTS files. Figures that are already there are not added again.

    Example: wasmgraph history add results/latest.json
    """
    from wasmgraph.analysis.history import add

    for result in results:
        echo(f"{result}: {add(path, result)} series added to {path}")


@history.command("show")
@_history_file
@click.option("--series", default="*", show_default=True, help="A pattern: resnet50-*@wasmtime")
@click.option(
    "--metric",
    "metrics",
    default="latency_s,ratio,work_fuel,module_bytes",
    show_default=True,
    help="Comma-separated.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the trends, as SVG, here.")
@json_option
def history_show(path: Path, series: str, metrics: str, plot: Path | None, as_json: bool) -> None:
    """Show trends per host, and where their level changed.

    Example: wasmgraph history show --series 'resnet50-wasm32-simd128@*' --metric ratio --plot trend.svg
    """
    from wasmgraph.analysis.history import read_history
    from wasmgraph.report.trends import trend_json, trend_plot, trend_table

    found = read_history(path, [name.strip() for name in metrics.split(",")], series)
    if not found.trends:
        raise UsageError(f"{path} holds no {metrics} of a series {series!r}.")
    if as_json:
        echo(trend_json(found))
    else:
        trend_table(found, console())
    if plot is not None:
        trend_plot(found.trends, plot)
