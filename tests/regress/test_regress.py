"""Revisions of a repository of its own: this one's files, and a change that slows one backend down."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

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
    command = ["regress", "HEAD~1", "--models", str(small_onnx), "--backends", "wasm32@wasmtime,native@tvm"]
    where = ["-o", str(tmp_path), "--thresholds", str(ROOT / "results" / "thresholds.toml")]
    done = CliRunner().invoke(main, [*command, *where, "--pairs", "4", "--processes", "10", "--json"])
    assert done.exit_code == 1, done.output
    verdicts = json.loads(done.stdout)["verdicts"]
    times = {v["series"]: v["outcome"] for v in verdicts if v["metric"] == "time"}
    assert times["test_latency[small-wasm32@wasmtime]"] == "worse"
    others = {v["outcome"] for v in verdicts if v["metric"] != "time"}
    assert others == {"no significant difference"}
    base, head = (results(tmp_path / f"{side}.json") for side in ("base", "head"))
    assert set(base["backend"]) == set(head["backend"]) == {"wasm32@wasmtime", "native@tvm"}
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
        codegen = head.root / "wasmgraph" / "compiler" / "codegen.py"
        codegen.write_text("raise RuntimeError('broken')\n")
        from wasmgraph.backends import parse_list

        options = Options([str(small_onnx)], parse_list("wasm32@wasmtime", 1, ()), pairs=4, least=1, most=1)
        files = measure_pair(base, head, options, tmp_path, print)
    failed = json.loads(files[1].read_text())["wasmgraph"]["failed"]
    assert "broken" in failed["small on wasm32@wasmtime"]
    thresholds = ["--thresholds", str(ROOT / "results" / "thresholds.toml")]
    judged = CliRunner().invoke(main, ["compare", *map(str, files), *thresholds])
    assert judged.exit_code == 1
    assert "failed in head" in judged.output


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
            with pytest.raises(ExecutionError, match="its process ended"):
                for _ in range(3):
                    worker.ask("call", name="x", processors=[0])
        with WorkerProcess(there) as worker, pytest.raises(ExecutionError, match="KeyError"):
            worker.ask("call", name="x", processors=[0])
