"""Matrix products by weights that are known, as tensor expressions over packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import relax, te
from tvm.ir import GenericConst

from wasmgraph.compiler.operators.packing import (
    OUT_FUSIBLE,
    channel_block,
    default_legalize,
    pack_conv2d,
)
from wasmgraph.compiler.sizes import numbers, static_shape
from wasmgraph.targets import Target


def dense_compute(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """Product of ``[...][K]``, whose leading dimensions are rows, and packed weights ``[N/T][K][T]``.

    The result is ``[...][N]``, ``channels`` = N.
    """
    *leading, _ = numbers(data.shape)
    blocks, inner, block = numbers(weight.shape)
    k = te.reduce_axis((0, inner), "k")
    acc = te.compute(
        (blocks, prod(leading), block),
        lambda b, m, lane: te.sum(data[(*_indices(m, leading), k)] * weight[b, k, lane], axis=[k]),
        name="acc",
    )
    return te.compute(
        (*leading, channels),
        lambda *at: acc[at[-1] // block, flat_index(at[:-1], leading), at[-1] % block],
        name="dense",
    )


def _indices(flat: Any, sizes: Sequence[int]) -> list[Any]:
    """The indices of an element, by its number in row-major order."""
    found: list[Any] = []
    for size in reversed(sizes[1:]):
        found.insert(0, flat % size)
        flat = flat // size
    return [flat, *found] if sizes else []


def flat_index(indices: Sequence[Any], sizes: Sequence[int]) -> Any:
    """An element's number in row-major order, by its indices."""
    flat: Any = 0
    for index, size in zip(indices, sizes, strict=True):
        flat = flat * size + index
    return flat


def legalize_dense(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """A float32 product of a matrix and known weights; others go TVM's own way."""
    data, weight = call.args
    if (
        not isinstance(weight, GenericConst)
        or str(data.ty.dtype) != "float32"
        or len(static_shape(weight)) != 2
        or len(static_shape(data)) < 2
    ):
        return default_legalize(bb, call)
    inner, channels = static_shape(weight)
    matrix = np.ascontiguousarray(weight.value.numpy().T).reshape(channels, 1, 1, inner)
    packed = pack_conv2d(matrix, channel_block(channels, target))[0, :, 0, 0]
    return bb.call_te(
        dense_compute,
        data,
        relax.const(np.ascontiguousarray(packed)),
        channels,
        primfunc_name_hint="dense",
        primfunc_attrs={"op_pattern": OUT_FUSIBLE},
    )
