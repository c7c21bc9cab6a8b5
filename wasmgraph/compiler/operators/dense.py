"""Matrix products with known weights, as tensor expressions over packed weights, and of two activations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from wasmgraph.compiler.constants import allocate, array_of, constant, is_in_file, let_go
from wasmgraph.compiler.operators.packing import (
    OUT_FUSIBLE,
    channel_block,
    default_legalize,
    few_rows_block,
)
from wasmgraph.compiler.sizes import numbers, static_shape
from wasmgraph.targets import Target

# Marks the accumulating block of products whose first axis is a batch.
BATCHED = "wasmgraph_batched"
# Packing the right operand pays if it has at least so many columns, because its rows would otherwise share
# a few sets of the first-level cache, and if the left operand has at least so many rows.
_MANY_COLUMNS, _MANY_ROWS = 128, 16
_DTYPES = ("float32", "int32")
PRODUCT = "wasmgraph_product"  # marks the kernel of a product of two activations
_HINTS = {"primfunc_attrs": {"op_pattern": OUT_FUSIBLE}}
_PRODUCT_HINTS = {"primfunc_attrs": {"op_pattern": OUT_FUSIBLE, PRODUCT: 1}}


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
    """The indices of an element, from its position in row-major order."""
    found: list[Any] = []
    for size in reversed(sizes[1:]):
        found.insert(0, flat % size)
        flat = flat // size
    return [flat, *found] if sizes else []


def flat_index(indices: Sequence[Any], sizes: Sequence[int]) -> Any:
    """An element's position in row-major order, from its indices."""
    flat: Any = 0
    for index, size in zip(indices, sizes, strict=True):
        flat = flat * size + index
    return flat


def product_compute(left: te.Tensor, right: te.Tensor, block: int, columns: int, packed: bool) -> te.Tensor:
    """Products of two activations, ``[...][M][K]`` by ``[...][K][N]``, whose leading dimensions broadcast.

    T = ``block``, N = ``columns``. The right operand is ``packed`` to ``[...][N/T][K][T]``
    (:func:`packed_columns`), or T divides N. A tile reads a row of T elements at a time.
    """
    *outer_left, rows, inner = numbers(left.shape)
    outer_right = numbers(right.shape)[: -3 if packed else -2]
    outer = np.broadcast_shapes(outer_left, outer_right)
    k = te.reduce_axis((0, inner), "k")

    def operand(tensor: te.Tensor, own: Sequence[int], batch: Any, *at: Any) -> Any:
        indices = _indices(batch, outer)[len(outer) - len(own) :]
        return tensor[(*(0 if size == 1 else i for i, size in zip(indices, own, strict=True)), *at)]

    def at(b: Any, k: Any, lane: Any) -> tuple[Any, ...]:
        return (b, k, lane) if packed else (k, b * block + lane)

    acc = te.compute(
        (prod(outer), -(-columns // block), rows, block),
        lambda n, b, m, lane: te.sum(
            operand(left, outer_left, n, m, k) * operand(right, outer_right, n, *at(b, k, lane)),
            axis=[k],
        ),
        name="acc",
        attrs={BATCHED: 1},
    )
    return te.compute(
        (*outer, rows, columns),
        lambda *i: acc[flat_index(i[:-2], outer), i[-1] // block, i[-2], i[-1] % block],
        name="product",
    )


def _packed(weight: GenericConst, block: int) -> GenericConst:
    """Pack known weights ``[K][N]`` to ``[N/T][K][T]``, T = ``block``; pad the last block with zeros."""
    values = array_of(weight)
    inner, channels = values.shape
    full, rest = divmod(channels, block)
    packed = allocate((full + bool(rest), inner, block), values.dtype, in_file=is_in_file(values))
    packed[:full] = values[:, : full * block].reshape(inner, full, block).transpose(1, 0, 2)
    if rest:
        packed[full] = 0
        packed[full, :, :rest] = values[:, full * block :]
    let_go(values)
    let_go(packed)
    return constant(packed)


def legalize_dense(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """Legalise a product of matrices of 32-bit numbers. Others are left to TVM, and the product of two
    activations of which the right one is a column."""
    left, right = call.args
    shapes = static_shape(left), static_shape(right)
    if str(left.ty.dtype) not in _DTYPES or min(map(len, shapes)) < 2 or 0 in (*shapes[0], *shapes[1]):
        return default_legalize(bb, call)
    if isinstance(right, GenericConst) and len(shapes[1]) == 2:
        return _dense(bb, left, right, target)
    columns = shapes[1][-1]
    if columns == 1:
        if not isinstance(left, GenericConst) or len(shapes[0]) != 2:
            return default_legalize(bb, call)
        # A known matrix and columns: the transposed product, of rows and the transposed matrix.
        outer, inner = shapes[1][:-2], shapes[1][-2]
        rows = bb.normalize(relax.op.reshape(right, (*(outer or (1,)), inner)))
        transposed = constant(np.ascontiguousarray(array_of(left).T))
        found = bb.normalize(_dense(bb, rows, transposed, target))
        return relax.op.reshape(found, (*outer, shapes[0][0], 1))
    block = channel_block(columns, target)
    packed = columns % block > 0 or (columns >= _MANY_COLUMNS and shapes[0][-2] >= _MANY_ROWS)
    if packed:
        right = bb.normalize(bb.call_te(packed_columns, right, block, primfunc_name_hint="pack_columns"))
    operands = left, right, block, columns, packed
    return bb.call_te(product_compute, *operands, primfunc_name_hint="product", **_PRODUCT_HINTS)


def _dense(bb: relax.BlockBuilder, data: relax.Expr, weight: GenericConst, target: Target) -> relax.Expr:
    channels, rows = static_shape(weight)[-1], prod(static_shape(data)[:-1])
    known = _packed(weight, few_rows_block(rows, target) or channel_block(channels, target))
    return bb.call_te(dense_compute, data, known, channels, primfunc_name_hint="dense", **_HINTS)


def packed_columns(tensor: te.Tensor, block: int) -> te.Tensor:
    """Pack ``[...][K][N]`` to ``[...][N/T][K][T]``, T = ``block``; the last block is padded with zeros."""
    *outer, inner, columns = numbers(tensor.shape)

    def element(*i: Any) -> Any:
        column = i[-3] * block + i[-1]
        value = tensor[(*i[:-3], i[-2], column)]
        if columns % block == 0:
            return value
        return tirx.if_then_else(column < columns, value, tirx.const(0, tensor.dtype))

    return te.compute((*outer, -(-columns // block), inner, block), element, name="pack_columns")
