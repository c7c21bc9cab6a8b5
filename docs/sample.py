"""Regenerates the documents that show a real run (``make sample``): the sample report, tables, screenshots.

Without Chromium the screenshots stay as they are, with a warning.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wasmgraph.analysis.conformance import OperatorCases, read_conformance
from wasmgraph.report import Row, Summary, build_report, summarize
from wasmgraph.report.decomposition import decomposition
from wasmgraph.report.goals import goals
from wasmgraph.report.markdown import markdown_table, sweep_markdown
from wasmgraph.report.summary import (
    format_bytes,
    format_count,
    format_difference,
    format_figure,
    format_ms,
    format_ratio,
)
from wasmgraph.report.sweep import sweeps
from wasmgraph.text import markdown as markdown_text

ROOT = Path(__file__).parent.parent
CONFORMANCE = ROOT / "results" / "conformance.json"
BASELINE, SAMPLE = ROOT / "results" / "baseline.json", ROOT / "reports" / "sample"
MODEL, PROFILED = "resnet50", "wasm32-simd128@wasmtime"
ZOO = ROOT / "results" / "zoo.json"
TEXT = tuple(ROOT / "results" / name for name in ("open.json", "text.json"))
RELIABILITY = ROOT / "results" / "reliability.json"
_NETWORKS = "<!-- from results/zoo.json, by `make sample` -->"
_TEXT = "<!-- from results/open.json and text.json, by `make sample` -->"
_RELIABILITY = "<!-- from results/reliability.json, by `make sample` -->"
_OPERATORS = "<!-- from results/conformance.json, by `make sample` -->"
_BEGIN, _END = "<!-- from results/baseline.json, by `make sample` -->", "<!-- end -->"


_IN_README = {
    "onnxruntime": "onnxruntime, native",
    "native@native": "native code of the same schedules",
    PROFILED: "WebAssembly in Wasmtime",
    "wasm32-simd128@node": "the same module in V8",
    "ort-web": "onnxruntime-web",
}


def readme_table(path: Path) -> str:
    """The five backends of README, from a results file."""
    rows = {row.backend: row for row in summarize(path).rows if row.model == MODEL}

    def cells(row: Row) -> list[str]:
        return [
            f"{_IN_README[row.backend]} (`{row.backend}`)",
            format_ms(row.median_s),
            format_ratio(row),
            format_count(row, "top1"),
            format_ms(row.get("ready_s")),
        ]

    head = ("backend", "median, ms", "over onnxruntime [95 %]", "top-1", "ready, ms")
    return markdown_table(head, 1, (cells(rows[backend]) for backend in _IN_README))


def result_tables(path: Path) -> str:
    """Every table of a results file, for ``docs/results.md``."""
    summary = summarize(path)
    rows = [row for row in summary.rows if row.model == MODEL]

    def latency(row: Row) -> list[str]:
        return [
            f"`{row.backend}`",
            format_ms(row.median_s),
            format_ratio(row),
            format_count(row, "top1"),
            format_count(row, "top5"),
            format_difference(row.get("max_prob_diff")),
            format_ms(row.get("ready_s")),
            format_bytes(row.get("module_bytes")),
        ]

    def deployment(row: Row) -> list[str]:
        return [
            f"`{row.backend}`",
            format_figure(row.get("runs_per_s")),
            format_ms(row.get("sessions_p50_s")),
            format_ms(row.get("sessions_p99_s")),
            format_bytes(row.get("session_bytes")),
            format_bytes(row.get("artifact_bytes")),
            format_bytes(row.get("engine_bytes")),
            format_ms(row.get("first_output_s")),
        ]

    def kernel(found: Mapping[str, Any]) -> list[str]:
        return [
            f"`{found['kernel']}`",
            found["rule"],
            str(found["calls"]),
            f"{found['seconds'] * 1e3:.1f}",
            f"{found['share']:.1%}",
            "–" if found["gflops_per_s"] is None else f"{found['gflops_per_s']:.1f}",
            "–" if found["roofline_share"] is None else f"{found['roofline_share']:.0%}",
        ]

    columns = (
        "backend",
        "median, ms",
        "over onnxruntime [95 %]",
        "top-1",
        "top-5",
        "largest Δ probability",
    )
    parts = [
        markdown_table((*columns, "ready, ms", "without parameters"), 1, map(latency, rows)),
        "### From native code to scalar WebAssembly\n\n"
        "Each row changes one thing; the factor is what that change costs:",
        markdown_table(
            ("from native to scalar", "what changes", "factor"),
            2,
            (
                [f"`{c.backend}`", c.what, "–" if c.factor is None else f"{c.factor:.2f} ×"]
                for c in decomposition(rows)
            ),
        ),
        "### Deployment\n\nTwo sessions run at once, each in a thread of its own. *One more session* is\n"
        "the memory that an additional session takes. *Engine on disk* is what a graph needs besides\n"
        "Python and numpy:",
        markdown_table(
            (
                *("backend", "runs/s", "p50, ms", "p99, ms", "one more session", "graph on disk"),
                *("engine on disk", "first output, ms"),
            ),
            1,
            (deployment(row) for row in rows if row.get("sessions") is not None),
        ),
        f"### Where the time goes\n\nThe ten longest kernels of `{PROFILED}`; `wasmgraph profile` shows\n"
        "all of them. A Winograd convolution's operations are counted as if it were direct, so its share\n"
        "of the roofline can exceed 100 %:",
        markdown_table(
            ("kernel", "rule", "calls", "ms", "share", "GFLOP/s", "of roofline"),
            2,
            map(kernel, next(row for row in rows if row.backend == PROFILED).profile[:10]),
        ),
        "### Goals\n\nWhat the project aims for, and what this run measured:",
        markdown_table(
            ("figure", "measured", "at least", "aim"),
            1,
            (
                [
                    goal.figure,
                    goal.show(goal.measured) + ("" if goal.reached else " (not reached)"),
                    f"{goal.sign} {goal.show(goal.bound)}",
                    goal.show(goal.aim),
                ]
                for goal in goals(summary, MODEL)
            ),
        ),
    ]
    return "\n\n".join(parts)


def zoo_table(path: Path) -> str:
    """Every named network: SIMD128 in Wasmtime against onnxruntime and onnxruntime-web in the same run."""
    rows = {(row.model, row.backend): row for row in summarize(path).rows}

    def by_model(model: str) -> list[str]:
        ours, web = rows[model, "wasm32-simd128@wasmtime"], rows[model, "ort-web"]
        assert ours.median_s is not None
        assert web.median_s is not None
        steps = ours.get("ops_scheduled"), ours.get("ops_scheduled") + ours.get("ops_fallback")
        return [
            f"`{model}`",
            format_ms(ours.median_s),
            format_ratio(ours),
            f"{ours.median_s / web.median_s:.2f} ×",
            format_count(ours, "top1"),
            format_count(ours, "agreement"),
            format_difference(ours.get("max_prob_diff")),
            f"{steps[0]:.0f} of {steps[1]:.0f}",
        ]

    return markdown_table(
        (
            *("network", "median, ms", "over onnxruntime [95 %]", "over onnxruntime-web", "task right"),
            *("as onnxruntime", "largest difference", "calls scheduled"),
        ),
        1,
        map(by_model, dict.fromkeys(model for model, _ in rows)),
    )


def text_tables(paths: Sequence[Path]) -> str:
    """Networks over the values of their dimensions, their goals, and the processor that they ran on."""
    summaries = [summarize(path) for path in paths]
    parts: list[str] = []
    for path, summary in zip(paths, summaries, strict=True):
        processor = markdown_text(str(summary.cpu.get("brand_raw", "an unknown processor")))
        tables = [*map(sweep_markdown, sweeps(summary)), _goals_table(summary)]
        parts += [f"`{path.name}`, measured on {summary.datetime[:10]}, on {processor}.", *tables]
    return "\n\n".join(parts)


def _goals_table(summary: Summary) -> str:
    """The goals of all models of a run."""
    lines = [(model, goal) for model in summary.models for goal in goals(summary, model)]
    words = {True: "reached", False: "**not reached**", None: "not measured"}
    return markdown_table(
        ("network", "figure", "measured", "at least", "aim", "goal"),
        2,
        (
            [
                *(f"`{model}`", markdown_text(goal.figure), goal.show(goal.measured)),
                *(f"{goal.sign} {goal.show(goal.bound)}", goal.show(goal.aim), words[goal.reached]),
            ]
            for model, goal in lines
        ),
    )


def operator_tables(path: Path) -> str:
    """Results of ONNX's tests, by target and by operator."""
    found = read_conformance(path)
    marks = ("passed", "folded", "refused", "wrong", "crashed")

    def by_target(target: str) -> list[str]:
        counts = found.counted[target]
        numbers = [str(counts[mark]) for mark in marks]
        return [f"`{target}`", f"{counts.total()}", f"{found.share(target):.1%}", *numbers]

    def by_operator(row: OperatorCases) -> list[str]:
        counts = row.outcomes[found.targets[0]]
        why = markdown_text("; ".join(row.reasons))
        numbers = [str(counts[mark]) for mark in ("passed", "folded", "refused")]
        return [markdown_text(row.operator), why, str(row.cases), *numbers]

    return "\n\n".join(
        (
            f"ONNX {found.onnx}, node tests on tensors of {', '.join(found.dtypes)}:",
            markdown_table(("target", "cases", "passed", *marks), 1, map(by_target, found.targets)),
            f"By operator, on `{found.targets[0]}`:",
            markdown_table(
                ("operator", "why refused", "cases", "passed", "folded", "refused"),
                2,
                map(by_operator, found.operators),
            ),
        )
    )


