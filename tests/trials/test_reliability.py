"""The first runs of `make faults` and `make soak`, which do hundreds and a million."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import wasmgraph as wg
from trials import soak
from trials.faulting import conditions, kills, limits
from wasmgraph import models
from wasmgraph.errors import CacheError, ModelError

ROOT = Path(__file__).parent.parent.parent
BASELINE = ROOT / "results" / "baseline.json"


def scene(name: str, place: Path, small_onnx: Path) -> kills.Scene:
    if name == "compile":
        return kills.compiling(place, small_onnx)
    if name == "fetch":
        return kills.fetching(place, "light_squeezenet", None)
    results = place / "many.json"
    kills.write_many(BASELINE, results, 5)
    return kills.remembering(place, results)


@pytest.mark.parametrize(
    ("name", "how", "count"),
    [
        ("compile", signal.SIGKILL, 2),
        ("fetch", signal.SIGKILL, 2),
        ("history add", signal.SIGKILL, 3),
        ("compile", signal.SIGINT, 2),
    ],
)
def test_who_is_killed_leaves_nothing_that_is_not_whole(
    tmp_path: Path, small_onnx: Path, name: str, how: signal.Signals, count: int
) -> None:
    blows = list(kills.blows(scene(name, tmp_path, small_onnx), count, 7, how))
    assert [blow.find for blow in blows if blow.find] == []


def test_the_results_of_a_bench_are_whole_or_those_of_before(tmp_path: Path, small_onnx: Path) -> None:
    scene = kills.benching(tmp_path, small_onnx, BASELINE)
    (blow,) = (b for b in kills.blows(scene, 1, 3))
    assert blow.find is None


def test_pytest_soon_answers_ctrl_c() -> None:
    """It does once a conftest is imported; TVM and onnxruntime take seconds."""
    slow = ("tvm", "onnxruntime", "wasmtime", "scipy", "onnx")
    found = f"import sys, bench.conftest; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", found], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_finds_are_found(tmp_path: Path, small_onnx: Path) -> None:
    """A module whose parameters have gone, half a file in the cache, a history that says a run twice."""
    scene = kills.compiling(tmp_path, small_onnx)
    kills.duration(scene)
    (params,) = (tmp_path / "wasmgraph-params").iterdir()
    params.write_bytes(params.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="is not whole"):
        scene.check(False)
    params.unlink()
    with pytest.raises(AssertionError, match="without its parameters"):
        scene.check(False)


def test_hostile_graphs_are_ended_and_nobody_notices(small_artifact, tmp_path: Path) -> None:
    found = limits.overshoots(small_artifact("wasm32"), tmp_path, 1)
    assert max(said.get("worst_overshoot_s", 0) for said in found.values()) < 5  # make faults judges it
    assert found["sessions beside"]["right_results"] > 0


@pytest.mark.parametrize("condition", ["read_only_cache", "jumping_clock"])
def test_machines_that_are_not_as_they_should_be(tmp_path: Path, small_onnx: Path, condition: str) -> None:
    assert getattr(conditions, condition)(small_onnx, tmp_path)


def test_processes_share_the_cache(tmp_path: Path, small_onnx: Path) -> None:
    assert conditions.crowd(small_onnx, tmp_path, 2)


@pytest.mark.parametrize(
    ("status", "said", "obeyed"),
    [
        (130, "interrupted", True),
        (-2, 'File "<frozen site>", line 1\nKeyboardInterrupt', True),
        (
            1,
            'File "/lib/python3.11/re/_parser.py", line 1\nKeyboardInterrupt',
            True,
        ),  # importing a .pth file
        (1, f'File "{ROOT}/wasmgraph/files.py", line 1\nKeyboardInterrupt', False),
        (130, "Traceback", False),
    ],
)
def test_a_traceback_from_before_the_package_is_no_find(
    tmp_path: Path, small_onnx: Path, status: int, said: str, obeyed: bool
) -> None:
    assert kills._obeyed(scene("fetch", tmp_path, small_onnx), status, said) == obeyed


def test_a_full_cache_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("WASMGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "write_atomically", full)
    with pytest.raises(
        CacheError, match="light_squeezenet: the cache .*No space left on device.*make room"
    ):
        wg.fetch("light_squeezenet")


def test_a_model_that_is_larger_than_a_module_is_refused() -> None:
    from onnx import helper

    from tests.conftest import model_of

    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [1 << 15, 1 << 15]}, ["y"])
    for target in ("wasm32", "wasm32-simd128-threads"):
        with pytest.raises(ModelError, match="a WebAssembly module has 4 GiB"):
            wg.compile(model, target=target)


def test_sessions_stay_as_they_are() -> None:
    figures = soak.soaked(0.001, Console(quiet=True))
    assert not [find for find in soak.finds(figures) if "grows" not in find]  # too few to tell growth
    assert figures["at once"]["inferences"] == 8 * 20


def test_what_does_not_hold_of_a_soak_is_found() -> None:
    good = {"wrong_outputs": 0, "growth_bytes": 4096}
    assert soak.finds({"a": good}) == []
    for bad in ({"wrong_outputs": 1}, {"growth_bytes": 1 << 26}, {"deadlocks": 1}, {"open_files_more": 2}):
        assert len(soak.finds({"a": good | bad})) == 1


def test_a_session_that_answers_otherwise_is_noticed(small_artifact) -> None:
    with wg.load(small_artifact("wasm32")) as session:
        expected = session.run(limits.seeded(session))
    assert soak._same(expected, expected)
    assert not soak._same(expected, {name: array + np.float32(1e-7) for name, array in expected.items()})


def test_the_record_has_every_figure() -> None:
    held = json.loads((ROOT / "results" / "reliability.json").read_text())
    assert {"soak", "faults_SIGKILL", "faults_SIGINT", "faults_conditions", "untrusted"} <= set(held)
    kinds = ("modules", "onnx_files", "graphs", "results_files", "command_lines")
    assert {f"fuzz_{kind}" for kind in kinds} <= set(held)
    assert all(held[f"fuzz_{kind}"]["finds"] == 0 for kind in kinds)
