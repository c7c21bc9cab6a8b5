from __future__ import annotations

import io
import json
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.analysis.conftest import Write, benchmark
from wasmgraph.analysis import Comparison, Thresholds, Verdict, compare
from wasmgraph.analysis.compare import median_interval
from wasmgraph.analysis.history import add, read_history
from wasmgraph.errors import RecordError, WasmgraphError
from wasmgraph.records import results
from wasmgraph.report.comparison import comparison_json, comparison_markdown, comparison_table
from wasmgraph.report.trends import trend_json, trend_table

FIGURES = {"work_fuel": 1_000_000, "module_bytes": 50_000, "top1": 19, "top5": 20, "inputs": 20}


def verdict(comparison: Comparison, metric: str) -> Verdict:
    (found,) = [v for v in comparison.verdicts if v.metric == metric]
    return found


def test_the_same_figures_make_no_difference(write: Write, thresholds: Thresholds) -> None:
    files = [write(name, [benchmark(**FIGURES)]) for name in ("base", "head")]
    found = compare(*files, thresholds)
    assert not found.worse
    assert {v.outcome for v in found.verdicts if v.metric in FIGURES} == {"no significant difference"}


@pytest.mark.parametrize(
    ("metric", "value", "outcome"),
    [
        ("work_fuel", 1_001_000, "worse"),
        ("work_fuel", 1_000_400, "no significant difference"),
        ("work_fuel", 990_000, "better"),
        ("top1", 18, "worse"),
        ("top5", 19, "worse"),
        ("top1", 20, "better"),
        ("module_bytes", 50_300, "worse"),
        ("work_fuel", math.nan, "worse"),
        ("top1", math.inf, "worse"),
    ],
)
def test_deterministic_metrics_meet_their_thresholds(
    write: Write, thresholds: Thresholds, metric: str, value: float, outcome: str
) -> None:
    base = write("base", [benchmark(**FIGURES)])
    head = write("head", [benchmark(**FIGURES | {metric: value})])
    found = compare(base, head, thresholds)
    assert verdict(found, metric).outcome == outcome
    assert found.worse == (outcome == "worse")


def test_a_kernel_is_judged_by_itself(write: Write, thresholds: Thresholds) -> None:
    """5 % of a kernel that does a thousandth of the work is nothing to the sum."""
    work = {"big": 999_000, "small": 1_000}
    base = write("base", [benchmark(**FIGURES, kernel_work=work)])
    head = write(
        "head", [benchmark(**FIGURES | {"work_fuel": 1_000_050}, kernel_work=work | {"small": 1_050})]
    )
    found = compare(base, head, thresholds)
    assert verdict(found, "work_fuel").outcome == "no significant difference"
    assert verdict(found, "work_fuel of small").outcome == "worse"


def paired(
    write: Write, factor: float, noise: float = 0.02, processes: int = 10, seed: int = 0
) -> list[Path]:
    rng = np.random.default_rng(seed)
    common = rng.uniform(1, 2, 4 * processes)  # what neighbours do meets both sides
    files = []
    for side in ("base", "head"):
        rounds = (
            common * (factor if side == "head" else 1) * (1 + noise * rng.standard_normal(4 * processes))
        )
        work = 1_000_000 if side == "base" else 900_000
        files.append(write(side, [benchmark(work_fuel=work, rounds=rounds.tolist())], side))
    return files


def test_time_of_a_paired_run_is_judged(write: Write, thresholds: Thresholds) -> None:
    for factor, outcome in ((1.1, "worse"), (1.0, "no significant difference"), (0.9, "better")):
        time = verdict(compare(*paired(write, factor), thresholds), "time")
        assert time.outcome == outcome
        assert time.low is not None and time.high is not None and time.low <= factor <= time.high


def test_less_work_does_not_outvote_more_time(write: Write, thresholds: Thresholds) -> None:
    found = compare(*paired(write, 1.3), thresholds)
    assert verdict(found, "work_fuel").outcome == "better"
    assert verdict(found, "time").outcome == "worse"
    assert found.worse


@pytest.mark.parametrize(
    ("base", "head", "why"),
    [
        ({}, {}, "another run"),
        ({"side": "base"}, {}, "another run"),
        ({"side": "base"}, {"side": "head", "host": "there"}, "another host"),
        ({"side": "base"}, {"side": "head", "pairing": {"run": "other"}}, "another run"),
        ({"side": "head"}, {"side": "base"}, "the head and the base"),
        ({"side": "base"}, {"side": "head", "pairing": {"per_process": 5}}, "another number of rounds"),
    ],
)
def test_other_times_are_shown_and_not_judged(
    write: Write, thresholds: Thresholds, base: dict, head: dict, why: str
) -> None:
    files = [
        write(name, [benchmark(rounds=[value] * 40)], **options)
        for name, value, options in (("base", 1.0, base), ("head", 9.0, head))
    ]
    time = verdict(compare(*files, thresholds), "time")
    assert (time.outcome, time.base, time.head) == ("not comparable", 1.0, 9.0)
    assert why in time.why


