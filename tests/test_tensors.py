from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.dims import Expression
from wasmgraph.errors import FeedError, UsageError
from wasmgraph.tensors import TensorSpec, check_feeds, noise, signature

SPECS = (TensorSpec("a", (2, 3), "float32"), TensorSpec("b", (1,), "int64"))


def feeds() -> dict[str, np.ndarray]:
    return {"b": np.zeros(1, np.int64), "a": np.zeros((2, 3), np.float32)}


def test_feeds_come_back_in_the_order_of_the_specs() -> None:
    assert [a.dtype for a in check_feeds(SPECS, feeds())] == [np.float32, np.int64]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": np.zeros((3, 2), np.float32)}, r"'a': expected a: float32\[2, 3\], got a: float32\[3, 2\]"),
        ({"a": np.zeros((2, 3))}, r"expected a: float32\[2, 3\], got a: float64.*strict=False"),
        ({"a": [[1.0]]}, "'a' is a list; expected a numpy array, .*strict=False"),
        ({"c": np.zeros(1)}, "no input is called 'c'"),
        ({0: np.zeros(1)}, "no input is called 0"),
    ],
)
def test_wrong_feeds_say_what_was_expected_and_what_to_do(change: dict, words: str) -> None:
    with pytest.raises(FeedError, match=words):
        check_feeds(SPECS, feeds() | change)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "'a' is a NoneType"),
        ("x", "'a' is a str"),
        (b"x", "'a' is a bytes"),
        ({}, "input 'a' is not given"),
        (object(), "'a' is a object|got a: object"),
        ([[1, 2, 3], [4]], "'a' is a list"),
        (np.zeros((2, 3), object), "got a: object"),
        (np.full((2, 3), "1.0"), "got a: <U3"),
        (np.zeros((2, 3), complex), r"no cast keeps the values of. If that is meant: .astype\('float32'\)"),
        (np.zeros((2, 3), [("u", "f4")]), "got a: .*which no cast keeps"),
        (np.zeros((2, 3), "M8[s]"), "got a: datetime64"),
        (np.ma.masked_less(np.zeros((2, 3), np.float32), 1), "masked array.*filled"),
    ],
)
def test_what_is_no_feed_is_never_taken(value: object, words: str, strict: bool) -> None:
    with pytest.raises(FeedError, match=words):
        check_feeds(SPECS[:1], value, strict)


def test_several_inputs_want_a_mapping() -> None:
    for value in (None, [1.0], "x", np.zeros(3)):
        with pytest.raises(
            FeedError, match=r"expected a mapping .*takes a: float32\[2, 3\], b: int64\[1\]"
        ):
            check_feeds(SPECS, value)


def test_one_input_needs_no_name() -> None:
    array = feeds()["a"]
    assert check_feeds(SPECS[:1], array) == [array]
    assert check_feeds(SPECS[:1], [[1, 2, 3]] * 2, strict=False)[0].tolist() == [[1, 2, 3]] * 2


def test_what_changes_no_value_is_taken_strictly() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for same in (values.astype(">f4"), values.view(np.matrix), np.asfortranarray(values)):
        (taken,) = check_feeds(SPECS[:1], {"a": same})
        assert type(taken) is np.ndarray
        assert taken.dtype.isnative
        np.testing.assert_array_equal(taken, values)
    assert check_feeds([TensorSpec("n", (), "int64")], np.int64(3)) == [3]


NAMES = ("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64")


@given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from([0, 1, 100, -1, 300, 70000, 2**40]))
def test_casting_keeps_to_same_kind_and_loses_no_integer(given: str, wanted: str, value: int) -> None:
    with np.errstate(all="ignore"):
        array = np.array([value]).astype(given)
        cast = array.astype(wanted)
    allowed = np.can_cast(given, wanted, "same_kind")
    held = bool((cast == array).all()) if np.dtype(wanted).kind in "iu" else bool(np.isfinite(cast).all())
    held |= not np.isfinite(array).all()
    spec = TensorSpec("x", (1,), wanted)
    if allowed and held:
        np.testing.assert_array_equal(check_feeds([spec], array, strict=False)[0], cast)
    else:
        with pytest.raises(FeedError, match="cannot hold" if allowed else "no cast keeps"):
            check_feeds([spec], array, strict=False)
    if given != wanted:
        with pytest.raises(FeedError):
            check_feeds([spec], array)


def test_integers_without_a_dtype_are_judged_by_their_values() -> None:
    spec = TensorSpec("x", (2,), "uint8")
    assert check_feeds([spec], [0, 255], strict=False)[0].dtype == np.uint8
    for bad in ([0, 256], [-1, 0], [0.5, 1]):
        with pytest.raises(FeedError, match="cannot hold|no cast keeps"):
            check_feeds([spec], bad, strict=False)
    assert check_feeds([TensorSpec("x", (0,), "int64")], [], strict=False)[0].dtype == np.int64


def test_a_missing_feed_is_named() -> None:
    with pytest.raises(FeedError, match="input 'b' is not given"):
        check_feeds(SPECS, {"a": feeds()["a"]})


@given(st.lists(st.integers(0, 7), max_size=4), st.sampled_from(["float32", "int8", "bool", "float64"]))
def test_nbytes_is_numpys(shape: list[int], dtype: str) -> None:
    assert TensorSpec("x", tuple(shape), dtype).nbytes == np.zeros(shape, dtype).nbytes


def test_a_signature_is_short_and_harmless() -> None:
    assert signature(SPECS, ()) == "a: float32[2, 3], b: int64[1] → nothing"
    hostile = TensorSpec("\x1b[2J", (), "bool")
    assert signature(SPECS * 20, [hostile]).endswith(", 36 more → \ufffd[2J: bool[]")


def test_a_shape_with_a_dimension_has_a_size_once_that_has_a_value() -> None:
    spec = TensorSpec("ids", (2, Expression.of("seq")), "int64")
    assert str(spec) == "ids: int64[2, seq]"
    assert spec.at({"seq": 3}) == TensorSpec("ids", (2, 3), "int64")
    assert spec.at({"seq": 3}).nbytes == 48
    with pytest.raises(UsageError, match="no value"):
        _ = spec.nbytes


def test_noise_of_wide_integers_fits_any_index() -> None:
    """Profiling a network of text ended with an index out of range."""
    specs = [TensorSpec("ids", (50,), "int64"), TensorSpec("x", (50,), "float32")]
    found = noise(specs, np.random.default_rng(0))
    assert set(found["ids"].tolist()) == {0, 1}
    assert found["x"].dtype == np.float32
    assert found["x"].std() > 0.5