def reliability_tables(path: Path) -> str:
    """Results of `make fuzz`, `make faults` and `make soak`."""
    held = json.loads(path.read_text())
    fuzzed = {name.removeprefix("fuzz_"): said for name, said in held.items() if name.startswith("fuzz_")}
    killed, interrupted = held["faults_SIGKILL"], held["faults_SIGINT"]
    untrusted, soaked = held["untrusted"], dict(held["soak"])
    cost, cycles = untrusted["overhead_resnet50"], soaked.pop("load and close")
    beside = untrusted["attacks"]["sessions beside"]
    none = {"runs": "–", "during_a_write": "–"}

    def counted(outcomes: dict[str, int]) -> str:
        return ", ".join(f"{what} {count:,}" for what, count in outcomes.items())

    def interval(said: dict[str, float]) -> str:
        return f"{said['median_ms']:.2f} ms [{said['low_ms']:.2f}, {said['high_ms']:.2f}]"

    def blows(command: str) -> list[str]:
        sides = (killed[command], interrupted.get(command, none))
        return [command, *(str(side[what]) for side in sides for what in none)]

    operators = fuzzed["graphs"]["operators"]
    return "\n\n".join(
        (
            markdown_table(
                ("mutated or generated", "outcomes", "cases", "failures", "s"),
                2,
                (
                    [
                        *(name.replace("_", " "), counted(f["outcomes"]), f"{f['cases']:,}"),
                        *(str(f["finds"]), str(f["seconds"])),
                    ]
                    for name, f in fuzzed.items()
                ),
            ),
            f"Operators of the generated graphs, each compared with onnxruntime: {counted(operators)}.",
            markdown_table(
                ("process", "SIGKILL", "of these during a write", "Ctrl-C", "of these during a write"),
                1,
                (blows(command) for command in killed if command != "finds"),
            ),
            f"Failures: {len(killed['finds'])} after SIGKILL, {len(interrupted['finds'])} after Ctrl-C."
            " Faulty machines:",
            "\n".join(f"- {name}: {seen}" for name, seen in held["faults_conditions"].items()),
            markdown_table(
                ("untrusted graph", "limit, s", "ended after the limit, worst round, s", "rounds"),
                1,
                (
                    [name, str(a["limit_s"]), str(a["worst_overshoot_s"]), str(a["rounds"])]
                    for name, a in untrusted["attacks"].items()
                    if "rounds" in a
                ),
            ),
            "A negative time means that the graph was refused before its limit. Sessions beside these"
            f" graphs gave {beside['right_results']:,} right results, {beside['wrong_results']} wrong.\n\n"
            f"An untrusted call of ResNet-50 costs {interval(cost['idle'])} more, measured with a graph"
            " that has the same tensors and computes nothing. Measured with ResNet-50 itself"
            f" ({cost['graph']['trusted_ms']:.0f} ms a call), the difference is {interval(cost['graph'])}."
            f" The checks at load take {untrusted['checks_resnet50_ms']} ms.",
            markdown_table(
                ("a small network, repeatedly", "inferences", "s", "wrong outputs", "growth of memory"),
                1,
                (
                    [
                        *(name, f"{said['inferences']:,}", f"{said['seconds']:,}"),
                        str(said["wrong_outputs"]),
                        f"{said['growth_bytes'] / 1e3:.0f} kB" if "growth_bytes" in said else "–",
                    ]
                    for name, said in soaked.items()
                ),
            ),
            f"At once: {soaked['at once']['sessions']} sessions in as many threads, half of them with two"
            f" threads of their own: {soaked['at once']['deadlocks']} deadlocks. After loading and closing"
            f" {cycles['sessions']} sessions: {cycles['growth_bytes_a_session']} more bytes a session,"
            f" {cycles['threads_more']} more threads, {cycles['open_files_more']} more open files.",
        )
    )


