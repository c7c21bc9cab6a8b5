from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.dims import Expression
from wasmgraph.errors import FeedError, UsageError
from wasmgraph.tensors import TensorSpec, check_feeds

SPECS = (TensorSpec("a", (2, 3), "float32"), TensorSpec("b", (1,), "int64"))


def feeds() -> dict[str, np.ndarray]:
    return {"b": np.zeros(1, np.int64), "a": np.zeros((2, 3), np.float32)}


def test_feeds_come_back_in_the_order_of_the_specs() -> None:
    assert [a.dtype for a in check_feeds(SPECS, feeds())] == [np.float32, np.int64]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": np.zeros((3, 2), np.float32)}, r"'a': expected a: float32\[2, 3\], got a: float32\[3, 2\]"),
        ({"a": np.zeros((2, 3))}, r"expected a: float32\[2, 3\], got a: float64"),
        ({"a": [[1.0]]}, "'a' is a list; expected a numpy array"),
        ({"c": np.zeros(1)}, "no input is called 'c'"),
    ],
)
def test_wrong_feeds_say_what_was_expected(change: dict, words: str) -> None:
    with pytest.raises(FeedError, match=words):
        check_feeds(SPECS, feeds() | change)


def test_a_missing_feed_is_named() -> None:
    with pytest.raises(FeedError, match="input 'b' is not given"):
        check_feeds(SPECS, {"a": feeds()["a"]})


@given(st.lists(st.integers(0, 7), max_size=4), st.sampled_from(["float32", "int8", "bool", "float64"]))
def test_nbytes_is_numpys(shape: list[int], dtype: str) -> None:
    assert TensorSpec("x", tuple(shape), dtype).nbytes == np.zeros(shape, dtype).nbytes


def test_a_shape_with_a_dimension_has_a_size_once_that_has_a_value() -> None:
    spec = TensorSpec("ids", (2, Expression.of("seq")), "int64")
    assert str(spec) == "ids: int64[2, seq]"
    assert spec.at({"seq": 3}) == TensorSpec("ids", (2, 3), "int64")
    assert spec.at({"seq": 3}).nbytes == 48
    with pytest.raises(UsageError, match="no value"):
        _ = spec.nbytes
