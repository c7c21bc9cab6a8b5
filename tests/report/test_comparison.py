from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.analysis.conftest import benchmark
from wasmgraph.analysis.thresholds import OWN
from wasmgraph.cli import main

HOSTILE = "<script>|@everyone`[bold]\n# title"


def results(path: Path, work: int, **changes: object) -> Path:
    entry = benchmark(work_fuel=work, **changes)
    info = {"schema": 1, "host": "here"}
    path.write_text(json.dumps({"benchmarks": [entry], "wasmgraph": info, "commit_info": {"id": HOSTILE}}))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_comparing_needs_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, head = results(Path("base.json"), 1000), results(Path("head.json"), 1100)
    assert run(base, head).exit_code == 1
    Path("mine.toml").write_text(OWN.read_text().replace("relative = 0.0005", "relative = 0.2"))
    assert run(base, head, "--thresholds", "mine.toml").exit_code == 0


@pytest.mark.parametrize(
    ("work", "code", "words"),
    [(1000, 0, "not worse: 0 worse"), (2000, 1, "WORSE: 1 worse"), (500, 0, "1 better")],
)
def test_the_exit_code_is_the_verdict(tmp_path: Path, work: int, code: int, words: str) -> None:
    done = run(results(tmp_path / "base.json", 1000), results(tmp_path / "head.json", work))
    assert done.exit_code == code
    assert words in done.output
    assert "not comparable: 1 × time of another run" in done.output


def test_json_has_every_verdict(tmp_path: Path) -> None:
    done = run(results(tmp_path / "base.json", 1000), results(tmp_path / "head.json", 2000), "--json")
    data = json.loads(done.stdout)
    assert data["worse"] is True
    assert data["counts"]["worse"] == 1
    assert data["verdicts"][0] | {"base": 1000, "head": 2000, "ratio": 2} == data["verdicts"][0]


def test_nothing_comparable_is_no_pass(tmp_path: Path) -> None:
    other = results(tmp_path / "head.json", 1000, model_sha256="1" * 64)
    done = run(results(tmp_path / "base.json", 1000), other)
    assert done.exit_code == 2
    assert "nothing in these two files could be compared" in done.output


def test_markdown_is_written_whole_and_escaped(tmp_path: Path) -> None:
    base, head = (
        results(tmp_path / f"{side}.json", work, model=HOSTILE)
        for side, work in (("base", 1000), ("head", 2000))
    )
    markdown = tmp_path / "verdict.md"
    done = run(base, head, "--markdown", markdown)
    assert done.exit_code == 1
    assert f"base {HOSTILE[:12]}" in done.output
    text = markdown.read_text()
    assert text.startswith("### wasmgraph: WORSE: 1 worse")
    assert "+100.00%" in text
    for raw in ("<script>", "@everyone", "`", "\n# title", "[bold]"):
        assert raw not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {7}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    files = [results(tmp_path / f"{side}.json", 1000) for side in ("base", "head")]
    done = run(*files, "--markdown", tmp_path / "absent" / "verdict.md")
    assert done.exit_code == 2
    assert "cannot be written" in done.output


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path / "absent.json", results(tmp_path / "head.json", 1000))
    assert done.exit_code == 2
    assert "No such file" in done.output
