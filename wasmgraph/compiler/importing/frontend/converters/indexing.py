"""Operators that move elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto
from tvm import relax, te, tirx

from wasmgraph.compiler.importing.frontend.converters.bounds import checked, flat_rows
from wasmgraph.compiler.importing.frontend.converters.moving import take, take_along
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    expression,
    has_no_elements,
    integers,
    is_known,
    shape_of,
    size_array,
    size_list,
)
from wasmgraph.compiler.sizes import number
from wasmgraph.dims import Size, is_closed, is_zero, operation, same
from wasmgraph.errors import ModelError


@converts("Pad")
def pad(op: Operator, data: Value, pads: Value = None, fill: Value = None, axes: Value = None) -> Any:
    """Use TVM's operator, except in two cases: modes other than ``constant`` whose pads are negative or
    repeat an axis more than once, where TVM reads outside of the tensor, and a fill value that is computed
    when the graph runs."""
    mode, shape = op.attr("mode", "constant"), shape_of(data)
    amounts: list[Size] = (
        list(op.attr("pads", op.attr("paddings", []))) if op.opset < 11 else size_list(pads)
    )
    chosen = range(len(shape)) if axes is None else integers(axes)
    before: list[Size] = [0] * len(shape)
    after: list[Size] = [0] * len(shape)
    for n, axis in enumerate(chosen):
        before[axis], after[axis] = amounts[n], amounts[n + len(amounts) // 2]
    if mode != "constant":
        known = [int(size) for size in before], [int(size) for size in after]
        beyond = (max(b, a) >= d for b, a, d in zip(*known, shape, strict=True))
        if min(*known[0], *known[1]) < 0 or any(beyond):
            return _pad_by_places(op, data, mode, *known)
        return op.tvm(data, pads, fill, axes)
    if is_closed([*before, *after]) and (op.opset < 11 or is_known(fill)):
        return op.tvm(data, pads, fill, axes)
    fill = np.zeros(1, dtype_of(data)) if fill is None else fill
    padded: list[Size] = [d + b + a for d, b, a in zip(shape, before, after, strict=True)]

    def compute(x: te.Tensor, value: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            at = [v - b for v, b in zip(i, before, strict=True)]
            inside = tirx.all(*(tirx.all(a >= 0, a < d) for a, d in zip(at, shape, strict=True)))
            return tirx.if_then_else(inside, x(*at), value(*[0] * len(value.shape)))

        return te.compute(padded, one, name="pad")

    return op.te(compute, data, fill)


def _pad_by_places(op: Operator, data: Value, mode: str, before: list[int], after: list[int]) -> Any:
    """Pad with any pads, one axis at a time: each index of the result takes an index of the input.

    As in onnxruntime, elements are cut off before any are repeated.
    """
    for axis, (front, back) in enumerate(zip(before, after, strict=True)):
        if not front and not back:
            continue
        size = shape_of(data)[axis]
        kept = np.arange(max(0, -front), size - max(0, -back))
        if not len(kept):
            raise op.unsupported(f"of mode {mode!r} cuts everything off axis {axis}")
        at = np.arange(-max(0, front), len(kept) + max(0, back))
        if mode == "wrap":
            places = at % len(kept)
        elif mode == "edge":
            places = np.clip(at, 0, len(kept) - 1)
        else:
            period = max(1, 2 * (len(kept) - 1))
            places = np.abs((at + period // 2) % period - period // 2) if len(kept) > 1 else at * 0
        data = op("Gather", data, kept[places].astype(np.int64), axis=axis)
    return data


@converts("OneHot")
def one_hot(op: Operator, indices: Value, depth: Value, values: Value) -> Any:
    """An index out of range gives only off values."""
    shape = shape_of(indices)
    axis = int(op.attr("axis", -1)) % (len(shape) + 1)
    depth = op("Cast", depth, to=TensorProto.INT64)
    count = size_list(depth)[0] if is_known(depth) else op.said_sizes(depth, [None], [axis])[0]
    dtype = dtype_of(indices)

    def compute(index: te.Tensor, off_on: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            at = index(*i[:axis], *i[axis + 1 :])
            here = tirx.Select(at < tirx.const(0, dtype), at + number(count, dtype), at)
            return tirx.Select(here == i[axis].astype(dtype), off_on[1], off_on[0])

        return te.compute([*shape[:axis], count, *shape[axis:]], one, name="one_hot")

    return op.te(compute, indices, values)


def _reducers(dtype: str) -> dict[str, tuple[Callable[..., Any], Any]]:
    """TE reductions and their neutral elements, by ONNX's name."""
    product = te.comm_reducer(lambda a, b: a * b, lambda t: tirx.const(1, t), name="prod")
    return {
        "add": (te.sum, tirx.const(0, dtype)),
        "mul": (product, tirx.const(1, dtype)),
        "max": (te.max, tirx.min_value(dtype)),
        "min": (te.min, tirx.max_value(dtype)),
    }


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "max": te.max,
    "min": te.min,
}


