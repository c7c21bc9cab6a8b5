"""Shapes of TVM's tensors as sizes of :mod:`wasmgraph.dims`: the one place that reads them."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import tvm
from tvm import relax, tirx

from wasmgraph.dims import Expression, Operator, Shape, Size, operation

_OPERATORS: tuple[tuple[type, Operator], ...] = (
    (tirx.Add, "+"),
    (tirx.Sub, "-"),
    (tirx.Mul, "*"),
    (tirx.FloorDiv, "//"),
    (tirx.Min, "min"),
    (tirx.Max, "max"),
)


def size_of(extent: Any) -> Size:
    """What an extent is: a number, or arithmetic over the variables that dimensions are.

    Raises
    ------
    ValueError
        It is computed in another way.
    """
    if isinstance(extent, (int, tirx.IntImm)):
        return int(extent)
    if isinstance(extent, tirx.Var):
        return Expression.of(extent.name)
    for kind, operator in _OPERATORS:
        if isinstance(extent, kind):
            sides: Any = extent
            return operation(operator, size_of(sides.a), size_of(sides.b))
    raise ValueError(f"{extent} is not a size")


def shape_of(ty: tvm.ir.Type) -> Shape:
    """The shape of a tensor's type."""
    return tuple(size_of(extent) for extent in ty.shape.values)


def numbers(extents: Iterable[Any]) -> tuple[int, ...]:
    """Extents all of which are numbers, as those of weights are, and those of closed graphs."""
    return tuple(int(extent) for extent in extents)


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """The shape of an expression whose dimensions are all numbers."""
    return numbers(expr.ty.shape.values)


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element of a TVM dtype; a boolean takes one."""
    bits: int = tvm.DataType(dtype).bits * tvm.DataType(dtype).lanes
    return max(1, bits // 8)


def buffer_bytes(buffer: tirx.Buffer) -> int:
    """Size of a buffer of numbers."""
    return prod(numbers(buffer.shape)) * dtype_bytes(str(buffer.dtype))
