"""Operators that take shapes, where these depend on dimensions; TVM converts them for closed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import numpy_helper
from tvm import relax, te, tirx, topi

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import (
    Sizes,
    Value,
    dtype_of,
    expression,
    is_known,
    shape_of,
    size_array,
    size_list,
)
from wasmgraph.compiler.sizes import chosen, number
from wasmgraph.dims import Size, broadcast, is_closed, is_number, is_one, operation, product
from wasmgraph.errors import ModelError


@converts("Reshape")
def reshape(op: Operator, data: Value, shape: Value = None) -> Any:
    """A size of -1 is what is left for it."""
    if not is_known(shape):
        return _reshape_by_data(op, data, shape)
    if op.opset < 5 or (is_closed(shape_of(data)) and not isinstance(shape, Sizes)):
        return op.tvm(data, shape)
    own, wanted = shape_of(data), size_list(shape)
    if not op.attr("allowzero", 0):
        wanted = [own[n] if is_number(size, 0) else size for n, size in enumerate(wanted)]
    free = [n for n, size in enumerate(wanted) if is_number(size, -1)]
    if free:
        others = product(size for n, size in enumerate(wanted) if n != free[0])
        wanted[free[0]] = operation("//", product(own), others)
    before, after = product(own), product(wanted)
    if before != after:
        raise ModelError(f"{before} elements do not make up the shape [{', '.join(map(str, wanted))}]")
    return relax.op.reshape(expression(data), wanted)


def _int64(value: int) -> Any:
    return tirx.const(value, "int64")


def _shape_by_data(op: Operator, shape: Value, size: Callable[[Any, int], Any]) -> Value:
    """A tensor of sizes (int64) that are made of those that data says: ``size`` of one and its place."""
    (rank,) = shape_of(shape)

    def compute(said: te.Tensor) -> te.Tensor:
        sizes = [size(said, n) for n in range(int(rank))]
        return te.compute((rank,), lambda i: chosen(i, sizes), name="shape")

    return op.walk.te(compute, shape, name="shape", alone=True)


def _reshape_by_data(op: Operator, data: Value, shape: Value) -> Any:
    """Reshape to sizes that data says. A kernel replaces 0 and -1 by the sizes that they stand for. All
    are -1, which is out of their bounds, if they do not make up the tensor's elements."""
    own, (rank,) = shape_of(data), shape_of(shape)

    def given(said: te.Tensor, n: int) -> Any:
        kept = number(own[n], "int64") if n < len(own) else _int64(-2)  # no size
        value = said[n].astype("int64")
        return value if op.attr("allowzero", 0) else tirx.Select(value == _int64(0), kept, value)

    def size(said: te.Tensor, n: int) -> Any:
        elements, free = number(product(own), "int64"), _int64(0)
        past, others = elements + _int64(1), _int64(1)  # products stop there: they do not overflow
        for other in range(int(rank)):
            value = given(said, other)
            factor = tirx.Max(tirx.Min(value, past), _int64(0))
            others = tirx.Select(value == _int64(-1), others, tirx.Min(others * factor, past))
            free = free + tirx.Select(value == _int64(-1), _int64(1), _int64(0))
        rest = tirx.floordiv(elements, tirx.Max(others, _int64(1)))
        found = tirx.Select(given(said, n) == _int64(-1), rest, given(said, n))
        whole = tirx.Select(free == _int64(0), others, others * rest)
        return tirx.Select(tirx.all(whole == elements, free <= _int64(1)), found, _int64(-1))

    found = op.said_sizes(_shape_by_data(op, shape, size), [product(own)] * int(rank), range(int(rank)))
    if is_known(data):  # TVM would fold it
        return op.te(lambda x: topi.reshape(x, found), data)
    return relax.op.reshape(expression(data), found)


@converts("Expand")
def expand(op: Operator, data: Value, shape: Value) -> Any:
    """Broadcast to a shape, both ways."""
    if not is_known(shape):
        return _expand_by_data(op, data, shape)
    if is_closed(shape_of(data)) and not isinstance(shape, Sizes):
        return op.tvm(data, shape)
    wide = broadcast(shape_of(data), size_list(shape))
    return op.te(lambda x: topi.broadcast_to(x, wide), data)


