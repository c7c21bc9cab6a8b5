"""Kernels whose loops are written out, because each turn depends on those before it. Most find how many
results there are: they give as many rows as there can be, and last their number, int64 ``[1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - as TVM writes it

from wasmgraph.compiler.operators.packing import OPAQUE
from wasmgraph.compiler.sizes import extent, own_variables
from wasmgraph.dims import Size, product

# The attribute of such a kernel.
SEQUENTIAL = "wasmgraph_sequential"

Expr = Any
Buffer = Any


def is_sequential(kernel: tirx.PrimFunc) -> bool:
    """Whether a kernel is one of these."""
    return bool(kernel.attrs) and SEQUENTIAL in kernel.attrs


def _kernel(name: str, emit: Callable[[], None]) -> tirx.PrimFunc:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"op_pattern": OPAQUE, SEQUENTIAL: 1, "tirx.noalias": True})
        emit()
    return builder.get()


def nonzero_kernel(shape: Sequence[Size], dtype: str) -> tirx.PrimFunc:
    """The indices of elements that are not 0, int64 ``[elements][rank]``, in row-major order."""

    def emit() -> None:
        data = T.arg("data", T.Buffer(tuple(shape), dtype))
        rows = T.arg("rows", T.Buffer((product(shape), len(shape)), "int64"))
        count = T.arg("count", T.Buffer((1,), "int64"))
        T.buffer_store(count, tirx.const(0, "int64"), [0])
        with T.grid(*shape) as at:
            places = list(at) if len(shape) > 1 else [at]
            value = data[tuple(places)]
            with T.If(value if dtype == "bool" else value != tirx.const(0, dtype)), T.Then():
                for axis, place in enumerate(places):
                    T.buffer_store(rows, tirx.Cast("int64", place), [count[0], axis])
                T.buffer_store(count, count[0] + tirx.const(1, "int64"), [0])

    with own_variables(shape):
        return _kernel("nonzero", emit)


def determinant_kernel(count: Size, size: Size, dtype: str) -> tirx.PrimFunc:
    """The determinants of square matrices ``[count][size][size]``, by elimination with pivots."""

    def emit() -> None:
        data = T.arg("data", T.Buffer((count, size, size), dtype))
        found = T.arg("found", T.Buffer((count,), dtype))
        left = T.sblock_alloc_buffer((size, size), dtype)
        row = T.sblock_alloc_buffer((size,), dtype)
        pivot = T.sblock_alloc_buffer((1,), "int32")
        zero = tirx.const(0, dtype)
        with T.serial(count) as n:
            with T.grid(size, size) as (i, j):
                T.buffer_store(left, data[n, i, j], [i, j])
            T.buffer_store(found, tirx.const(1, dtype), [n])
            with T.serial(size) as k:
                T.buffer_store(pivot, tirx.Cast("int32", k), [0])
                with T.serial(size - 1 - k) as i:
                    other = k + 1 + i
                    more = tirx.abs(left[other, k]) > tirx.abs(left[pivot[0], k])
                    with T.If(more), T.Then():
                        T.buffer_store(pivot, tirx.Cast("int32", other), [0])
                with T.If(pivot[0] != tirx.Cast("int32", k)), T.Then():
                    T.buffer_store(found, zero - found[n], [n])
                    with T.serial(size) as j:
                        T.buffer_store(row, left[k, j], [j])
                        T.buffer_store(left, left[pivot[0], j], [k, j])
                        T.buffer_store(left, row[j], [pivot[0], j])
                T.buffer_store(found, found[n] * left[k, k], [n])
                with T.If(left[k, k] != zero), T.Then(), T.serial(size - 1 - k) as i:
                    other = k + 1 + i
                    T.buffer_store(row, left[other, k] / left[k, k], [0])
                    with T.serial(size) as j:
                        T.buffer_store(left, left[other, j] - row[0] * left[k, j], [other, j])

    with own_variables([count, size]):
        return _kernel("determinant", emit)


def unique_kernel(rows: Size, columns: Size, dtype: str, in_order: bool) -> tirx.PrimFunc:
    """Of the rows of ``[rows][columns]``, those that differ: which is the first of each (int64 ``[rows]``),
    which of them every row is, how often there is each, and how many there are. They are in the order of
    their values, or in that of their first places."""

    def emit() -> None:
        data = T.arg("data", T.Buffer((rows, columns), dtype))
        first, which, often = (
            T.arg(name, T.Buffer((rows,), "int64")) for name in ("first", "which", "often")
        )
        count = T.arg("count", T.Buffer((1,), "int64"))
        state = T.sblock_alloc_buffer((2,), "int64")
        held, kept = (T.sblock_alloc_buffer((rows,), "int64") for _ in range(2))
        rank = T.sblock_alloc_buffer((rows,), "int64")
        found, order = 0, 1  # of the state; the order of two rows is negative, 0 or positive

        def const(value: int) -> Expr:
            return tirx.const(value, "int64")

        def compare(one: Expr, other: Expr) -> None:
            T.buffer_store(state, const(0), [order])
            with T.serial(columns) as c, T.If(state[order] == const(0)), T.Then():
                a, b = data[one, c], data[other, c]
                more = tirx.Select(b < a, const(1), const(0))
                T.buffer_store(state, tirx.Select(a < b, const(-1), more), [order])

        T.buffer_store(count, const(0), [0])
        with T.serial(rows) as row:
            T.buffer_store(state, const(-1), [found])
            with T.serial(count[0]) as n, T.If(state[found] < const(0)), T.Then():
                compare(row, held[n])
                with T.If(state[order] == const(0)), T.Then():
                    T.buffer_store(state, n, [found])
            with T.If(state[found] < const(0)), T.Then():
                T.buffer_store(state, count[0], [found])
                T.buffer_store(held, row, [count[0]])
                T.buffer_store(kept, const(0), [count[0]])
                T.buffer_store(count, count[0] + const(1), [0])
            T.buffer_store(kept, kept[state[found]] + const(1), [state[found]])
            T.buffer_store(which, state[found], [row])
        with T.serial(count[0]) as n:
            T.buffer_store(rank, const(0) if in_order else n, [n])
            if in_order:
                with T.serial(count[0]) as other:
                    compare(held[other], held[n])
                    with T.If(state[order] < const(0)), T.Then():
                        T.buffer_store(rank, rank[n] + const(1), [n])
            T.buffer_store(first, held[n], [rank[n]])
            T.buffer_store(often, kept[n], [rank[n]])
        with T.serial(rows) as row:
            T.buffer_store(which, rank[which[row]], [row])

    with own_variables([rows, columns]):
        return _kernel("unique", emit)


def suppression_kernel(
    boxes: Sequence[Size], classes: Size, most: Size, centred: bool, least: bool
) -> tirx.PrimFunc:
    """ONNX's NonMaxSuppression: rows of batch, class and box, int64 ``[most][3]``.

    Its inputs are: boxes ``[batch][boxes][4]``; scores ``[batch][classes][boxes]``; the most boxes of a
    class, int64 ``[1]``; the overlap (intersection over union) above which a box is suppressed, ``[1]``;
    the score above which a box counts, ``[1]``, which is ignored without ``least``. A box is given by two
    corners, or by its centre and its size if ``centred``. As in onnxruntime, the better box is first, of
    equals the first one, and boxes without area suppress nothing.
    """
    batch, number, _ = boxes

    def emit() -> None:
        box = T.arg("boxes", T.Buffer(tuple(boxes), "float32"))
        scores = T.arg("scores", T.Buffer((batch, classes, number), "float32"))
        limit = T.arg("limit", T.Buffer((1,), "int64"))
        overlap = T.arg("overlap", T.Buffer((1,), "float32"))
        threshold = T.arg("threshold", T.Buffer((1,), "float32"))
        rows = T.arg("rows", T.Buffer((most, 3), "int64"))
        count = T.arg("count", T.Buffer((1,), "int64"))
        left = T.sblock_alloc_buffer((number,), "int32")  # -1: chosen or suppressed
        state = T.sblock_alloc_buffer((3,), "int32")
        candidates, best, chosen = 0, 1, 2

        def set_(place: int, value: Expr) -> None:
            T.buffer_store(state, value, [place])

        def number_of(value: int) -> Expr:
            return tirx.const(value, "int32")

        T.buffer_store(count, tirx.const(0, "int64"), [0])
        with T.serial(batch) as b, T.serial(classes) as c:
            set_(candidates, number_of(0))
            with T.serial(number) as n:

                def add(n: Expr = n) -> None:
                    T.buffer_store(left, tirx.Cast("int32", n), [state[candidates]])
                    set_(candidates, state[candidates] + 1)

                if least:
                    with T.If(scores[b, c, n] > threshold[0]), T.Then():
                        add()
                else:
                    add()
            set_(best, number_of(0))
            set_(chosen, number_of(0))
            going = tirx.all(
                state[best] >= 0,
                tirx.Cast("int64", state[chosen]) < limit[0],
                count[0] < tirx.Cast("int64", extent(most)),
            )
            with T.While(going):
                set_(best, number_of(-1))
                with T.serial(state[candidates]) as i, T.If(left[i] >= 0), T.Then():
                    first = state[best] < 0
                    held = left[tirx.Max(state[best], number_of(0))]
                    better = scores[b, c, left[i]] > scores[b, c, tirx.Max(held, number_of(0))]
                    with T.If(tirx.any(first, better)), T.Then():
                        set_(best, i)
                with T.If(state[best] >= 0), T.Then():
                    one = left[state[best]]
                    for column, value in enumerate((b, c, one)):
                        T.buffer_store(rows, tirx.Cast("int64", value), [count[0], column])
                    T.buffer_store(count, count[0] + tirx.const(1, "int64"), [0])
                    set_(chosen, state[chosen] + 1)
                    with T.serial(state[candidates]) as i:
                        other = left[i]
                        with T.If(tirx.all(other >= 0, i != state[best])), T.Then():
                            beyond = _overlap(box, b, one, other, overlap[0], centred)
                            with T.If(beyond), T.Then():
                                T.buffer_store(left, number_of(-1), [i])
                    T.buffer_store(left, number_of(-1), [state[best]])

    with own_variables([*boxes, classes, most]):
        return _kernel("suppression", emit)


def _overlap(box: Buffer, b: Expr, one: Expr, other: Expr, most: Expr, centred: bool) -> Expr:
    """Whether two boxes overlap by more than ``most``."""

    def edges(n: Expr, axis: int) -> tuple[Expr, Expr]:
        if centred:
            half = box[b, n, 2 + axis] / tirx.const(2, "float32")
            return box[b, n, axis] - half, box[b, n, axis] + half
        first, second = box[b, n, axis], box[b, n, 2 + axis]
        return tirx.Min(first, second), tirx.Max(first, second)

    zero = tirx.const(0, "float32")
    sides = []
    areas: list[Expr] = [tirx.const(1, "float32"), tirx.const(1, "float32")]
    for axis in range(2):
        (low, high), (low_, high_) = edges(one, axis), edges(other, axis)
        sides.append(tirx.Min(high, high_) - tirx.Max(low, low_))
        areas = [areas[0] * (high - low), areas[1] * (high_ - low_)]
    shared = sides[0] * sides[1]
    union = areas[0] + areas[1] - shared
    apart = tirx.any(sides[0] <= zero, sides[1] <= zero, shared <= zero)
    flat = tirx.any(areas[0] <= zero, areas[1] <= zero, union <= zero)
    return tirx.all(tirx.Not(apart), tirx.Not(flat), shared / union > most)
