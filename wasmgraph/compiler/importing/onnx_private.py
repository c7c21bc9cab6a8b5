"""All uses of onnx's private API; tests/compiler/importing/test_onnx_private.py checks that it exists."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
from onnx import external_data_helper


def external_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """Return the bytes of a tensor in an external file, which must be inside the model's ``folder``.

    Raises
    ------
    ValueError, onnx.checker.ValidationError, OSError
        The file is outside ``folder``, is not a regular file, or is too short.
    """
    read: bytes = external_data_helper._read_external_data_bytes(tensor, str(folder))
    return read


def parser_error() -> type[Exception]:
    """The class of onnx's error for a model in its own text format that cannot be parsed."""
    error: type[Exception] = onnx.parser.ParseError
    return error
