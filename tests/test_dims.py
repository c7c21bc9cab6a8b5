"""Sizes: arithmetic over names agrees with arithmetic over their values, and survives JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.dims import (
    Dim,
    Expression,
    bounded,
    bounds,
    evaluate,
    from_json,
    is_closed,
    names,
    operation,
    same,
    to_json,
)
from wasmgraph.errors import OpenSizeError

DIMS = {"batch": Dim("batch", 1, 8), "seq": Dim("seq", 0, 512)}
LEAVES = st.one_of(st.integers(0, 64), st.sampled_from([Expression.of(name) for name in DIMS]))
SIZES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(operation, st.sampled_from(["+", "-", "*", "min", "max"]), inner, inner)
        | st.builds(lambda size, by: operation("//", size, by), inner, st.integers(1, 9))
    ),
    max_leaves=8,
)


@given(SIZES, st.integers(1, 8), st.integers(0, 512))
def test_a_size_lies_within_its_bounds_and_survives_json(size, batch, seq):
    values = {"batch": batch, "seq": seq}
    again = from_json(json.loads(json.dumps(to_json(size))))
    least, most = bounds(size, DIMS)
    assert least <= evaluate(size, values) == evaluate(again, values) <= most
    assert names(size) <= DIMS.keys()
    assert is_closed((size,)) == (not names(size))


def test_arithmetic_is_written_as_usual():
    seq = Expression.of("seq")
    assert evaluate(2 * seq + 1, {"seq": 5}) == 11
    assert evaluate((10 - seq) // 2, {"seq": 5}) == 2
    assert str(2 * seq + 1) == "(2*seq)+1"
    assert seq * 1 == seq + 0 == 0 + seq == seq // 1 == operation("max", seq, seq) == seq
    assert str(DIMS["seq"]) == "seq=0..512"


@pytest.mark.parametrize("data", [True, 1.5, "", None, ["/", 1, 2], ["+", 1], ["//", "seq", 0], {}])
def test_what_is_no_size_is_refused(data):
    with pytest.raises((TypeError, ValueError)):
        from_json(data)


def test_a_quotient_of_a_quotient_is_one():
    n = Expression.of("n")
    assert same((n // 2 + 1) // 16, (n + 2) // 32)
    assert same(((n - 1) // 2) // 16 + 1, (n - 1) // 32 + 1)


def test_depth_is_limited():
    data: object = "seq"
    for _ in range(100):
        data = ["+", data, 1]
    with pytest.raises(TypeError):
        from_json(data)


def test_a_divisor_that_may_be_0_is_refused():
    with pytest.raises(ZeroDivisionError):
        bounds(operation("//", 8, Expression.of("seq")), DIMS)
    with pytest.raises(ZeroDivisionError):
        operation("//", Expression.of("seq"), 0)
    with pytest.raises(KeyError):
        evaluate(Expression.of("heads"), {})
    with pytest.raises(ValueError, match="heads"):
        Dim("heads", 3, 2)


@given(SIZES, SIZES)
def test_what_bounds_decide_holds_for_every_value(left, right):
    """A comparison is right for all values of the dimensions, or undecided."""
    dims = {"batch": Dim("batch", 0, 3), "seq": Dim("seq", 1, 5)}
    try:
        with bounded(dims):
            less = left < right
    except OpenSizeError:
        return
    for batch in range(4):
        for seq in range(1, 6):
            values = {"batch": batch, "seq": seq}
            assert (evaluate(left, values) < evaluate(right, values)) == less


def test_the_smaller_of_two_sizes_is_at_most_each():
    n = Expression.of("n")
    few = operation("min", n, 30)
    with bounded({"n": Dim("n", 1, 64)}):
        assert few <= n
        assert few <= few
        assert few < few + 1
        assert few < 31
        assert not few > n
        assert operation("max", n, 30) >= n
        with pytest.raises(OpenSizeError):
            assert few < n
