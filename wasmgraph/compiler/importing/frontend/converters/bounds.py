"""Indices that are data: each is compared with its range when the graph runs, and none reaches beyond it.

A kernel of its own reduces the indices to one number, which the entry looks at when all kernels have run
(``csrc/entry.c``). Until then an index beyond its range counts as the nearest within it, so that nothing
outside of a tensor is read or written, whatever the indices are.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import elementwise
from wasmgraph.compiler.importing.frontend.graph import Operator
from wasmgraph.compiler.importing.frontend.values import IndexCheck, Value, shape_of
from wasmgraph.errors import ModelError


def checked(op: Operator, indices: Value, size: int, first: int | None = None) -> Value:
    """Indices into ``size`` elements as int32 from 0 on; negative ones count from the end.

    With ``first`` those from ``first`` to ``size`` - 1 are accepted instead, and stay as they are.

    Raises
    ------
    ModelError
        An index that is known now is out of range, and no condition may keep it from being used.
    """
    low = -size if first is None else first
    check_range(op, indices, IndexCheck(*op.walk.where, low, size - 1))

    def inside(v: Any) -> Any:
        if first is None:
            v = tirx.Select(v < tirx.const(0, v.ty.dtype), v + tirx.const(size, v.ty.dtype), v)
        return te.max(te.min(v, tirx.const(size - 1, v.ty.dtype)), tirx.const(first or 0, v.ty.dtype))

    if isinstance(indices, np.ndarray):
        if first is None:
            indices = np.where(indices < 0, indices + size, indices)
        return np.asarray(np.clip(indices, first or 0, size - 1)).astype(np.int32)
    return elementwise(op, lambda v: inside(v.astype("int64")).astype("int32"), indices)


def check_range(op: Operator, indices: Value, check: IndexCheck, column: int | None = None) -> None:
    """Have the graph report an index that is out of range, in one column of the last dimension if asked."""
    if column is not None:
        shape = shape_of(indices)
        indices = op("Reshape", indices, np.array([prod(shape[:-1]), shape[-1]], np.int64))
    if isinstance(indices, np.ndarray):
        known = indices if column is None else indices[:, column]
        bad = known[(known < check.low) | (known > check.high)]
        if not bad.size:
            return
        if op.walk.condition is None:
            raise ModelError(f"the index {bad.flat[0]} is out of range: {check.accepts}")
    if not check.accepts_any:
        raise ModelError("it takes elements from a dimension that has none")
    if column is None:
        indices = op("Reshape", indices, np.array([-1, 1], np.int64))
    count = shape_of(indices)[0]
    if not count:
        return

    def worst(index: te.Tensor) -> te.Tensor:
        n = te.reduce_axis((0, count), name="n")
        code = check.code(index(n, column or 0).astype("int64"))
        return te.compute((1,), lambda _: te.max(code, axis=n), name="check_indices")

    found = op.walk.te(worst, indices, name="check_indices")
    if op.walk.condition is not None:
        found = op("Where", op.walk.condition, found, np.array([0], np.int64))
    op.walk.checks.append((check, found))


def flat_rows(op: Operator, indices: Value, shape: tuple[int, ...], batch_dims: int = 0) -> Value:
    """Tuples of indices (the last dimension) as numbers of rows, in a tensor whose first dimensions, the
    batch's and those that the tuples index, are one; the tuple's dimensions are checked one by one."""
    depth, sizes = shape_of(indices)[-1], shape_of(indices)[:-1]
    extents = shape[batch_dims : batch_dims + depth]
    for column, extent in enumerate(extents):
        check_range(op, indices, IndexCheck(*op.walk.where, -extent, extent - 1), column)

    def compute(index: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            row = tirx.const(0, "int32")
            for axis in range(batch_dims):
                row = row * shape[axis] + i[axis].astype("int32")
            for column, extent in enumerate(extents):
                v = index(*i, column).astype("int64")
                v = tirx.Select(v < tirx.const(0, "int64"), v + tirx.const(extent, "int64"), v)
                v = te.max(te.min(v, tirx.const(extent - 1, "int64")), tirx.const(0, "int64"))
                row = row * extent + v.astype("int32")
            return row

        return te.compute(sizes, one, name="rows")

    return op.te(compute, indices)
