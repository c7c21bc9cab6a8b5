"""Range checks of indices that are data. Indices are compared with their range when the graph runs.

For each check a separate kernel reduces the indices to one number, which the graph's entry examines when
all kernels have run (``csrc/entry.c``). Until then, an index out of range is replaced by the nearest one in
range, so no memory outside a tensor is read or written, whatever the indices are.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import elementwise
from wasmgraph.compiler.importing.frontend.graph import Operator
from wasmgraph.compiler.importing.frontend.values import IndexCheck, Value, expression, shape_of, size_array
from wasmgraph.compiler.sizes import number
from wasmgraph.dims import Shape, Size, is_closed, is_zero
from wasmgraph.errors import ModelError


def checked(op: Operator, indices: Value, size: Size, first: int | None = None) -> Value:
    """Check indices into ``size`` elements; return them as non-negative int32. Negative indices count from
    the end.

    With ``first``, indices from ``first`` to ``size`` - 1 are accepted instead, and are not changed.

    Raises
    ------
    ModelError
        An index known at compile time is out of range, and is used unconditionally.
    """
    low = -size if first is None else first
    if not isinstance(size, int) and isinstance(indices, np.ndarray):
        indices = op.walk.settle(expression(indices))[
            0
        ]  # whether it is in range is known when the graph runs
    check_range(op, indices, IndexCheck(*op.walk.where, low, size - 1))

    def inside(v: Any) -> Any:
        if first is None:
            v = tirx.Select(v < tirx.const(0, v.ty.dtype), v + number(size, v.ty.dtype), v)
        return te.max(te.min(v, number(size - 1, v.ty.dtype)), tirx.const(first or 0, v.ty.dtype))

    if isinstance(indices, np.ndarray) and isinstance(size, int):
        if first is None:
            indices = np.where(indices < 0, indices + size, indices)
        return np.asarray(np.clip(indices, first or 0, size - 1)).astype(np.int32)
    return elementwise(op, lambda v: inside(v.astype("int64")).astype("int32"), indices)


def check_range(op: Operator, indices: Value, check: IndexCheck, column: int | None = None) -> None:
    """Make the graph report an index that is out of range. With ``column``, check only that column of the
    last dimension."""
    if column is not None:
        shape = shape_of(indices)
        indices = op("Reshape", indices, size_array([prod(shape[:-1]), shape[-1]]))
    if isinstance(indices, np.ndarray) and is_closed((check.low, check.high)):
        known = indices if column is None else indices[:, column]
        bad = known[(known < check.low) | (known > check.high)]
        if not bad.size:
            return
        if op.walk.condition is None:
            raise ModelError(f"the index {bad.flat[0]} is out of range: {check.accepts}")
    if not check.accepts_any:
        raise ModelError("it takes elements from a dimension that has none")
    if column is None:
        indices = op("Reshape", indices, size_array([-1, 1]))
    count = shape_of(indices)[0]
    if is_zero(count):
        return

    def worst(index: te.Tensor) -> te.Tensor:
        n = te.reduce_axis((0, count), name="n")
        code = check.code(index(n, column or 0).astype("int64"))
        return te.compute((1,), lambda _: te.max(code, axis=n), name="check_indices")

    found = op.walk.te(worst, indices, name="check_indices")
    if op.walk.condition is not None:
        found = op("Where", op.walk.condition, found, size_array([0]))
    op.walk.checks.append((check, found))


def flat_rows(op: Operator, indices: Value, shape: Shape, batch_dims: int = 0) -> Value:
    """Turn index tuples (the last dimension) into row numbers of a tensor whose batch dimensions and
    indexed dimensions are flattened into one. Each dimension of the tuples is checked separately."""
    depth, sizes = shape_of(indices)[-1], shape_of(indices)[:-1]
    extents = shape[batch_dims : batch_dims + depth]
    for column, extent in enumerate(extents):
        check_range(op, indices, IndexCheck(*op.walk.where, -extent, extent - 1), column)

    def compute(index: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            row = tirx.const(0, "int32")
            for axis in range(batch_dims):
                row = row * number(shape[axis], "int32") + i[axis].astype("int32")
            for column, extent in enumerate(extents):
                v = index(*i, column).astype("int64")
                v = tirx.Select(v < tirx.const(0, "int64"), v + number(extent, "int64"), v)
                v = te.max(te.min(v, number(extent - 1, "int64")), tirx.const(0, "int64"))
                row = row * number(extent, "int32") + v.astype("int32")
            return row

        return te.compute(sizes, one, name="rows")

    return op.te(compute, indices)
