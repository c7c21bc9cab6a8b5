"""Reads tensors from files of Hugging Face's safetensors format, without that library.

Such a file is the length of a header (8 bytes, little-endian), the header (JSON: dtype, shape and place of
each tensor), and the tensors' bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from wasmgraph.errors import FetchError
from wasmgraph.tensors import Array

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "<i1", "U8": "<u1"}


def read_tensors(content: bytes) -> Mapping[str, Array]:
    """All tensors of a file, by name. They are read-only views of ``content``.

    Raises
    ------
    FetchError
        It is no such file, or has a dtype that numpy lacks.
    """
    try:
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begin])
        header.pop("__metadata__", None)
        return {name: _tensor(name, said, content, begin) for name, said in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"not a file of safetensors: {error}.") from error


def _tensor(name: str, said: Mapping[str, Any], content: bytes, begin: int) -> Array:
    dtype, shape = np.dtype(_DTYPES[said["dtype"]]), said["shape"]
    first, end = said["data_offsets"]
    count = prod(shape)
    if not 0 <= first <= end <= len(content) - begin or end - first != count * dtype.itemsize:
        raise ValueError(f"{name} has {count} numbers in bytes {first} to {end} of {len(content) - begin}")
    return np.frombuffer(content, dtype, count, begin + first).reshape(shape)
