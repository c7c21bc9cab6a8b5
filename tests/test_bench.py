"""The bench as users run it: pytest in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import wasmgraph as wg
from bench.backends import (
    DEFAULT,
    model_name,
    parse,
    parse_list,
    points,
    split_shape,
    values_name,
    values_of,
)
from bench.lab import ReplayClock
from bench.peers import PEERS
from tests.conftest import model_of
from wasmgraph.errors import UsageError
from wasmgraph.report import build_report, summarize
from wasmgraph.report.summary import sentences

ROOT = Path(__file__).parent.parent
PEERS_ARE_THERE = bool(shutil.which("node")) and (ROOT / "bench/js/node_modules").exists()


def run_bench(
    *arguments: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "bench", "-q", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )


@pytest.mark.parametrize("name", DEFAULT)
def test_backends_are_target_at_runtime(name: str) -> None:
    assert parse(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "wasm32",
        "wasm32@native",
        "native@wasmtime",
        "tensorflow",
        "ort-web:none",
        "native@native:2",
        "tfjs-wasm:2",
        "native@native+open",
    ],
)
def test_unknown_backends(name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(name)):
        parse(name)


def test_threads_that_are_not_said_are_those_of_the_run() -> None:
    assert parse("ort-web", 4).name == "ort-web:4"
    assert parse("ort-web:2", 4).threads == 2
    assert parse("wasm32-simd128-threads@wasmtime", 4).reference == "onnxruntime:4"
    assert parse("wasm32@wasmtime", 4).threads == 1


def test_a_backend_may_be_compiled_for_each_value() -> None:
    found = parse("wasm32-simd128-threads@wasmtime+closed:2")
    assert (found.target, found.runtime) == ("wasm32-simd128-threads", "wasmtime")
    assert (found.threads, found.closed) == (2, True)
    assert not parse("wasm32@wasmtime").closed


def test_values_of_dimensions() -> None:
    assert values_of(["batch=1", "seq=32, 8,8"]) == {"batch": (1,), "seq": (8, 32)}
    assert points({"batch": (1, 2), "seq": (8,)}) == [{"batch": 1, "seq": 8}, {"batch": 2, "seq": 8}]
    assert points({}) == [{}]
    assert values_name({"batch": 1, "seq": 8}) == "@batch=1,seq=8"


@pytest.mark.parametrize("options", [["seq"], ["seq="], ["=8"], ["seq=1..8"], ["seq=8", "seq=9"]])
def test_wrong_values_of_dimensions(options: list[str]) -> None:
    with pytest.raises(UsageError, match="--dim"):
        values_of(options)


def test_a_list_can_begin_with_the_default() -> None:
    names = [backend.name for backend in parse_list("default,ort-web:4,ort-web", 1)]
    assert names == [*DEFAULT, "ort-web:4"]


def test_the_replay_clock_gives_rounds_back_unchanged() -> None:
    clock = ReplayClock()
    clock._durations = [0.5, 0.25]
    readings = []
    for _ in range(2):
        before = clock.now()
        clock.advance()
        readings.append(clock.now() - before)
    assert readings == pytest.approx([0.5, 0.25], abs=1e-8)


def test_a_users_own_model(small_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = run_bench("--models", small_onnx, "--rounds", "2", f"--benchmark-json={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    frame = wg.results(out)
    names = "latency cold_start compile accuracy sessions profile noop work change"
    assert {f"test_{name}" for name in names.split()} == set(frame["test"])
    latency = frame[frame["test"] == "test_latency"].set_index("backend")
    peers = {name for name in DEFAULT if name.partition(":")[0] in PEERS}
    skipped = set() if PEERS_ARE_THERE else peers
    skipped |= set() if shutil.which("node") else {name for name in DEFAULT if "@node" in name}
    assert set(latency.index) == set(DEFAULT) - skipped
    assert (latency["rounds"] == 4).all()
    assert (latency["model"] == "small").all()
    assert (latency["weights"] == "unknown").all()
    assert latency["ratio_low"].le(latency["ratio"]).all()
    two = latency[latency["threads"] == 2]
    assert set(two.index) == {name for name in latency.index if name.endswith(":2")}
    assert (two["reference"] == "onnxruntime:2").all()
    sessions = frame[frame["test"] == "test_sessions"]
    assert (sessions["sessions"] == 2).all()
    assert (sessions[["runs_per_s", "sessions_p50_s", "sessions_p99_s", "artifact_bytes"]] > 0).all(
        axis=None
    )
    accuracy = frame[frame["test"] == "test_accuracy"]
    assert (accuracy["max_prob_diff"] < 1e-4).all()
    assert accuracy["top1"].isna().all()
    assert not list(tmp_path.glob("*.photos"))  # nothing was classified
    names = [b["name"] for b in json.loads(out.read_text())["benchmarks"]]
    assert "test_latency[small-wasm32-simd128@wasmtime]" in names


@pytest.mark.parametrize(
    ("model", "plain", "shape", "name"),
    [
        ("minilm", "minilm", None, "minilm"),
        ("minilm@8x32", "minilm", (8, 32), "minilm@8x32"),
        ("some@where/m.onnx", "some@where/m.onnx", None, "m"),
        ("some@where/m.onnx@2x3", "some@where/m.onnx", (2, 3), "m@2x3"),
    ],
)
def test_a_model_may_name_a_shape(model: str, plain: str, shape: tuple[int, ...] | None, name: str) -> None:
    assert split_shape(model) == (plain, shape)
    assert model_name(model) == name


def test_one_model_in_two_shapes_is_two_series(small_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    models = f"{small_onnx}@2x3x19x17,{small_onnx}"
    done = run_bench("--models", models, "--rounds", "1", "-k", "latency or accuracy", "--backends",
                     "native@native,onnxruntime", f"--benchmark-json={out}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    frame = wg.results(out)
    assert set(zip(frame["model"], frame["batch"], strict=True)) == {("small@2x3x19x17", 2), ("small", 1)}
    assert frame["length"].isna().all()
    done = run_bench("--models", f"{small_onnx}@2x3")
    assert done.returncode == 4
    assert "--shape gives 'x' the shape" in done.stderr


def test_one_module_at_several_values_of_a_dimension(tmp_path: Path) -> None:
    """Beside a module for each value and the peers, which get the open model too."""
    model = tmp_path / "open.onnx"
    nodes = [onnx.helper.make_node("Softmax", ["x"], ["y"])]
    onnx.save(model_of(nodes, {"x": [1, "n"]}, ["y"]), model)
    out = tmp_path / "r.json"
    backends = ["wasm32@wasmtime", "wasm32@wasmtime+closed", "onnxruntime"]
    backends += ["ort-web"] if PEERS_ARE_THERE else []
    done = run_bench("--models", model, "--dim", "n=3,8", "--rounds", "2", "-k", "not sessions",
                     "--backends", ",".join(backends), f"--benchmark-json={out}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    frame = wg.results(out).set_index("test")
    latency = frame.loc["test_latency"]
    assert set(latency["model"]) == {"open@n=3", "open@n=8"}
    assert set(latency["dims"]) == {"n=3", "n=8"}
    assert latency.groupby("model")["ratio"].count().eq(len(backends)).all()
    accuracy = frame.loc["test_accuracy"]
    assert (accuracy["max_prob_diff"] < 1e-6).all()
    sizes = latency[latency["target"] == "wasm32"].groupby(["backend", "model"])["module_bytes"].first()
    assert sizes["wasm32@wasmtime"].nunique() == 1  # one module for all
    assert sizes["wasm32@wasmtime+closed"].nunique() == 2
    change = frame.loc[["test_change"]]
    assert set(change["backend"]) == {"wasm32@wasmtime"}
    assert change["change_s"].notna().all()
    assert "open over n" in build_report([out], tmp_path / "report").read_text()
    done = run_bench("--models", model, "--dim", "m=3,8")
    assert done.returncode == 4
    assert "theirs are n" in done.stderr


def test_without_npm_random_weights_are_measured_and_said(tmp_path: Path) -> None:
    """PATH without npm, an empty cache: what a machine without Node does."""
    (tmp_path / "bin").mkdir()
    git = shutil.which("git")
    if git:
        (tmp_path / "bin" / "git").symlink_to(git)
    env = {"PATH": str(tmp_path / "bin"), "WASMGRAPH_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "r.json"
    done = run_bench(
        "--backends", "onnxruntime", "--rounds", "1", "-k", "latency", f"--benchmark-json={out}", env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FALLBACK" in done.stdout
    frame = wg.results(out)
    assert set(frame["model"]) == {"resnet50-random"}
    assert set(frame["weights"]) == {"random"}
    assert any("RANDOM weights" in notice for notice in summarize(out).info.notices)


def test_a_file_without_latency_still_shows_its_accuracy(small_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = run_bench("--models", small_onnx, "-k", "accuracy", "--backends", "native@native,onnxruntime",
                     f"--benchmark-json={out}")  # fmt: skip
    assert done.returncode == 0, done.stdout
    rows = summarize(out).rows
    assert [row.median_s for row in rows] == [None, None]
    assert all("latency not measured" in words for words in sentences(rows)[:2])
    assert build_report([out], tmp_path).exists()


def test_wrong_options_end_with_a_message() -> None:
    done = run_bench("--backends", "tensorflow")
    assert done.returncode == 4
    assert "unknown backend 'tensorflow'" in done.stderr


def test_a_model_that_cannot_be_measured_is_said_once(tmp_path: Path) -> None:
    open_dimensions = tmp_path / "open.onnx"
    onnx.save(
        model_of([onnx.helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 3]}, ["y"]), open_dimensions
    )
    done = run_bench("--models", open_dimensions)
    assert done.returncode == 4
    assert "--shape x=1,3" in done.stderr
    done = run_bench("--models", "absent.onnx")
    assert done.returncode == 4
    assert "absent.onnx: No such file" in done.stderr