def _scatter(
    op: Operator,
    data: Value,
    indices: Value,
    updates: Value,
    count: Size,
    points_at: Callable[..., Any],
    source: Callable[..., tuple[Any, ...]],
) -> Any:
    """Scatter by gathering: each output element searches the ``count`` updates for those that point at it,
    so no two updates write to the same element.

    ``points_at(indices, n, i)`` tells whether update n points at element i; ``source(n, i)`` is the index
    of the update.
    """
    shape, dtype, how = shape_of(data), dtype_of(data), op.attr("reduction", "none")
    if dtype == "bool" and how != "none":
        raise op.unsupported(f"with the reduction {how!r} of truth values")

    def last_of(x: te.Tensor, index: te.Tensor, update: te.Tensor) -> te.Tensor:
        n = te.reduce_axis((0, count), name="n")
        none = tirx.const(-1, "int32")

        def which(*i: Any) -> Any:
            here = points_at(index, n.var, i)
            return te.max(tirx.Select(here, n.var.astype("int32"), none), axis=n)

        chosen = te.compute(shape, which, name="which")

        def one(*i: Any) -> Any:
            found = chosen(*i)
            taken = update(*source(te.max(found, tirx.const(0, "int32")), i))
            return tirx.if_then_else(found >= tirx.const(0, "int32"), taken, x(*i))

        return te.compute(shape, one, name="scatter")

    def all_of(x: te.Tensor, index: te.Tensor, update: te.Tensor) -> te.Tensor:
        n = te.reduce_axis((0, count), name="n")
        reducer, neutral = _reducers(dtype)[how]

        def total(*i: Any) -> Any:
            taken = tirx.if_then_else(points_at(index, n.var, i), update(*source(n.var, i)), neutral)
            return reducer(taken, axis=n)

        found = te.compute(shape, total, name="total")
        return te.compute(shape, lambda *i: _COMBINE[how](x(*i), found(*i)), name="scatter")

    return op.te(last_of if how == "none" else all_of, data, indices, updates)


@converts("Gather")
def gather(op: Operator, data: Value, indices: Value) -> Any:
    """Take slices along an axis by their indices."""
    shape = shape_of(data)
    axis = int(op.attr("axis", 0)) % len(shape)
    places = checked(op, indices, shape[axis])
    if has_no_elements(shape_of(indices)):
        return np.zeros([*shape[:axis], *shape_of(indices), *shape[axis + 1 :]], dtype_of(data))
    return take(op, data, places, axis)


@converts("GatherElements")
def gather_elements(op: Operator, data: Value, indices: Value) -> Any:
    """Take one element along an axis for each index."""
    shape = shape_of(data)
    axis = int(op.attr("axis", 0)) % len(shape)
    places = checked(op, indices, shape[axis])
    if has_no_elements(shape_of(indices)):
        return np.zeros(shape_of(indices), dtype_of(data))
    return take_along(op, data, places, axis)


