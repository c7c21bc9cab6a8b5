"""Reductions of dtypes that have no least or greatest value in TVM."""

from __future__ import annotations

from typing import Any

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of


@converts("ReduceMax", "ReduceMin")
def reduce_extreme(op: Operator, data: Value, axes: Value = None) -> Any:
    """Truth values are reduced as numbers."""
    if dtype_of(data) != "bool":
        return op.tvm(data, axes)
    return cast_to(op, op.walk.settle(op.tvm(cast_to(op, data, "uint8"), axes))[0], "bool")
