from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.conftest import Write, benchmark
from wasmgraph.analysis.history import Point, add, read_history, steps
from wasmgraph.cli import main
from wasmgraph.errors import RecordError

METRICS = ["latency_s", "work_fuel"]


def points(values: list[float]) -> list[Point]:
    return [
        Point(f"2026-01-{n // 24 + 1:02}T{n % 24:02}", f"c{n}", value) for n, value in enumerate(values)
    ]


def line(number: int, series: str = "net-wasm32@wasmtime", **values: float) -> str:
    stamp = f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}"
    whole = {"schema": 1, "run": str(number), "datetime": stamp, "commit": f"c{number}", "host": "here"}
    return json.dumps(whole | {"series": series, "values": values})


def test_a_run_is_added_once(write: Write, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    first = write(
        "first", [benchmark(work_fuel=5, rounds=[2.0]), benchmark("test_cold_start", rounds=[0.5])]
    )
    second = write("second", [benchmark(work_fuel=6, rounds=[3.0])])
    assert [add(history, first), add(history, first), add(history, second)] == [1, 0, 1]
    found = read_history(history, [*METRICS, "ready_s"])
    values = {trend.metric: [point.value for point in trend.points] for trend in found.trends}
    assert values == {"latency_s": [2, 3], "work_fuel": [5, 6], "ready_s": [0.5]}
    assert found.trends[0].host == "here"


@settings(deadline=None)
@given(st.data())
def test_a_torn_line_is_never_data(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut anywhere, then written to again: what was whole is there, what was cut is not."""
    path = tmp_path_factory.mktemp("history") / "history.jsonl"
    whole = "".join(line(n, work_fuel=float(n)) + "\n" for n in range(4)).encode()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    results = path.with_name("results.json")
    info = {"schema": 1, "host": "here"}
    results.write_text(json.dumps({"benchmarks": [benchmark(work_fuel=99)], "wasmgraph": info}))
    assert add(path, results) == 1
    found = read_history(path, ["work_fuel"])
    values = sorted(point.value for trend in found.trends for point in trend.points)
    complete = [float(n) for n in range(4) if len(b"\n".join(whole.split(b"\n")[: n + 1])) <= cut]
    assert values == [*complete, 99]
    assert found.torn <= 1


def test_a_writer_that_is_killed_leaves_no_torn_data(write: Write, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    files = [
        write(f"r{n}", [benchmark(backend=f"b{k}", work_fuel=n) for k in range(40)]) for n in range(20)
    ]
    program = "import sys; from wasmgraph.analysis.history import add; from pathlib import Path\n"
    program += "print('ready', flush=True)\nfor f in sys.argv[2:]: add(Path(sys.argv[1]), f)"
    for delay in (0.0, 0.005, 0.01, 0.02, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(history), *map(str, files)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    for file in files:
        add(history, file)
    found = read_history(history, ["work_fuel"])
    assert len(found.trends) == 40
    for trend in found.trends:
        assert sorted(point.value for point in trend.points) == list(range(20))


def test_lines_of_a_newer_schema_are_counted_not_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    newer = line(1, work_fuel=1).replace('"schema": 1', '"schema": 2')
    path.write_text(line(0, work_fuel=1) + "\n" + newer + "\n[]\n7\n{}\n" + "[" * 100_000 + "\n")
    found = read_history(path, METRICS)
    assert (found.lines, found.newer, found.torn) == (1, 1, 4)


@pytest.mark.parametrize(
    "content", ["not a history\n", '{"benchmarks": []}\n', line(1).replace(": 1", ": 9")]
)
def test_files_that_are_no_history(tmp_path: Path, content: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(content)
    with pytest.raises(RecordError, match="is no history"):
        read_history(path, METRICS)
    with pytest.raises(RecordError, match="No such file"):
        read_history(tmp_path / "absent", METRICS)


def test_a_step_is_found_with_its_commit() -> None:
    rng = np.random.default_rng(0)
    level = np.repeat([1.0, 1.15, 0.9], 30)
    found = steps(points((level * (1 + 0.02 * rng.standard_normal(90))).tolist()))
    assert [step.at.commit for step in found] == ["c30", "c60"]
    assert found[0].after / found[0].before == pytest.approx(1.15, abs=0.03)


def test_a_deterministic_figure_steps_once_and_exactly() -> None:
    (found,) = steps(points([1000.0] * 20 + [1010.0] * 20))
    assert (found.at.commit, found.before, found.after) == ("c20", 1000, 1010)


def test_noise_has_no_steps() -> None:
    rng = np.random.default_rng(1)
    found = [steps(points((1 + 0.05 * rng.standard_normal(100)).tolist())) for _ in range(50)]
    assert sum(len(s) for s in found) <= 5


def test_steps_from_zero_are_found() -> None:
    (found,) = steps(points([0.0] * 20 + [5.0] * 20))
    assert (found.at.commit, found.before, found.after) == ("c20", 0, 5)


def test_another_model_begins_another_trend(write: Write, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    for number, digest in enumerate(("0", "0", "1")):
        add(history, write(f"r{number}", [benchmark(model_sha256=digest * 64, work_fuel=number + 1)]))
    assert [len(trend.points) for trend in read_history(history, ["work_fuel"]).trends] == [2, 1]


def test_files_with_nothing_to_keep(write: Write, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nothing to keep"):
        add(tmp_path / "history.jsonl", write("empty", []))


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 100, [1.0, 2.0, 3.0]])
def test_series_too_short_or_too_still_for_steps(values: list[float]) -> None:
    assert steps(points(values)) == []


def test_the_command_line_shows_and_draws(tmp_path: Path) -> None:
    path, plot = tmp_path / "history.jsonl", tmp_path / "trend.svg"
    level = [1.0] * 10 + [2.0] * 10
    lines = [line(n, "net-<b>[red]@$x$", work_fuel=v, ops_fallback=v - 1) for n, v in enumerate(level)]
    path.write_text("\n".join(lines) + "\n")
    arguments = ["history", "show", "--file", str(path), "--metric", "work_fuel"]
    shown = CliRunner().invoke(main, [*arguments, "--plot", str(plot)])
    assert shown.exit_code == 0, shown.output
    assert "+100.0% at c10" in shown.output
    assert "net-<b>[red]@$x$" in shown.output
    assert "<b>" not in plot.read_text()
    data = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert data["trends"][0]["steps"][0]["at"]["commit"] == "c10"
    from_zero = [*arguments[:-1], "ops_fallback", "--plot", str(plot)]
    assert "0 to 1 at c10" in CliRunner().invoke(main, from_zero).output
    nothing = CliRunner().invoke(main, [*arguments, "--series", "other", "--plot", str(plot)])
    assert nothing.exit_code == 2