@converts("GatherND")
def gather_nd(op: Operator, data: Value, indices: Value) -> Any:
    """Take slices by index tuples, each of which is converted to one row number."""
    shape, batch_dims = shape_of(data), int(op.attr("batch_dims", 0))
    *sizes, depth = shape_of(indices)
    rest = shape[batch_dims + depth :]
    if has_no_elements(sizes):
        return np.zeros([*sizes, *rest], dtype_of(data))
    rows = flat_rows(op, indices, shape, batch_dims)
    return take(op, op("Reshape", data, size_array([-1, *rest])), rows)


@converts("ScatterElements", "Scatter")
def scatter_elements(op: Operator, data: Value, indices: Value, updates: Value) -> Any:
    """Write updates along one axis."""
    shape, extent = shape_of(data), shape_of(indices)
    axis = int(op.attr("axis", 0)) % len(shape)
    if has_no_elements(extent):
        return data
    places = checked(op, indices, shape[axis])

    def source(n: Any, i: Any) -> tuple[Any, ...]:
        # Elements outside the shape of the indices have no update, but need a valid index all the same.
        return tuple(n if a == axis else te.min(v, extent[a] - 1) for a, v in enumerate(i))

    def points_at(index: te.Tensor, n: Any, i: Any) -> Any:
        inside = [v < extent[a] for a, v in enumerate(i) if a != axis]
        return tirx.all(index(*source(n, i)) == i[axis].astype("int32"), *inside)

    return _scatter(op, data, places, updates, extent[axis], points_at, source)


@converts("ScatterND")
def scatter_nd(op: Operator, data: Value, indices: Value, updates: Value) -> Any:
    """Write updates of whole slices."""
    shape, depth = shape_of(data), shape_of(indices)[-1]
    count = prod(shape_of(indices)[:-1])
    if is_zero(count):
        return data
    flat = flat_rows(op, op("Reshape", indices, size_array([count, depth])), shape)
    rows = op("Reshape", updates, size_array([count, *shape[depth:]]))

    def points_at(index: te.Tensor, n: Any, i: Any) -> Any:
        row = tirx.const(0, "int32")
        for size, v in zip(shape[:depth], i, strict=False):
            row = row * size + v.astype("int32")
        return index(n) == row

    return _scatter(op, data, flat, rows, count, points_at, lambda n, i: (n, *i[depth:]))