def _expand_by_data(op: Operator, data: Value, shape: Value) -> Any:
    own, (rank,) = shape_of(data), shape_of(shape)
    further = len(own) - int(rank)  # dimensions that only the tensor has

    def at(n: int) -> Size:
        return own[n + further] if n + further >= 0 else 1

    def size(said: te.Tensor, n: int) -> Any:
        value, mine = said[n].astype("int64"), number(at(n), "int64")
        fits = tirx.any(value == _int64(1), value == mine)
        return value if is_one(at(n)) else tirx.Select(fits, mine, _int64(-1))

    most = [None if is_one(at(n)) else at(n) for n in range(int(rank))]
    wide = [
        *own[: max(0, further)],
        *op.said_sizes(
            _shape_by_data(op, shape, size), most, range(max(0, further), len(most) + max(0, further))
        ),
    ]

    def compute(x: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            places = i[len(wide) - len(own) :]
            return x(*(0 if is_one(d) else place for d, place in zip(own, places, strict=True)))

        return te.compute(wide, one, name="expand")

    return op.te(compute, data)


@converts("Tile")
def tile(op: Operator, data: Value, repeats: Value, *rest: Value) -> Any:
    """Repeat a tensor along its axes."""
    own = shape_of(data)
    if op.opset < 6 or (is_closed(own) and is_known(repeats) and not isinstance(repeats, Sizes)):
        return op.tvm(data, repeats, *rest)
    times = size_list(repeats) if is_known(repeats) else op.said_sizes(repeats, [None] * len(own))
    wide = [operation("*", size, by) for size, by in zip(own, times, strict=True)]

    def compute(x: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            once = (is_number(by, 1) for by in times)
            return x(*(v if by else tirx.floormod(v, d) for v, d, by in zip(i, own, once, strict=True)))

        return te.compute(wide, one, name="tile")

    return op.te(compute, data)


@converts("ConstantOfShape")
def constant_of_shape(op: Operator, shape: Value) -> Any:
    """A tensor of one value."""
    if is_known(shape) and not isinstance(shape, Sizes):
        return op.tvm(shape)
    given = op.attr("value")
    value = np.zeros(1, np.float32) if given is None else numpy_helper.to_array(given).reshape(-1)
    wanted = size_list(shape) if is_known(shape) else _said_shape(op, shape)
    one = tirx.const(value[0].item(), str(value.dtype))
    return op.te(lambda: te.compute(wanted, lambda *_: one, name="constant"))


@converts("Range")
def range_(op: Operator, start: Value, limit: Value, delta: Value) -> Any:
    """Numbers from a start, as many as there are before the limit."""
    if not all(map(is_known, (start, limit, delta))):
        return _range_by_data(op, start, limit, delta)
    if not any(isinstance(value, Sizes) for value in (start, limit, delta)):
        return op.tvm(start, limit, delta)
    (begin,), (end,), (step,) = map(size_list, (start, limit, delta))
    if not isinstance(step, int) or not step:
        raise op.unsupported("has a step that depends on dimensions, or is 0")
    count: Size = operation("max", -((begin - end) // step), 0)
    dtype = dtype_of(start)

    def compute() -> te.Tensor:
        def one(i: Any) -> Any:
            return number(begin, dtype) + i.astype(dtype) * tirx.const(step, dtype)

        return te.compute((count,), one, name="range")

    return op.te(compute)


def _steps(first: Any, end: Any, by: Any) -> Any:
    """How many numbers there are from ``first`` to before ``end``; -1 if more than an int64 holds."""
    zero, one, least = _int64(0), _int64(1), _int64(-(2**63))
    up = by > zero
    low, high = tirx.Select(up, first, end), tirx.Select(up, end, first)
    # Numbers of unlike signs may be further apart than an int64 holds. TVM takes differences for exact, but
    # not those of halves.
    beyond = (high >> one) - (low >> one) >= _int64(2**62)
    far = tirx.Max(high - low, one)
    step = tirx.Max(tirx.Select(up, by, zero - tirx.Max(by, least + one)), one)
    count = tirx.truncdiv(far - one, step) + one
    return tirx.Select(high <= low, zero, tirx.Select(beyond, _int64(-1), count))


def _said_shape(op: Operator, shape: Value) -> list[Size]:
    rank = int(shape_of(shape)[0])
    return op.said_sizes(shape, [None] * rank, range(rank))


def _range_by_data(op: Operator, start: Value, limit: Value, delta: Value) -> Any:
    dtype = dtype_of(start)
    zero = tirx.const(0, dtype)
    numbers = [op("Reshape", value, size_array([1])) for value in (start, limit, delta)]

    def count(first: te.Tensor, end: te.Tensor, step: te.Tensor) -> te.Tensor:
        def one(_: Any) -> Any:
            by = tirx.Select(step[0] == zero, tirx.const(1, dtype), step[0])
            if dtype.startswith("float"):  # in float64, as onnxruntime does
                apart = (end[0] - first[0]).astype("float64")
                steps = tirx.ceil(apart / by.astype("float64")).astype("int64")
            else:
                steps = _steps(*(value.astype("int64") for value in (first[0], end[0], by)))
            return tirx.Select(step[0] == zero, _int64(-1), tirx.Max(steps, _int64(-1)))

        return te.compute((1,), one, name="count")

    length = op.said(None, op.walk.te(count, *numbers, name="count", alone=True), 0)

    def compute(first: te.Tensor, step: te.Tensor) -> te.Tensor:
        return te.compute((length,), lambda i: first[0] + i.astype(dtype) * step[0], name="range")

    return op.te(compute, numbers[0], numbers[2])
