"""Matrix products with known weights, as tensor expressions over packed weights, and of two activations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
    in_pairs,
    multiplied,
    narrowed,
)
from wasmgraph.compiler.sizes import call_te, numbers, shape_of, sizes, static_shape
from wasmgraph.dims import Size, broadcast, is_closed, is_one, is_zero, product, typical
from wasmgraph.targets import Target

# Marks the accumulating block of products whose first axis is a batch.
BATCHED = "wasmgraph_batched"
# Packing the right operand pays if it has at least so many columns, because its rows would otherwise share
# a few sets of the first-level cache, and if the left operand has at least so many rows.
_MANY_COLUMNS, _MANY_ROWS = 128, 16
_DTYPES = ("float32", "int32", "int16")
PRODUCT = "wasmgraph_product"  # marks the kernel of a product of two activations
_HINTS = {"primfunc_attrs": {"op_pattern": OUT_FUSIBLE}}
_PRODUCT_HINTS = {"primfunc_attrs": {"op_pattern": OUT_FUSIBLE, PRODUCT: 1}}


def dense_compute(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """Product of ``[...][K]``, whose leading dimensions are rows, and packed weights ``[N/T][K][T]``, or of
    integers ``[N/T][K/2][T][2]``.

    The result is ``[...][N]``, ``channels`` = N.
    """
    *leading, _ = sizes(data.shape)
    blocks, inner, block, *pair = numbers(weight.shape)
    k = te.reduce_axis((0, inner), "k")
    step = pair[0] if pair else 0

    def term(b: Any, lane: Any, *row: Any) -> Any:
        return multiplied(
            str(data.dtype),
            lambda n: data[(*row, k * (step or 1) + n)],
            lambda *n: weight[(b, k, lane, *n)],
            step,
        )

    if not is_closed(leading):  # rows that are joined would be divided into indices again
        acc = te.compute(
            (blocks, *leading, block),
            lambda b, *at: te.sum(term(b, at[-1], *at[:-1]), axis=[k]),
            name="acc",
        )
        return te.compute(
            (*leading, channels),
            lambda *at: acc[(at[-1] // block, *at[:-1], at[-1] % block)],
            name="dense",
        )
    acc = te.compute(
        (blocks, product(leading), block),
        lambda b, m, lane: te.sum(term(b, lane, *_indices(m, leading)), axis=[k]),
        name="acc",
    )
    return te.compute(
        (*leading, channels),
        lambda *at: acc[at[-1] // block, flat_index(at[:-1], leading), at[-1] % block],
        name="dense",
    )


def _indices(flat: Any, shape: Sequence[Size]) -> list[Any]:
    """The indices of an element, from its position in row-major order."""
    found: list[Any] = []
    for size in reversed(shape[1:]):
        found.insert(0, flat % size)
        flat = flat // size
    return [flat, *found] if shape else []


def flat_index(indices: Sequence[Any], shape: Sequence[Size]) -> Any:
    """An element's position in row-major order, from its indices."""
    flat: Any = 0
    for index, size in zip(indices, shape, strict=True):
        flat = flat * size + index
    return flat


