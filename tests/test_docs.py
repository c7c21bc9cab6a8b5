from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from wasmgraph.records import Record

ROOT = Path(__file__).parent.parent
DOCS = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])


def test_every_column_of_the_results_is_documented() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    documented = set(re.findall(r"`([a-z0-9_]+)`", text))
    assert {field.name for field in fields(Record)} <= documented


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
