"""The record of ONNX's tests, read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wasmgraph.analysis.conformance import read_conformance
from wasmgraph.errors import RecordError


@pytest.fixture
def record(tmp_path: Path) -> Path:
    cases = {
        "Node/test_add_cpu": {"operator": "Add", "counts": True, "wasm32": ["passed"]},
        "Node/test_add_uint8_cpu": {"operator": "Add", "counts": True, "wasm32": ["folded"]},
        "Node/test_add_text_cpu": {"operator": "Add", "counts": False, "wasm32": ["refused", "text"]},
        "Node/test_if_cpu": {
            "operator": "If",
            "counts": True,
            "wasm32": ["refused", "test_if: the node that makes 'y' (If): If depends on data."],
        },
        "Simple/test_x_cpu": {"operator": "(networks)", "counts": True, "wasm32": ["wrong", "1 != 2"]},
    }
    path = tmp_path / "conformance.json"
    path.write_text(
        json.dumps({"onnx": "1.2", "dtypes": ["float"], "summary": {"wasm32": {}}, "cases": cases})
    )
    return path


def test_only_node_tests_on_these_dtypes_count(record: Path) -> None:
    found = read_conformance(record)
    assert found.counted["wasm32"] == {"passed": 1, "folded": 1, "refused": 1}
    assert found.share("wasm32") == pytest.approx(1 / 3)
    assert found.everything["wasm32"]["wrong"] == 1
    assert [(row.operator, row.cases) for row in found.operators] == [("Add", 2), ("If", 1)]
    assert found.operators[1].reasons == ["If depends on data"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cases": {}}'])
def test_what_is_no_record(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(RecordError, match="make conformance"):
        read_conformance(path)
    with pytest.raises(RecordError, match="cannot be read"):
        read_conformance(tmp_path / "absent.json")