@converts("TensorScatter")
def tensor_scatter(op: Operator, past: Value, update: Value, starts: Value = None) -> Any:
    """Write new rows into a cache, starting at one position per batch entry."""
    shape, rows = shape_of(past), shape_of(update)
    axis = int(op.attr("axis", -2)) % len(shape)
    circular = op.attr("mode", "linear") == "circular"
    if starts is None:
        starts = np.zeros(shape[0], np.int64)
    if not circular:
        starts = checked(op, starts, shape[axis] - rows[axis] + 1, first=0)

    def compute(x: te.Tensor, new: te.Tensor, start: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            offset = i[axis].astype("int64") - start(i[0]).astype("int64")
            if circular:
                offset = tirx.floormod(offset, tirx.const(shape[axis], "int64"))
            inside = tirx.all(offset >= 0, offset < rows[axis])
            at = te.max(te.min(offset, rows[axis] - 1), 0)
            return tirx.if_then_else(inside, new(*(at if a == axis else v for a, v in enumerate(i))), x(*i))

        return te.compute(shape, one, name="tensor_scatter")

    return op.te(compute, past, update, starts)


@converts("ReverseSequence")
def reverse_sequence(op: Operator, data: Value, lengths: Value) -> Any:
    """Reverse the first elements of each sequence, as many as its length says."""
    time, batch, shape = int(op.attr("time_axis", 0)), int(op.attr("batch_axis", 1)), shape_of(data)
    lengths = checked(op, lengths, shape[time] + 1, first=0)

    def compute(x: te.Tensor, length: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            end, at = length(i[batch]).astype("int64"), i[time].astype("int64")
            source = tirx.Select(at < end, end - at - tirx.const(1, "int64"), at)
            return x(*(source if a == time else v for a, v in enumerate(i)))

        return te.compute(shape, one, name="reverse_sequence")

    return op.te(compute, data, lengths)


@converts("Split")
def split(op: Operator, data: Value, sizes: Value = None) -> Any:
    """Use TVM's split, unless a piece is empty; then use slices."""
    axis = int(op.attr("axis", 0)) % len(shape_of(data))
    length, count = shape_of(data)[axis], op.outputs
    if sizes is not None:
        lengths = integers(sizes)
    elif op.attr("split") is not None:
        lengths = list(op.attr("split"))
    else:
        count = int(op.attr("num_outputs", count))
        step = -(-length // count)
        lengths = [min(step, length - step * n) for n in range(count)]
    if 0 not in lengths and len(lengths) > 1:
        at = [int(n) for n in np.cumsum(lengths)[:-1]]
        return tuple(op.emit(relax.op.split(expression(data), at, axis)))
    starts = np.cumsum([0, *lengths])
    return tuple(
        op("Slice", data, *(size_array([n]) for n in (starts[i], starts[i + 1], axis)))
        for i in range(len(lengths))
    )


@converts("Slice")
def slice_(
    op: Operator,
    data: Value,
    starts: Value = None,
    ends: Value = None,
    axes: Value = None,
    steps: Value = None,
) -> Any:
    """Clamp all bounds to the tensor, as ONNX does."""
    shape = shape_of(data)
    if op.opset >= 10 and not (is_known(starts) and is_known(ends)):
        return _slice_by_data(op, data, starts, ends, axes, steps)
    if op.opset < 10:
        begin, end = list(op.attr("starts")), list(op.attr("ends"))
        along = list(op.attr("axes", range(len(begin))))
        by = [1] * len(begin)
    else:
        begin, end = size_list(starts), size_list(ends)
        along = list(range(len(begin))) if axes is None else integers(axes)
        by = [1] * len(begin) if steps is None else integers(steps)
    along = [axis % len(shape) for axis in along]
    bounds = {a: _clamped(b, e, s, shape[a]) for b, e, a, s in zip(begin, end, along, by, strict=True)}
    result = [bounds[a][1] if a in bounds else size for a, size in enumerate(shape)]
    if any(map(is_zero, result)):
        return (
            np.zeros(result, dtype_of(data)) if is_closed(result) else _open_slice(op, data, result, bounds)
        )
    if all(same(b, 0) and same(n, shape[a]) and s == 1 for a, (b, n, s) in bounds.items()):
        return data
    if not is_closed([size for begin, length, _ in bounds.values() for size in (begin, length)]):
        return _open_slice(op, data, result, bounds)
    # TVM, like ONNX, counts a negative end from the end of the axis, so pass a very small number instead.
    ends_ = [b + n * s if b + n * s >= 0 else -(1 << 31) for b, n, s in bounds.values()]
    return relax.op.strided_slice(
        expression(data),
        list(bounds),
        [b for b, _, _ in bounds.values()],
        ends_,
        [s for *_, s in bounds.values()],
    )


def _slice_by_data(
    op: Operator, data: Value, starts: Value, ends: Value, axes: Value, steps: Value
) -> Value:
    """A slice whose first and last places data says: a kernel finds for each axis the first place and the
    number of elements, which is a dimension."""
    (count,) = shape_of(starts)
    if shape_of(ends) != (count,) or not isinstance(count, int):
        raise ModelError(f"its starts and ends are {shape_of(starts)} and {shape_of(ends)} numbers")
    along = list(range(count)) if axes is None else integers(axes)
    by = [1] * count if steps is None else integers(steps)
    starts, ends = (op("Cast", value, to=TensorProto.INT64) for value in (starts, ends))
    for place, (axis, step) in enumerate(zip(along, by, strict=True)):
        data = _slice_axis(op, data, starts, ends, place, axis % len(shape_of(data)), step)
    return data


def _slice_axis(
    op: Operator, data: Value, starts: Value, ends: Value, place: int, axis: int, step: int
) -> relax.Expr:
    shape = shape_of(data)
    size = shape[axis]

    def bounds(start: te.Tensor, end: te.Tensor) -> list[te.Tensor]:
        least = tirx.const(0 if step > 0 else -1, "int64")
        past = number(size if step > 0 else size - 1, "int64")

        def within(v: Any) -> Any:
            v = tirx.Select(v < tirx.const(0, "int64"), v + number(size, "int64"), v)
            return tirx.Max(tirx.Min(v, past), least)

        def length(_: Any) -> Any:
            whole = within(end[place]) - within(start[place])
            up = whole + tirx.const(step - (1 if step > 0 else -1), "int64")
            return tirx.Max(tirx.truncdiv(up, tirx.const(step, "int64")), tirx.const(0, "int64"))

        first = te.compute((1,), lambda _: within(start[place]), name="first")
        return [first, te.compute((1,), length, name="count")]

    found = op.walk.te(bounds, starts, ends, name="bounds", alone=True)
    first, count = (op.emit(relax.TupleGetItem(found, n)) for n in range(2))
    kept = op.said(operation("//", size + (abs(step) - 1), abs(step)), count, axis)

    def compute(x: te.Tensor, begin: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            at = begin[0] + i[axis].astype("int64") * tirx.const(step, "int64")
            # Whoever runs single calls in any order may find other numbers in their places.
            inside = tirx.Max(tirx.Min(at, number(size - 1, "int64")), tirx.const(0, "int64"))
            return x(*(inside.astype("int32") if a == axis else v for a, v in enumerate(i)))

        return te.compute([kept if a == axis else d for a, d in enumerate(shape)], one, name="slice")

    return op.te(compute, data, first)


def _clamped(begin: Size, end: Size, step: int, size: Size) -> tuple[Size, Size, int]:
    """The first element of a slice, their number, and the step."""
    if isinstance(begin, int) and isinstance(end, int) and isinstance(size, int):
        places = range(*slice(begin, end, step).indices(size))
        return places.start, len(places), step

    def within(place: Size, least: int, most: Size) -> Size:
        if place < 0:
            place = size + place
        return operation("max", operation("min", place, most), least)

    if step > 0:
        first, last = within(begin, 0, size), within(end, 0, size)
        length = -((first - last) // step)
    else:
        first = within(begin, -1, size - 1)
        # An end of −∞ is before the first element; any other negative number counts from the end.
        last = -1 if isinstance(end, int) and end < -(1 << 30) else within(end, -1, size - 1)
        length = -((last - first) // -step)
    return first, operation("max", length, 0), step


def _open_slice(
    op: Operator, data: Value, result: Sequence[Size], bounds: Mapping[int, tuple[Size, Size, int]]
) -> relax.Expr:
    def compute(x: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            return x(*(v * bounds[a][2] + bounds[a][0] if a in bounds else v for a, v in enumerate(i)))

        return te.compute(result, one, name="slice")

    return op.te(compute, data)


@converts("SpaceToDepth")
def space_to_depth(op: Operator, data: Value) -> Any:
    """Rearrange blocks of pixels into channels, in the order depth, column, row or the reverse."""
    n, c, h, w = shape_of(data)
    b = int(op.attr("blocksize"))
    pixels = op("Reshape", data, size_array([n, c, h // b, b, w // b, b]))
    crd = op.attr("mode", "DCR") == "CRD"
    moved = op("Transpose", pixels, perm=[0, 1, 3, 5, 2, 4] if crd else [0, 3, 5, 1, 2, 4])
    return op("Reshape", moved, size_array([n, c * b * b, h // b, w // b]))
