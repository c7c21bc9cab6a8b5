from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import wasmgraph as wg
from wasmgraph.errors import RecordError, UsageError
from wasmgraph.records import Record
from wasmgraph.report import build_report, result_table, summarize
from wasmgraph.report.markdown import summary_markdown
from wasmgraph.report.summary import format_bytes, format_ms
from wasmgraph.report.sweep import sweeps

HOSTILE = "<script>alert(1)</script>[bold]"


def benchmark(test: str, record: Record, seconds: list[float]) -> dict[str, Any]:
    stats = dict.fromkeys(("median", "min", "max", "mean", "stddev"), seconds[0])
    return {
        "name": f"{test}[{record.model}-{record.backend}]",
        "stats": stats | {"rounds": len(seconds), "data": seconds},
        "extra_info": record.to_extra_info(),
    }


def record(backend: str, **values: Any) -> Record:
    base = {
        "model": "net",
        "weights": "trained",
        "backend": backend,
        "target": "t",
        "runtime": "r",
        "threads": 1,
        "batch": 1,
    }
    return Record(**(base | {"engine": "e 1", "engine_config": "c", "model_sha256": "0"} | values))


@pytest.fixture
def results_file(tmp_path: Path) -> Path:
    slow = {"reference": "onnxruntime", "ratio": 4.2, "ratio_low": 4.0, "ratio_high": 4.5}
    accurate = {"inputs": 20, "top1": 19, "top5": 20, "agreement": 20, "max_prob_diff": 1e-6}
    data = {
        "machine_info": {"cpu": {"brand_raw": HOSTILE, "count": 2}, "system": "Linux"},
        "commit_info": {"id": "abc", "dirty": True},
        "datetime": "2026-01-01T00:00:00",
        "wasmgraph": {
            "notices": [f"FALLBACK {HOSTILE}"],
            "skipped": {"x": HOSTILE},
            "failed": {"y": "why"},
        },
        "benchmarks": [
            benchmark("test_latency", record("wasm", **slow), [0.4, 0.41]),
            benchmark("test_accuracy", record("wasm", **accurate), [1.0]),
            benchmark("test_cold_start", record("wasm", ready_s=0.002, first_output_s=0.4), [0.002]),
            benchmark("test_latency", record("onnxruntime"), [0.1, 0.11]),
            benchmark("test_latency", record(HOSTILE, model=HOSTILE), [1.0]),
            benchmark("test_noop", record("wasm", model="noop"), [5e-5]),
        ],
    }
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    return path


def test_results_is_a_table(results_file: Path) -> None:
    frame = wg.results(results_file)
    assert list(frame["test"])[:2] == ["test_latency", "test_accuracy"]
    assert frame.loc[0, "ratio"] == 4.2
    assert frame.loc[0, "rounds_s"] == [0.4, 0.41]
    assert frame["ready_s"].count() == 1


def test_rows_merge_a_backends_tests_and_sort_by_latency(results_file: Path) -> None:
    summary = summarize(results_file)
    rows = [row for row in summary.rows if row.model == "net"]
    assert [row.backend for row in rows] == ["onnxruntime", "wasm"]
    assert (rows[1].get("top1"), rows[1].get("ready_s"), rows[1].get("ratio")) == (19, 0.002, 4.2)
    assert summary.overhead_s == {"wasm": 5e-5}


def test_the_page_says_everything_and_escapes_names(results_file: Path, tmp_path: Path) -> None:
    page = build_report([results_file], tmp_path / "out").read_text()
    for words in (
        "4.20×",
        "[4.00, 4.50]",
        "19/20",
        "FALLBACK",
        "<strong>failed</strong>: y: why",
        "(changed)",
    ):
        assert words in page, words
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in page
    assert page.index("FALLBACK") < page.index("<h2")
    assert not re.search(r'(src|href)\s*=\s*"https?:', page)
    assert page.count("<svg") == 2
    assert not re.search(r"<img(?! src=.data:)", page)


def conformance_record(path: Path) -> Path:
    """A record of ONNX's tests whose operator and reason are hostile."""
    case = {"operator": HOSTILE, "counts": True, "wasm32": ["refused", f"(If): {HOSTILE} is refused."]}
    content = {"onnx": "1.2", "dtypes": ["float"], "summary": {"wasm32": {}}, "cases": {"Node/a": case}}
    path.write_text(json.dumps(content))
    return path


def test_operators_have_a_section_of_their_own(results_file: Path, tmp_path: Path) -> None:
    record = conformance_record(tmp_path / "c.json")
    page = build_report([results_file], tmp_path, conformance=record).read_text()
    assert '<a href="#conformance">Operators</a>' in page
    assert "is refused" in page
    assert page.count("<script") == 1