@pytest.mark.parametrize(
    ("rounds", "why"),
    [
        ([], "0 rounds"),
        ([1.0] * 39, "rounds beside"),
        ([1.0] * 39 + [math.nan], "no positive number"),
        ([1.0] * 39 + [0.0], "no positive number"),
    ],
)
def test_rounds_that_cannot_be_judged(
    write: Write, thresholds: Thresholds, rounds: list[float], why: str
) -> None:
    base = write("base", [benchmark(rounds=[1.0] * 40)], "base")
    head = write("head", [benchmark(rounds=rounds)], "head")
    time = verdict(compare(base, head, thresholds), "time")
    assert time.outcome == "not comparable"
    assert why in time.why


def test_few_processes_are_not_enough(write: Write, thresholds: Thresholds) -> None:
    time = verdict(compare(*paired(write, 2, processes=9), thresholds), "time")
    assert (time.outcome, time.why) == ("not comparable", "9 pairs of processes, at least 10 are needed")


def test_missing_and_renamed_series_are_listed(write: Write, thresholds: Thresholds) -> None:
    base = write("base", [benchmark(**FIGURES)])
    head = write("head", [benchmark(backend="other", **FIGURES)])
    found = compare(base, head, thresholds)
    assert found.judged == 0
    assert {(v.series, v.why) for v in found.verdicts if v.metric == "all"} == {
        ("net-wasm32@wasmtime", "not in head"),
        ("net-other", "not in base"),
    }


@pytest.mark.parametrize("figures", [[], [benchmark(**FIGURES)]])
def test_what_fails_in_head_is_worse_even_beside_figures(
    write: Write, thresholds: Thresholds, figures: list
) -> None:
    base = write("base", [benchmark(**FIGURES)])
    failed = write("failed", figures, failed={"net on wasm32@wasmtime": "it trapped"})
    assert verdict(compare(base, failed, thresholds), "failure").outcome == "worse"
    assert "it trapped" in verdict(compare(base, failed, thresholds), "failure").why
    mended = verdict(compare(failed, base, thresholds), "failure")
    assert (mended.outcome, mended.why) == ("not comparable", "failed in base: it trapped")


def test_what_is_skipped_is_said(write: Write, thresholds: Thresholds) -> None:
    base = write("base", [benchmark(**FIGURES)])
    skipped = write("skipped", [], skipped={"net on wasm32@wasmtime": "no Node.js"})
    assert not compare(base, skipped, thresholds).worse
    assert "no Node.js" in verdict(compare(base, skipped, thresholds), "all").why


def test_what_fails_before_anything_was_measured(write: Write, thresholds: Thresholds) -> None:
    case = {"net on wasm32@wasmtime": "it does not compile"}
    base, broken = write("base", []), write("broken", [], failed=case)
    assert compare(base, broken, thresholds).worse
    assert not compare(broken, broken, thresholds).worse
    assert not compare(broken, base, thresholds).worse


def test_another_model_is_not_compared(write: Write, thresholds: Thresholds) -> None:
    base = write("base", [benchmark(**FIGURES)])
    head = write("head", [benchmark(**FIGURES, model_sha256="1" * 64)])
    found = compare(base, head, thresholds)
    assert found.judged == 0
    assert all("the model's file is another" in v.why for v in found.verdicts)


def test_kernels_that_one_file_does_not_tell_are_said(write: Write, thresholds: Thresholds) -> None:
    base = write("base", [benchmark(**FIGURES, kernel_work={"k": 1})])
    head = write("head", [benchmark(**FIGURES)])
    found = verdict(compare(base, head, thresholds), "kernel_work")
    assert (found.outcome, found.why) == ("not comparable", "not in head")


def test_native_code_is_compared_on_one_machine_only(write: Write, thresholds: Thresholds) -> None:
    entry = benchmark(backend="native@native", target="native", module_bytes=5)
    base, head, here = write("base", [entry]), write("head", [entry], host="there"), write("here", [entry])
    assert verdict(compare(base, head, thresholds), "all").why == "native code of another machine"
    assert verdict(compare(base, here, thresholds), "module_bytes").outcome == "no significant difference"


