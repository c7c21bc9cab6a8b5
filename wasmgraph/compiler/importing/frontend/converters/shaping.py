"""Operators that take shapes, where these depend on dimensions; TVM converts them for closed ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import numpy_helper
from tvm import relax, te, tirx, topi

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import (
    Sizes,
    Value,
    dtype_of,
    expression,
    shape_of,
    size_list,
)
from wasmgraph.compiler.sizes import number
from wasmgraph.dims import Size, broadcast, is_closed, is_number, operation, product
from wasmgraph.errors import ModelError


@converts("Reshape")
def reshape(op: Operator, data: Value, shape: Value = None) -> Any:
    """A size of -1 is what is left for it."""
    if op.opset < 5 or (is_closed(shape_of(data)) and not isinstance(shape, Sizes)):
        return op.tvm(data, shape)
    own, wanted = shape_of(data), size_list(shape)
    if not op.attr("allowzero", 0):
        wanted = [own[n] if is_number(size, 0) else size for n, size in enumerate(wanted)]
    free = [n for n, size in enumerate(wanted) if is_number(size, -1)]
    if free:
        others = product(size for n, size in enumerate(wanted) if n != free[0])
        wanted[free[0]] = operation("//", product(own), others)
    before, after = product(own), product(wanted)
    if before != after:
        raise ModelError(f"{before} elements do not make up the shape [{', '.join(map(str, wanted))}]")
    return relax.op.reshape(expression(data), wanted)


@converts("Expand")
def expand(op: Operator, data: Value, shape: Value) -> Any:
    """Broadcast to a shape, both ways."""
    if is_closed(shape_of(data)) and not isinstance(shape, Sizes):
        return op.tvm(data, shape)
    wide = broadcast(shape_of(data), size_list(shape))
    return op.te(lambda x: topi.broadcast_to(x, wide), data)


@converts("ConstantOfShape")
def constant_of_shape(op: Operator, shape: Value) -> Any:
    """A tensor of one value."""
    if not isinstance(shape, Sizes):
        return op.tvm(shape)
    given = op.attr("value")
    value = np.zeros(1, np.float32) if given is None else numpy_helper.to_array(given).reshape(-1)
    wanted = size_list(shape)
    one = tirx.const(value[0].item(), str(value.dtype))
    return op.te(lambda: te.compute(wanted, lambda *_: one, name="constant"))


@converts("Range")
def range_(op: Operator, start: Value, limit: Value, delta: Value) -> Any:
    """Whole numbers from a start, as many as there are before the limit."""
    if not any(isinstance(value, Sizes) for value in (start, limit, delta)):
        return op.tvm(start, limit, delta)
    (begin,), (end,), (step,) = map(size_list, (start, limit, delta))
    if not isinstance(step, int) or not step:
        raise op.unsupported("has a step that depends on dimensions, or is 0")
    count: Size = operation("max", -((begin - end) // step), 0)
    dtype = dtype_of(start)

    def compute() -> te.Tensor:
        def one(i: Any) -> Any:
            return number(begin, dtype) + i.astype(dtype) * tirx.const(step, dtype)

        return te.compute((count,), one, name="range")

    return op.te(compute)
