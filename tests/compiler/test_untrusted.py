"""A model that nobody vouches for is compiled in a process that may spend so much, and not more."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

import wasmgraph as wg
from wasmgraph.compiler import CompileLog
from wasmgraph.compiler.untrusted import parent
from wasmgraph.errors import CompileError, LimitError, ModelError, UnsupportedOperatorError, UsageError
from wasmgraph.limits import Limits


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No process, and nothing in the place for temporary files once the artifacts are gone."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    before = {process.pid for process in children()}
    yield
    assert {process.pid for process in children()} <= before
    assert list(place.iterdir()) == []


def test_the_artifact_is_the_same_to_the_byte(small_onnx: Path) -> None:
    plain, log = CompileLog(), CompileLog()
    seen: list[str] = []
    log.observer = lambda stage: seen.append(stage.name)
    expected = wg.compile(small_onnx, log=plain)
    artifact = wg.compile(small_onnx, log=log, untrusted=True)
    assert artifact.path.read_bytes() == expected.path.read_bytes()
    assert (log.rules, log.fallbacks) == (plain.rules, plain.fallbacks)
    assert [stage.name for stage in log.stages] == [stage.name for stage in plain.stages]
    assert seen[::2] == [stage.name for stage in plain.stages]


def test_options_are_passed_on(small_onnx: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    shapes = {"x": (1, 3, 19, 17)}
    options = {"target": "wasm32", "shapes": shapes, "params": "wasi", "keep": keep}
    artifact = wg.compile(small_onnx, **options, untrusted=True)
    assert artifact.manifest.target == "wasm32"
    assert artifact.params_path.is_file()
    assert (keep / "graph.wat").is_file()


def test_a_model_in_memory(small_onnx: Path) -> None:
    import onnx

    assert wg.compile(onnx.load(small_onnx), untrusted=True).outputs


def test_what_is_wrong_is_said_as_ever(tmp_path: Path) -> None:
    from onnx import helper

    from tests.conftest import model_of

    with pytest.raises(ModelError, match="No such file"):
        wg.compile(tmp_path / "absent.onnx", untrusted=True)
    model = model_of([helper.make_node("Unheard", ["x"], ["y"], domain="my.ops")], {"x": [1]}, ["y"])
    with pytest.raises(UnsupportedOperatorError, match="Unheard"):
        wg.compile(model, untrusted=True)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(memory_bytes=200 << 20), "200 MB|209,715,200 bytes"),
        (Limits(cpu_s=1), "more than 1 s of processor time"),
        (Limits(wall_s=1.0), "longer than 1 s"),
    ],
    ids=["memory", "processor", "clock"],
)
def test_who_takes_too_much_is_ended(small_onnx: Path, limits: Limits, words: str) -> None:
    began = time.monotonic()
    with pytest.raises((LimitError, CompileError), match=words):
        wg.compile(small_onnx, untrusted=True, limits=limits)
    assert time.monotonic() - began < 60


CHILDREN = {
    "silent": ("import time; time.sleep(60)", Limits(wall_s=1), LimitError),
    "gone": ("", Limits(), CompileError),
    "crashed": ("import os; os.kill(os.getpid(), 4)", Limits(), CompileError),
    "babbling": ("print('x' * 5_000_000)", Limits(), CompileError),
    "nonsense": ("print('[1, 2]')", Limits(), CompileError),
    "odd error": ("print('{\"error\": \"SystemExit\", \"message\": 1}')", Limits(), wg.WasmgraphError),
    "lying": ("print('{\"done\": {\"rules\": {}, \"fallbacks\": [], \"constant_outputs\": []}}')", Limits(),
              None),
    "offspring": (
        "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)",
        Limits(wall_s=1),
        LimitError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", CHILDREN)
def test_a_child_that_was_taken_over(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever it answers, the parent raises an error of ours, and ends everything that it started."""
    text, limits, kind = CHILDREN[how]
    hostile = tmp_path / "hostile.py"
    hostile.write_text(text)
    monkeypatch.setattr(parent, "_COMMAND", ("-B", str(hostile)))
    with pytest.raises(kind or wg.WasmgraphError):
        wg.compile(small_onnx, untrusted=True, limits=limits)


def test_limits_are_for_untrusted_models(small_onnx: Path) -> None:
    with pytest.raises(UsageError, match="untrusted=True"):
        wg.compile(small_onnx, limits=Limits())


def test_the_command_line(small_onnx: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from wasmgraph.cli import main

    out = tmp_path / "o.wasm"
    words = ["compile", str(small_onnx), "-o", str(out), "--untrusted"]
    done = CliRunner().invoke(main, [*words, "--limit-seconds", "0.5"])
    assert (done.exit_code, out.exists()) == (3, False)
    assert "longer than 0.5 s" in done.output or "processor time" in done.output
    done = CliRunner().invoke(main, [*words, "--limit-memory", "4096"])
    assert (done.exit_code, out.exists()) == (0, True)