def product_compute(
    left: te.Tensor, right: te.Tensor, block: int, packed: bool, columns: Size
) -> te.Tensor:
    """Products of two activations, ``[...][M][K]`` by ``[...][K][N]``, whose leading dimensions broadcast.

    T = ``block``, N = ``columns``. The right operand is ``packed`` to ``[...][N/T][K][T]``
    (:func:`packed_columns`), or T divides N. A tile reads a row of T elements at a time.
    """
    *outer_left, rows, inner = sizes(left.shape)
    outer_right = sizes(right.shape)[: -3 if packed else -2]
    outer = broadcast(outer_left, outer_right)
    k = te.reduce_axis((0, inner), "k")

    def operand(tensor: te.Tensor, own: Sequence[Size], batch: Any, *at: Any) -> Any:
        indices = _indices(batch, outer)[len(outer) - len(own) :]
        return tensor[(*(0 if is_one(size) else i for i, size in zip(indices, own, strict=True)), *at)]

    def at(b: Any, k: Any, lane: Any) -> tuple[Any, ...]:
        return (b, k, lane) if packed else (k, b * block + lane)

    acc = te.compute(
        (product(outer), -(-columns // block), rows, block),
        lambda n, b, m, lane: te.sum(
            multiplied(
                str(left.dtype),
                lambda _: operand(left, outer_left, n, m, k),
                lambda: operand(right, outer_right, n, *at(b, k, lane)),
                0,
            ),
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
    """Pack known weights ``[K][N]`` to ``[N/T][K][T]``, T = ``block``; pad the last block with zeros.
    Integers lie in pairs (:func:`in_pairs`) if K is even."""
    values = narrowed(array_of(weight))
    inner, channels = values.shape
    full, rest = divmod(channels, block)
    packed = allocate((full + bool(rest), inner, block), values.dtype, in_file=is_in_file(values))
    packed[:full] = values[:, : full * block].reshape(inner, full, block).transpose(1, 0, 2)
    if rest:
        packed[full] = 0
        packed[full, :, :rest] = values[:, full * block :]
    if values.dtype.itemsize < 4 and inner % 2 == 0:
        packed = in_pairs(packed)
    let_go(values)
    let_go(packed)
    return constant(packed)


def legalize_dense(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """Legalise a product of matrices of 32-bit numbers or of int16. Others are left to TVM, and the product
    of two activations of which the right one is a column."""
    left, right = call.args
    shapes = shape_of(left), shape_of(right)
    if (
        str(left.ty.dtype) not in _DTYPES
        or min(map(len, shapes)) < 2
        or any(map(is_zero, (*shapes[0], *shapes[1])))
    ):
        return default_legalize(bb, call)
    if isinstance(right, GenericConst) and len(shapes[1]) == 2:
        return _dense(bb, left, right, target)
    columns = shapes[1][-1]
    if is_one(columns):
        if not isinstance(left, GenericConst) or len(shapes[0]) != 2:
            return default_legalize(bb, call)
        # A known matrix and columns: the transposed product, of rows and the transposed matrix.
        outer, inner = shapes[1][:-2], shapes[1][-2]
        rows = bb.normalize(relax.op.reshape(right, (*(outer or (1,)), inner)))
        transposed = constant(np.ascontiguousarray(array_of(left).T))
        found = bb.normalize(_dense(bb, rows, transposed, target))
        return relax.op.reshape(found, (*outer, shapes[0][0], 1))
    block = channel_block(columns, target) if isinstance(columns, int) else target.tile_channels
    many = typical(columns) >= _MANY_COLUMNS and typical(shapes[0][-2]) >= _MANY_ROWS
    packed = not isinstance(columns, int) or columns % block > 0 or many
    if packed:
        right = bb.normalize(call_te(bb, packed_columns, right, block, primfunc_name_hint="pack_columns"))
    compute = partial(product_compute, block=block, packed=packed, columns=columns)
    return call_te(bb, compute, left, right, primfunc_name_hint="product", **_PRODUCT_HINTS)


def _dense(bb: relax.BlockBuilder, data: relax.Expr, weight: GenericConst, target: Target) -> relax.Expr:
    channels, rows = static_shape(weight)[-1], product(shape_of(data)[:-1])
    known = _packed(weight, few_rows_block(rows, target) or channel_block(channels, target))
    return call_te(bb, dense_compute, data, known, channels, primfunc_name_hint="dense", **_HINTS)


def packed_columns(tensor: te.Tensor, block: int) -> te.Tensor:
    """Pack ``[...][K][N]`` to ``[...][N/T][K][T]``, T = ``block``; the last block is padded with zeros."""
    *outer, inner, columns = sizes(tensor.shape)

    def element(*i: Any) -> Any:
        column = i[-3] * block + i[-1]
        value = tensor[(*i[:-3], i[-2], column)]
        if isinstance(columns, int) and columns % block == 0:
            return value
        return tirx.if_then_else(column < columns, value, tirx.const(0, tensor.dtype))

    return te.compute((*outer, -(-columns // block), inner, block), element, name="pack_columns")