def write_between(path: Path, begin: str, tables: str) -> None:
    """Replace what stands between a document's markers."""
    text = path.read_text()
    pattern = re.escape(begin) + r".*?" + re.escape(_END)
    if not re.search(pattern, text, re.DOTALL):
        raise SystemExit(f"{path}: the markers {begin} and {_END} are missing.")
    whole = f"{begin}\n\n{tables}\n\n{_END}"
    path.write_text(re.sub(pattern, lambda _: whole, text, flags=re.DOTALL))


def screenshots(report: Path, directory: Path) -> None:
    """The top of a report in light and dark, and on a phone."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.stderr.write("no Chromium on the PATH: the screenshots stay as they are\n")
        return
    directory.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, scheme in (
            ("report-light", 1100, 1000, "light"),
            ("report-dark", 1100, 1000, "dark"),
            ("report-phone", 400, 1000, "light"),
        ):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.goto(report.resolve().as_uri())
            page.locator("h3", has_text="Latency").first.scroll_into_view_if_needed()
            page.evaluate("window.scrollBy(0, 700)")
            page.screenshot(path=directory / f"{name}.png")
        browser.close()


def main() -> None:
    """Regenerate everything from the committed results."""
    report = build_report([BASELINE], SAMPLE, conformance=CONFORMANCE)
    results = ROOT / "docs" / "results.md"
    write_between(ROOT / "README.md", _BEGIN, readme_table(BASELINE))
    write_between(results, _BEGIN, result_tables(BASELINE))
    write_between(results, _NETWORKS, zoo_table(ZOO))
    write_between(results, _TEXT, text_tables(TEXT))
    write_between(ROOT / "docs" / "operators.md", _OPERATORS, operator_tables(CONFORMANCE))
    write_between(ROOT / "SECURITY.md", _RELIABILITY, reliability_tables(RELIABILITY))
    screenshots(report, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