def test_accuracy_over_other_inputs_is_not_compared(write: Write, thresholds: Thresholds) -> None:
    base = write("base", [benchmark(**FIGURES)])
    head = write("head", [benchmark(**FIGURES | {"inputs": 500, "top1": 400})])
    assert verdict(compare(base, head, thresholds), "top1").outcome == "not comparable"
    others = write("others", [benchmark(**FIGURES, inputs_sha256="1")])
    assert verdict(compare(base, others, thresholds), "top1").outcome == "not comparable"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a pytest-benchmark file"),
        ('{"benchmarks": []}', "not of `pytest bench`"),
        ('{"benchmarks": [{"name": "x", "stats": {}}], "wasmgraph": {}}', "no 'extra_info'"),
        ('{"benchmarks": [7], "wasmgraph": {}}', "benchmark 0"),
        ('{"benchmarks": [], "wasmgraph": {"schema": 99}}', "schema 99"),
        ('{"benchmarks": [], "wasmgraph": []}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": null}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": {"schema": NaN}}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": {"schema": 0}}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": {"failed": [[1, 2]]}}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": {"notices": [1]}}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": {"notices": "abc"}}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": {"host": null}}', "cannot be read"),
        ('{"benchmarks": [], "wasmgraph": {}, "x": "\\ud800"}', "not JSON"),
        ('{"benchmarks": [], "wasmgraph": {"pairing": {"run": 1}}}', "cannot be read"),
    ],
)
def test_files_that_are_no_results(
    write: Write, thresholds: Thresholds, tmp_path: Path, content: str, message: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    for files in ((bad, write("base", [])), (write("base", []), bad)):
        with pytest.raises(RecordError, match=message):
            compare(*files, thresholds)


@pytest.mark.parametrize(
    "twice",
    [
        [benchmark(work_fuel=1), benchmark("test_work", work_fuel=2)],
        [benchmark(), benchmark()],
        [benchmark(), benchmark("test_work", target="native")],
        [benchmark(work_fuel="many")],
        [benchmark(work_fuel=True)],
        [benchmark(rounds=["fast"])],
    ],
)
def test_a_file_that_contradicts_itself(write: Write, thresholds: Thresholds, twice: list) -> None:
    for entry in twice:
        entry["stats"]["median"] = 1
    with pytest.raises(RecordError, match="benchmark"):
        compare(write("base", twice), write("head", []), thresholds)


@given(st.lists(st.floats(0.5, 2), min_size=10, max_size=200), st.floats(0.5, 0.999))
def test_the_interval_holds_the_median(values: list[float], confidence: float) -> None:
    low, high = median_interval(np.array(values), confidence)
    assert min(values) <= low <= np.median(values) <= high <= max(values)


def test_the_interval_is_as_sure_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for count in (10, 20, 145):
        found = [median_interval(rng.standard_normal(count), 0.975) for _ in range(2000)]
        held = np.mean([low <= 0 <= high for low, high in found])
        assert held >= 0.97


def test_long_series_have_an_interval_too() -> None:
    low, high = median_interval(np.arange(5001.0), 0.99)
    assert 2380 < low < 2500 < high < 2620


def test_a_large_file_is_compared(write: Write, thresholds: Thresholds) -> None:
    """One series a metric, and none is lost."""
    entries = [benchmark(backend=f"b{n}", **FIGURES, rounds=[1.0] * 40) for n in range(500)]
    files = [write(side, json.loads(json.dumps(entries)), side) for side in ("base", "head")]
    found = compare(*files, thresholds)
    assert found.judged == 500 * 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(data: object, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    found = [path] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_json_makes_a_traceback(
    write: Write, thresholds: Thresholds, tmp_path: Path, data: st.DataObject
) -> None:
    good = write("good", [benchmark(**FIGURES, kernel_work={"k": 1}, rounds=[1.0] * 40)], "base")
    bad = json.loads(good.read_text())
    *parents, last = data.draw(st.sampled_from(places(bad)))
    parent = bad
    for key in parents:
        parent = parent[key]
    parent[last] = data.draw(JSON)
    mutated = tmp_path / "mutated.json"
    mutated.write_text(json.dumps(bad))
    console = Console(file=io.StringIO())
    for files in ((good, mutated), (mutated, good)):
        with suppress(WasmgraphError):
            compared = compare(*files, thresholds)
            comparison_table(compared, console, everything=True)
            comparison_markdown(compared).encode()
            json.loads(comparison_json(compared), parse_constant=pytest.fail)
    with suppress(WasmgraphError):
        add(tmp_path / "history.jsonl", mutated)
        shown = read_history(tmp_path / "history.jsonl", ["latency_s", "work_fuel"])
        trend_table(shown, console)
        json.loads(trend_json(shown), parse_constant=pytest.fail)
    with suppress(WasmgraphError):
        results(mutated)
