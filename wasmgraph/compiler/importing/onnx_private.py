"""What is used of onnx that it does not promise to keep: tests/compiler/importing/test_onnx_private.py."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
from onnx import external_data_helper


def external_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """The bytes of a tensor in another file, which must lie in the model's ``folder``.

    Raises
    ------
    ValueError, onnx.checker.ValidationError, OSError
        The file is elsewhere, is no file, or is too short.
    """
    read: bytes = external_data_helper._read_external_data_bytes(tensor, str(folder))
    return read


def parser_error() -> type[Exception]:
    """What onnx raises for a model in its own text format that does not parse."""
    error: type[Exception] = onnx.parser.ParseError
    return error
