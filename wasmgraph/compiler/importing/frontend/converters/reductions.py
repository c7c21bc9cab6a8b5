"""Reductions of dtypes for which TVM has no minimum or maximum value, and of NaN and infinities."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, integers, shape_of, size_array
from wasmgraph.compiler.sizes import number
from wasmgraph.dims import Size, product


@converts("ReduceMax", "ReduceMin")
def reduce_extreme(op: Operator, data: Value, axes: Value = None) -> Any:
    """Reduce booleans as numbers."""
    if dtype_of(data) != "bool":
        return op.tvm(data, axes)
    return cast_to(op, op.walk.settle(op.tvm(cast_to(op, data, "uint8"), axes))[0], "bool")


@converts("ArgMax", "ArgMin")
def arg_extreme(op: Operator, data: Value) -> Any:
    """The first (or last) position of the extreme value, or of NaN if there is one, as in numpy."""
    shape, dtype = shape_of(data), dtype_of(data)
    axis = int(op.attr("axis", 0)) % len(shape)
    along = size_array([axis])
    extreme = op(op.node.op_type.replace("Arg", "Reduce"), data, along)
    last = bool(op.attr("select_last_index", 0))
    nowhere: Size = -1 if last else shape[axis]

    def compute(x: te.Tensor, most: te.Tensor) -> te.Tensor:
        at = te.reduce_axis((0, shape[axis]), name="at")

        def one(*i: Any) -> Any:
            value = x(*(at.var if a == axis else v for a, v in enumerate(i)))
            here = value == most(*i)
            if dtype.startswith("float"):
                here = tirx.any(here, tirx.isnan(value))
            place = tirx.Select(here, at.var.astype("int64"), number(nowhere, "int64"))
            return (te.max if last else te.min)(place, axis=at)

        return te.compute([1 if a == axis else d for a, d in enumerate(shape)], one, name="place")

    found = op.te(compute, data, extreme)
    return found if op.attr("keepdims", 1) else op("Squeeze", found, along)


@converts("Hardmax")
def hardmax(op: Operator, data: Value) -> Any:
    """1 at the first position of the maximum; before opset 13 over ``axis`` and all axes after it."""
    shape, dtype = shape_of(data), dtype_of(data)
    axis = int(op.attr("axis", -1 if op.opset >= 13 else 1))
    if op.opset < 13:
        rows = product(shape[:axis])
        data, axis = op("Reshape", data, size_array([rows, -1])), 1
    axis %= len(shape_of(data))
    place = op("ArgMax", data, axis=axis, keepdims=0)
    found = op("OneHot", place, np.array(shape_of(data)[axis]), np.array([0, 1], dtype), axis=axis)
    return op("Reshape", found, size_array(shape)) if op.opset < 13 else found


@converts("ReduceLogSumExp")
def reduce_log_sum_exp(op: Operator, data: Value, axes: Value = None) -> Any:
    """m + log Σ e^(x − m), where m is the maximum, or 0 if the maximum is infinite: ∞ − ∞ is NaN."""
    rank, dtype = len(shape_of(data)), dtype_of(data)
    chosen = list(op.attr("axes", [])) if axes is None else integers(axes)
    if not chosen:
        if op.attr("noop_with_empty_axes", 0):
            return data
        chosen = list(range(rank))
    along = size_array(chosen)
    most = op("ReduceMax", data, along)
    finite = op("Where", op("IsInf", most), np.array(0, dtype), most)
    total = op("ReduceSum", op("Exp", op("Sub", data, finite)), along)
    found = op("Add", op("Log", total), finite)
    return found if op.attr("keepdims", 1) else op("Squeeze", found, along)
