"""Operators whose outputs are as long as data says: a kernel finds the length, which is a dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from tvm import relax, te

from wasmgraph.compiler.importing.frontend.converters.moving import ordered_keys, take
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.repeating import first_rows
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    expression,
    integers,
    is_known,
    shape_of,
    size_array,
)
from wasmgraph.compiler.operators.sequential import (
    determinant_kernel,
    nonzero_kernel,
    suppression_kernel,
    unique_kernel,
)
from wasmgraph.dims import Expression, operation, product


def sequential(
    op: Operator, kernel: Any, operands: list[Value], types: list[relax.TensorType], name: str
) -> list[relax.Expr]:
    """Call a kernel of ``operators/sequential.py``; return the tensors that it gives."""
    gvar = op.walk.builder.add_func(kernel, name)
    whole = op.emit(relax.call_tir(gvar, [expression(value) for value in operands], types))
    return (
        [whole] if len(types) == 1 else [op.emit(relax.TupleGetItem(whole, n)) for n in range(len(types))]
    )


def counted_rows(
    op: Operator, kernel: Any, operands: list[Value], types: list[relax.TensorType], name: str
) -> tuple[list[relax.Expr], Expression]:
    """Call a kernel of ``operators/sequential.py``; return the tensors that it gives, and how many rows of
    the first of them count."""
    *found, count = sequential(op, kernel, operands, [*types, relax.TensorType((1,), "int64")], name)
    return found, op.said(shape_of(found[0])[0], count)


@converts("NonZero")
def nonzero(op: Operator, data: Value) -> Any:
    """The indices of what is not 0, ``[rank][count]``."""
    shape, dtype = shape_of(data), dtype_of(data)
    if not shape:
        data, shape = op("Reshape", data, size_array([1])), (1,)
    types = [relax.TensorType((product(shape), len(shape)), "int64")]
    (rows,), count = counted_rows(op, nonzero_kernel(shape, dtype), [data], types, "nonzero")

    def turned(x: te.Tensor) -> te.Tensor:
        return te.compute((len(shape), count), lambda axis, n: x[n, axis], name="turned")

    return op.te(turned, rows)


@converts("Compress")
def compress(op: Operator, data: Value, condition: Value) -> Any:
    """Take the elements that the condition selects."""
    axis = op.attr("axis")
    if axis is None:
        data, axis = op("Reshape", data, size_array([-1])), 0
    length = shape_of(data)[int(axis)]
    if is_known(condition):
        chosen: Value = np.flatnonzero(np.asarray(condition)[: int(length)]).astype(np.int64)
    else:
        kept = op("Slice", condition, size_array([0]), size_array([length]), size_array([0]))
        chosen = op("Squeeze", op("NonZero", kept), size_array([0]))
    return op("Gather", data, chosen, axis=int(axis))


@converts("NonMaxSuppression")
def non_max_suppression(
    op: Operator,
    boxes: Value,
    scores: Value,
    limit: Value = None,
    overlap: Value = None,
    threshold: Value = None,
) -> Any:
    """Of boxes that overlap, keep the best: rows of batch, class and box, ``[count][3]``."""
    (batch, number, _), classes = shape_of(boxes), shape_of(scores)[1]
    most = product((batch, classes, number))
    if limit is None or is_known(limit):
        each = 0 if limit is None else max(0, integers(limit)[0])
        if not each:
            return np.zeros((0, 3), np.int64)
        most = product((batch, classes, operation("min", number, each)))
    least = threshold is not None
    kernel = suppression_kernel(shape_of(boxes), classes, most, bool(op.attr("center_point_box", 0)), least)
    none = np.zeros(1, np.float32)
    operands = [
        boxes,
        scores,
        *(op("Reshape", value, size_array([1])) for value in (limit, none if overlap is None else overlap)),
        op("Reshape", threshold, size_array([1])) if least else none,
    ]
    types = [relax.TensorType((most, 3), "int64")]
    (rows,), count = counted_rows(op, kernel, operands, types, "suppression")
    return first_rows(op, rows, count)


@converts("Det")
def determinant(op: Operator, data: Value) -> Any:
    """Determinants of square matrices."""
    *outer, size, _ = shape_of(data)
    count, dtype = product(outer), dtype_of(data)
    kernel = determinant_kernel(count, size, dtype)
    matrices = op("Reshape", data, size_array([count, size, size]))
    types = [relax.TensorType((count,), dtype)]
    return op("Reshape", sequential(op, kernel, [matrices], types, "determinant")[0], size_array(outer))


@converts("Unique")
def unique(op: Operator, data: Value) -> Any:
    """Each element once, or each slice along an axis; where it is first, which of them every element is,
    and how often there is each. Of floats, -0 equals 0, and NaN equals NaN and is the greatest."""
    axis = op.attr("axis")
    if axis is None:
        data, axis = op("Reshape", data, size_array([-1])), 0
    shape = shape_of(data)
    axis = int(axis) % len(shape)
    length = shape[axis]
    front = op("Transpose", data, perm=[axis, *(a for a in range(len(shape)) if a != axis)])
    columns = product(size for a, size in enumerate(shape) if a != axis)
    rows = op("Reshape", front, size_array([length, columns]))
    keys = op("Cast", rows, to=TensorProto.UINT8) if dtype_of(rows) == "bool" else ordered_keys(op, rows)
    kernel = unique_kernel(length, columns, dtype_of(keys), bool(op.attr("sorted", 1)))
    types = [relax.TensorType((length,), "int64")] * 3
    (first, which, often), count = counted_rows(op, kernel, [keys], types, "unique")
    first = first_rows(op, first, count)
    return take(op, data, first, axis, within=length), first, which, first_rows(op, often, count)
