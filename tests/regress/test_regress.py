"""Revisions of a repository of its own: this one's files, and a change that slows one backend down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from wasmgraph.analysis import compare, read_thresholds
from wasmgraph.backends import parse_list
from wasmgraph.cli import main
from wasmgraph.errors import ExecutionError, UsageError
from wasmgraph.records import results
from wasmgraph.regress import Options, checkout, measure_pair, repository
from wasmgraph.regress.checkouts import Checkout
from wasmgraph.regress.process import WorkerProcess

ROOT = Path(__file__).parent.parent.parent
SLOW = """
    def _run(self, arrays: list[Array]) -> list[Array]:
        import time

        time.sleep(0.002)
"""


def git(root: Path, *command: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    done = subprocess.run(
        ["git", *identity, *command], cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repo") / "checkout"
    root.mkdir()
    for path in ("wasmgraph", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        source = ROOT / path
        if source.is_dir():
            shutil.copytree(source, root / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / path)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "base")
    runtime = root / "wasmgraph" / "runtimes" / "wasmtime.py"
    signature = "\n    def _run(self, arrays: list[Array]) -> list[Array]:\n"
    assert signature in runtime.read_text()
    runtime.write_text(runtime.read_text().replace(signature, SLOW))
    git(root, "commit", "--quiet", "-am", "slow")
    return root


def test_a_slower_revision_is_judged_worse(
    repo: Path, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo)
    command = [
        "regress",
        "HEAD~1",
        "--models",
        str(small_onnx),
        "--backends",
        "wasm32@wasmtime,native@native",
    ]
    options = ["-o", str(tmp_path), "--pairs", "4", "--processes", "10", "--json"]
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 1, done.output
    verdicts = json.loads(done.stdout)["verdicts"]
    times = {v["series"]: v["outcome"] for v in verdicts if v["metric"] == "time"}
    assert times["test_latency[small-wasm32@wasmtime]"] == "worse"
    others = {v["outcome"] for v in verdicts if v["metric"] != "time"}
    assert others == {"no significant difference"}
    base, head = (results(tmp_path / f"{side}.json") for side in ("base", "head"))
    assert set(base["backend"]) == set(head["backend"]) == {"wasm32@wasmtime", "native@native"}
    assert (base["rounds"] >= 40).all()
    commits = [
        json.loads((tmp_path / f"{side}.json").read_text())["commit_info"]["id"]
        for side in ("base", "head")
    ]
    assert commits == [git(repo, "rev-parse", r) for r in ("HEAD~1", "HEAD")]
    assert git(repo, "worktree", "list").count("\n") == 0


def test_a_revision_that_does_not_compile_fails_and_says_so(
    repo: Path, small_onnx: Path, tmp_path: Path
) -> None:
    with checkout(repo, "HEAD~1", print) as base, checkout(repo, "HEAD", print) as head:
        codegen = head.root / "wasmgraph" / "compiler" / "lower" / "codegen.py"
        codegen.write_text("raise RuntimeError('broken')\n")
        options = Options([str(small_onnx)], parse_list("wasm32@wasmtime", 1, ()), pairs=4, least=1, most=1)
        files = measure_pair(base, head, options, tmp_path, print)
    failed = json.loads(files[1].read_text())["wasmgraph"]["failed"]
    assert "broken" in failed["small on wasm32@wasmtime"]
    judged = CliRunner().invoke(main, ["compare", *map(str, files)])
    assert judged.exit_code == 1
    assert "failed in head" in judged.output


def test_a_backend_that_traps_in_head_is_worse_and_costs_the_others_nothing(
    repo: Path, small_onnx: Path, tmp_path: Path
) -> None:
    with checkout(repo, "HEAD~1", print) as base, checkout(repo, "HEAD~1", print) as head:
        entry = head.root / "wasmgraph" / "compiler" / "link" / "csrc" / "entry.c"
        trapping = entry.read_text().replace(
            "#ifdef __wasm__\n", "#ifdef __wasm__\n#define run(a) (__builtin_trap(), 0)\n"
        )
        entry.write_text(trapping)
        chosen = parse_list("wasm32@wasmtime,native@native", 1, ())
        options = Options([str(small_onnx)], chosen, pairs=4, least=1, most=2)
        files = measure_pair(base, head, options, tmp_path, print)
    assert "small on wasm32@wasmtime" in json.loads(files[1].read_text())["wasmgraph"]["failed"]
    compared = compare(*files, read_thresholds())
    assert {v.series for v in compared.of("worse")} == {"small on wasm32@wasmtime"}
    assert any(v.series == "small-native@native" for v in compared.of("no significant difference"))


def test_models_that_are_not_there_or_not_told_apart(repo: Path, small_onnx: Path, tmp_path: Path) -> None:
    here = Checkout(repo, sys.executable, "0")
    chosen = parse_list("wasm32@wasmtime", 1, ())
    with pytest.raises(UsageError, match="there is no such file"):
        measure_pair(here, here, Options(["absent.onnx"], chosen), tmp_path, print)
    with pytest.raises(UsageError, match="two models would be called 'small'"):
        measure_pair(here, here, Options([str(small_onnx)] * 2, chosen), tmp_path, print)


def test_what_a_killed_process_left_is_removed(repo: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f"wasmgraph-revision-{dead.pid}-x"
    alive = tmp_path / f"wasmgraph-revision-{os.getpid()}-x"
    for place in (left, alive):
        place.mkdir()
        git(repo, "worktree", "add", "--detach", "--quiet", str(place / "wasmgraph"), "HEAD")
    with checkout(repo, "HEAD", print):
        pass
    assert not left.exists()
    assert (alive / "wasmgraph").exists()
    git(repo, "worktree", "remove", "--force", str(alive / "wasmgraph"))
    assert git(repo, "worktree", "list").count("\n") == 0


def test_unknown_revisions(repo: Path) -> None:
    with pytest.raises(UsageError, match="no revision 'nowhere'"), checkout(repo, "nowhere", print):
        pass


def test_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not a checkout of wasmgraph"):
        repository()


def test_a_worker_that_ends_is_an_error(repo: Path) -> None:
    with checkout(repo, "HEAD", print) as there:
        with WorkerProcess(Checkout(there.root, "/bin/false", there.commit)) as worker:
            with pytest.raises(ExecutionError, match="its process (ended|cannot be understood)"):
                for _ in range(3):
                    worker.ask("call", name="x", processors=[0])
        with WorkerProcess(there) as worker, pytest.raises(ExecutionError, match="KeyError"):
            worker.ask("call", name="x", processors=[0])


def test_what_libraries_print_is_no_answer_and_last_words_are_told(repo: Path, small_onnx: Path) -> None:
    with checkout(repo, "HEAD", print) as there:
        home = there.root / "wasmgraph" / "compiler" / "__init__.py"
        home.write_text(home.read_text() + "\nimport os\n\nos.write(1, b'noise\\n')\n")
        with WorkerProcess(there) as worker:
            output = str(there.root / "small.wasm")
            worker.ask("compile", model=str(small_onnx), target="wasm32", output=output)
        (there.root / "wasmgraph" / "__init__.py").write_text("oops")
        with WorkerProcess(there) as worker, pytest.raises(ExecutionError, match="NameError: name 'oops'"):
            worker.ask("call", name="x", processors=[0])


def test_threads_of_a_pool_may_use_all_processors(repo: Path, small_onnx: Path, tmp_path: Path) -> None:
    """A thread inherits where its starter may run: a backend of one thread must not bind the next one's."""
    chosen = parse_list("wasm32@wasmtime,wasm32-simd128-threads@wasmtime:2", 1, ())
    probe = """
    def run(self, feeds):
        import os, threading
        names = {t.native_id for t in threading.enumerate() if t.name.startswith("wasmgraph-")}
        if names and {len(os.sched_getaffinity(t)) for t in names} != {os.cpu_count()}:
            raise RuntimeError("a thread of the pool is bound")
        return self._real_run(feeds)
"""
    with checkout(repo, "HEAD~1", print) as base, checkout(repo, "HEAD~1", print) as head:
        home = head.root / "wasmgraph" / "runtimes" / "base.py"
        text = home.read_text().replace("    def run(", "    def _real_run(", 1)
        home.write_text(text.replace("    def _check_open", probe + "\n    def _check_open", 1))
        files = measure_pair(base, head, Options([str(small_onnx)], chosen, 4, 1, 1), tmp_path, print)
    assert json.loads(files[1].read_text())["wasmgraph"]["failed"] == {}
