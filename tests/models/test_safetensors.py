from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.errors import FetchError
from wasmgraph.models.safetensors import read_tensors


def file_of(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_are_read_by_name() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64)
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    found = read_tensors(file_of(header, a.tobytes() + b.tobytes()))
    assert list(found) == ["a", "b"]
    for name, expected in (("a", a), ("b", b)):
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize(
    "said",
    [
        {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2]},
        [],
    ],
)
def test_tensors_that_are_none_are_refused(said: object) -> None:
    with pytest.raises(FetchError, match="not a file of safetensors"):
        read_tensors(file_of({"a": said}, bytes(8)))


@given(st.binary(max_size=64))
def test_other_bytes_hold_no_tensors(content: bytes) -> None:
    try:
        assert read_tensors(content) == {}
    except FetchError as error:
        assert "not a file of safetensors" in str(error)
