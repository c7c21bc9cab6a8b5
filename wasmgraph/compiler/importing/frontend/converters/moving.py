"""What several converters do with elements: take them, and order them."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from wasmgraph.compiler.importing.frontend.graph import Operator
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, shape_of
from wasmgraph.compiler.sizes import number
from wasmgraph.dims import Size


def take(op: Operator, data: Value, indices: Value, axis: int = 0, within: Size | None = None) -> Value:
    """Take slices along an axis; ``indices`` must be in range and not negative, or are made so with
    ``within``, the axis's size."""
    if isinstance(data, np.ndarray) and isinstance(indices, np.ndarray):
        return np.asarray(np.take(data, indices, axis))
    shape, rank = shape_of(data), len(shape_of(indices))

    def compute(x: te.Tensor, index: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            place = index(*i[axis : axis + rank])
            if within is not None:
                least, most = tirx.const(0, place.ty.dtype), number(within - 1, place.ty.dtype)
                place = tirx.Max(tirx.Min(place, most), least)
            return x(*i[:axis], place.astype("int32"), *i[axis + rank :])

        return te.compute([*shape[:axis], *shape_of(indices), *shape[axis + 1 :]], one, name="take")

    return op.te(compute, data, indices)


def take_along(op: Operator, data: Value, indices: Value, axis: int) -> relax.Expr:
    """Take one element along an axis for each index; ``indices`` must be in range and not negative."""

    def compute(x: te.Tensor, index: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            return x(*(index(*i).astype("int32") if a == axis else v for a, v in enumerate(i)))

        return te.compute(shape_of(indices), one, name="take_along")

    return op.te(compute, data, indices)


def ordered_keys(op: Operator, data: Value) -> Value:
    """A tensor of which floats became integers of the same order."""
    if not dtype_of(data).startswith("float"):
        return data
    shape = shape_of(data)
    # A kernel of its own, because each key is read once for every other element.
    return op.walk.te(
        lambda x: te.compute(shape, lambda *i: _ordered(x(*i)), name="keys"), data, name="keys", alone=True
    )


def _ordered(x: Any) -> Any:
    """Map floats to integers with ONNX's order: -0 equals 0, NaN equals NaN and is the greatest."""
    dtype = str(x.ty.dtype)
    whole = dtype.replace("float", "int")
    most = tirx.const(np.iinfo(whole).max, whole)
    bits = tirx.reinterpret(whole, tirx.Select(x == tirx.const(0, dtype), tirx.const(0, dtype), x))
    ascending = tirx.Select(bits < tirx.const(0, whole), bits ^ most, bits)
    return tirx.Select(tirx.isnan(x), most, ascending)
