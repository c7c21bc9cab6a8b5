"""The documents are true: commands run, links lead somewhere, nothing is left out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import wasmgraph as wg
from tests.conftest import wasmtime_program
from wasmgraph.errors import FetchError
from wasmgraph.records import Record

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOK = sorted((ROOT / "docs" / "notebook").glob("*.md"))
DOCS = [*GUIDES, *NOTEBOOK, *sorted(ROOT.glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Examples that need a framework are run in test_pytorch.py and test_mindspore.py.
FRAMEWORKS = ("import torch", "import mindspore")
# A regression of ResNet-50 between branches takes minutes: the same command, on less.
SHORTER = {"main HEAD --models light_squeezenet": "HEAD HEAD --models model.onnx --pairs 4 --processes 10"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_onnx: Path) -> Path:
    """What a reader has in front of them: this repository, a model, results, a compiled graph."""
    place = tmp_path_factory.mktemp("docs")
    for path in ROOT.iterdir():
        if path.name not in ("results", "reports", ".venv"):
            (place / path.name).symlink_to(path)
    shutil.copytree(
        ROOT / "results", place / "results", ignore=shutil.ignore_patterns("*.photos", "regress")
    )
    shutil.copy(small_onnx, place / "model.onnx")
    wasmtime_program()  # can be executed
    wg.compile(wg.fetch("light_squeezenet")).save(place / "squeezenet.wasm")
    return place


def run(place: Path, language: str, text: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = (
        [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    )
    done = subprocess.run(
        command, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def guide_block(containing: str) -> str:
    """The one example among the guides that contains a text."""
    (found,) = [
        text for guide in GUIDES for _, text in BLOCK.findall(guide.read_text()) if containing in text
    ]
    return found


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_command_runs(guide: Path, place: Path) -> None:
    for language, text in BLOCK.findall(guide.read_text()):
        if any(framework in text for framework in FRAMEWORKS):
            continue
        if "regress" in text and not (ROOT / ".git").exists():
            pytest.skip("revisions are compared in a git checkout; this is none")
        if "fetch minilm" in text:
            try:
                wg.fetch("minilm")
            except FetchError as error:
                pytest.skip(f"the trained MiniLM cannot be fetched: {error}")
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        run(place, language, re.sub(r"^make (?=[a-z])", "make -n ", text, flags=re.MULTILINE))


def test_readme_leads_to_every_guide() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{guide.name}" for guide in GUIDES} | {"docs/notebook/README.md"}


def test_notebook_leads_to_every_topic() -> None:
    index = next(path for path in NOTEBOOK if path.name == "README.md")
    assert set(re.findall(r"\]\(([^)#/]+\.md)", index.read_text())) == {
        topic.name for topic in NOTEBOOK if topic != index
    }


@pytest.mark.parametrize(("name", "lines"), [("README.md", 100), ("ARCHITECTURE.md", 150)])
def test_what_a_newcomer_reads_first_is_short(name: str, lines: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= lines


def test_contributing_lists_every_make_target() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert set(listed) == set(targets.split())


def test_every_column_of_the_results_is_documented() -> None:
    text = (ROOT / "docs" / "results-file.md").read_text()
    documented = set(re.findall(r"`([a-z0-9_]+)`", text))
    assert {field.name for field in fields(Record)} <= documented


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", path.read_text())):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_tests_that_documents_name_exist(path: Path) -> None:
    for name in re.findall(r"`(tests/[^`]*)`", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"