@pytest.fixture
def text_results(tmp_path: Path) -> Path:
    """A network of text in three shapes, one of which a peer lacks; names are hostile."""
    network, benchmarks = HOSTILE, []
    for batch, length in ((8, 8), (1, 32), (1, 8)):
        for number, backend in enumerate(("onnxruntime", "ort-web", "wasm")):
            if (backend, length) == ("ort-web", 32):
                continue
            seconds = 0.001 * batch * length * (number + 1)
            known = {
                "model": f"{network}@{batch}x{length}",
                "target": "wasm32" if backend == "wasm" else "onnx",
                "batch": batch,
                "length": length,
                "reference": "onnxruntime",
                "ratio": number + 1.0,
                "ratio_low": number + 0.9,
                "ratio_high": number + 1.2,
            }
            accurate = known | {"inputs": 300, "neighbours_agree": 299, "cosine_min": 1 - 2e-9}
            benchmarks.append(benchmark("test_latency", record(backend, **known), [seconds]))
            benchmarks.append(benchmark("test_accuracy", record(backend, **accurate), [seconds]))
    path = tmp_path / "text.json"
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def test_a_network_of_text_over_lengths(text_results: Path) -> None:
    (found,) = sweeps(summarize(text_results))
    assert found.network == HOSTILE
    assert found.columns == [
        *("batch", "tokens", "wasm, ms", "onnxruntime, ms", "ort-web, ms"),
        *("over onnxruntime", "over ort-web", "1 − least cosine", "same neighbour"),
    ]
    ratio = "3.00 × [2.90, 3.20]"
    assert list(found.cells) == [
        ["1", "8", "24", "8", "16", ratio, "1.50 ×", "2.0e-09", "299/300"],
        ["1", "32", "96", "32", "–", ratio, "–", "2.0e-09", "299/300"],
        ["8", "8", "192", "64", "128", ratio, "1.50 ×", "2.0e-09", "299/300"],
    ]


def test_one_graph_over_a_dimension_beside_one_for_each_value(tmp_path: Path) -> None:
    benchmarks = []
    for value in (0, 8):
        for number, backend in enumerate(("wasm", "wasm+closed", "onnxruntime")):
            known = {
                "model": f"net@batch=1,past={value}",
                "dims": f"batch=1,past={value}",
                "target": "onnx" if backend == "onnxruntime" else "wasm32",
                "batch": 1,
                "inputs": 3,
                "agreement": 3,
                "max_prob_diff": 1e-7,
            }
            benchmarks.append(benchmark("test_latency", record(backend, **known), [0.001 * (number + 1)]))
    change = record("wasm", model="noop-open@n=1", dims="n=1", change_s=3e-6)
    benchmarks.append(benchmark("test_change", change, [1e-5]))
    path = tmp_path / "open.json"
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    summary = summarize(path)
    assert summary.change_s == {"wasm": 3e-6}
    (found,) = sweeps(summary)
    assert (found.network, found.title) == ("net", "net over past")
    assert found.columns == [
        *("batch", "past", "wasm, ms", "wasm+closed, ms", "onnxruntime, ms"),
        *("over wasm+closed", "over onnxruntime", "agreement", "largest Δ"),
    ]
    figures = ["1", "2", "3", "0.50 ×", "0.33 ×", "3/3", "1.0e-07"]
    assert list(found.cells) == [["1", "0", *figures], ["1", "8", *figures]]
    page = build_report([path], tmp_path / "out").read_text()
    assert "wasm+closed, batch 1" in page
    assert "wasm 3 µs" in page


def test_one_shape_is_no_curve(results_file: Path, text_results: Path) -> None:
    assert sweeps(summarize(results_file)) == []
    data = json.loads(text_results.read_text())
    data["benchmarks"] = data["benchmarks"][:6]
    text_results.write_text(json.dumps(data))
    assert sweeps(summarize(text_results)) == []


def test_sweeps_are_drawn_and_listed_everywhere(text_results: Path, tmp_path: Path) -> None:
    page = build_report([text_results], tmp_path / "out").read_text()
    assert page.count("<script") == 1
    assert 'href="#sweep-0"' in page
    assert page.count("<svg") == 4  # three latencies, one curve
    assert page.count("<td>2.0e-09</td>") == 3 + 8  # a line a shape, and each page's own
    assert "batch 1, 32 tokens" in page
    assert "1 − 2.0e-09" in page
    assert len(list((tmp_path / "out").glob("sweep-*.svg"))) == 1
    console = Console(record=True, width=200)
    result_table(summarize(text_results), console)
    assert "over tokens" in console.export_text()


def test_results_as_markdown(results_file: Path, text_results: Path) -> None:
    text = summary_markdown(summarize(text_results))
    assert "<script" not in text
    assert "| 8 | 8 | 192 | 64 | 128 | 3.00 × [2.90, 3.20] | 1.50 × | 2.0e-09 | 299/300 |" in text
    text = summary_markdown(summarize(results_file))
    assert "<script" not in text
    assert "| wasm | 400 | 4.20 × [4.00, 4.50] | 19/20 | 20/20 | 1.0e-06 | 2 |" in text
    assert "Failed: y: why" in text


def test_the_terminal_table_escapes_markup(results_file: Path) -> None:
    console = Console(record=True, width=200)
    result_table(summarize(results_file), console)
    text = console.export_text()
    assert HOSTILE in text
    assert "4.20 × [4.00, 4.50]" in text
    assert "skipped: x" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "not a pytest-benchmark file"),
        ('{"benchmarks": [{}]}', "benchmark 0 has no"),
    ],
)
def test_bad_results_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=words):
        wg.results(path)


def test_an_unwritable_directory(results_file: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        build_report([results_file], results_file / "below-a-file")


def test_units() -> None:
    assert [format_bytes(n) for n in (None, 12, 49_898, 102_237_354)] == [
        "–",
        "12 B",
        "49.9 kB",
        "102.2 MB",
    ]
    assert [format_ms(s) for s in (None, 1.5953, 0.0761, 0.000052)] == ["–", "1,595", "76.1", "0.052"]
