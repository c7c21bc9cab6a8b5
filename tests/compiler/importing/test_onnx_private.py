"""What importing relies on that onnx does not promise: a new onnx that lacks it fails here, by name."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import external_data_helper

from wasmgraph.compiler.importing.onnx_private import external_bytes, parser_error


def test_bytes_in_other_files_are_read_by_onnx_own_rules(tmp_path: Path) -> None:
    assert hasattr(external_data_helper, "_read_external_data_bytes"), "external_bytes relies on it"
    (tmp_path / "w.bin").write_bytes(b"0123456789")
    tensor = onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "2"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    assert external_bytes(tensor, tmp_path) == b"2345"
    tensor.external_data[0].value = "../w.bin"
    with pytest.raises((ValueError, onnx.checker.ValidationError)):
        external_bytes(tensor, tmp_path)


def test_text_that_does_not_parse_raises_the_parser_s_error() -> None:
    with pytest.raises(parser_error()):
        onnx.parser.parse_model("{ nonsense")
