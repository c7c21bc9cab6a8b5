"""Cumulative and ordering operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from wasmgraph.compiler.importing.frontend.converters.moving import ordered_keys, take_along
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    is_known,
    scalar,
    shape_of,
    size_array,
    size_list,
)
from wasmgraph.dims import Size, is_closed


@converts("CumSum", "CumProd")
def cumulative(op: Operator, data: Value, axis: Value) -> Any:
    """Scan by recursive doubling: after k steps every element combines 2^k elements up to itself
    (Hillis & Steele, "Data Parallel Algorithms", 1986).
    """
    combine, neutral = ("Add", 0) if op.node.op_type == "CumSum" else ("Mul", 1)
    shape, backwards = shape_of(data), bool(op.attr("reverse", 0))
    along = scalar(axis) % len(shape)
    length = shape[along]

    if not is_closed(shape):
        return _by_sums(op, data, along, backwards)

    def shifted(value: Value, by: int) -> Any:
        ends = (by, length) if backwards else (0, length - by)
        kept = op("Slice", value, *(size_array([n]) for n in (*ends, along)))
        fill = np.full([by if i == along else d for i, d in enumerate(shape)], neutral, dtype_of(data))
        return op("Concat", *((kept, fill) if backwards else (fill, kept)), axis=along)

    found = data
    step = 1
    while step < length:
        found = op(combine, found, shifted(found, step))
        step *= 2
    return shifted(found, 1) if op.attr("exclusive", 0) else found


def _by_sums(op: Operator, data: Value, along: int, backwards: bool) -> Any:
    """Each element by a sum, or product, of its own: sizes of a scan's steps must be numbers."""
    shape, dtype = shape_of(data), dtype_of(data)
    sums, exclusive = op.node.op_type == "CumSum", bool(op.attr("exclusive", 0))
    neutral = tirx.const(0 if sums else 1, dtype)
    product = te.comm_reducer(lambda a, b: a * b, lambda t: tirx.const(1, t), name="prod")

    def compute(x: te.Tensor) -> te.Tensor:
        n = te.reduce_axis((0, shape[along]), name="n")

        def one(*i: Any) -> Any:
            first, last = (i[along], n.var) if backwards else (n.var, i[along])
            counts = first < last if exclusive else first <= last
            term = tirx.Select(counts, x(*(n.var if a == along else v for a, v in enumerate(i))), neutral)
            return te.sum(term, axis=n) if sums else product(term, axis=n)

        return te.compute(shape, one, name="cumulative")

    return op.te(compute, data)


@converts("TopK")
def top_k(op: Operator, data: Value, k: Value = None) -> Any:
    """An element's rank is the number of elements ordered before it. The first k ranks are gathered."""
    shape, dtype = shape_of(data), dtype_of(data)
    axis = int(op.attr("axis", -1)) % len(shape)
    length, largest = shape[axis], bool(op.attr("largest", 1))
    if k is None:
        count: Size = int(op.attr("k"))
    else:
        (count,) = size_list(k) if is_known(k) else op.said_sizes(k, [length], [axis])
    if is_known(k) and count > length:
        raise op.unsupported(f"takes {count} of {length}")

    def ranks(x: te.Tensor) -> te.Tensor:
        other = te.reduce_axis((0, length), name="other")

        def rank(*i: Any) -> Any:
            mine, its = x(*i), x(*(other if n == axis else v for n, v in enumerate(i)))
            before = its > mine if largest else its < mine
            tied = tirx.all(its == mine, other.var < i[axis])
            return te.sum(tirx.any(before, tied).astype("int32"), axis=other)

        return te.compute(shape, rank, name="rank")

    def positions(rank: te.Tensor) -> te.Tensor:
        at = te.reduce_axis((0, length), name="at")

        def position(*i: Any) -> Any:
            its = rank(*(at if n == axis else v for n, v in enumerate(i)))
            here = its == i[axis].astype("int32")
            return te.max(tirx.Select(here, at.var.astype("int64"), tirx.const(0, "int64")), axis=at)

        return te.compute(
            [count if n == axis else d for n, d in enumerate(shape)], position, name="position"
        )

    if dtype == "bool":
        raise op.unsupported("of truth values")
    indices = op.te(positions, op.te(ranks, ordered_keys(op, data)))
    return take_along(op, data, indices, axis), indices
