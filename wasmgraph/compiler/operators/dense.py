"""Matrix products by weights that are known, as tensor expressions over packed weights."""

from __future__ import annotations

from tvm import relax, te
from tvm.ir import GenericConst

from wasmgraph.compiler.constants import allocate, array_of, constant, is_in_file, let_go
from wasmgraph.compiler.operators.packing import (
    OUT_FUSIBLE,
    channel_block,
    default_legalize,
)
from wasmgraph.compiler.sizes import numbers, static_shape
from wasmgraph.targets import Target


def dense_compute(data: te.Tensor, weight: te.Tensor, channels: int) -> te.Tensor:
    """Matrix product, ``[M][K]`` by packed weights ``[N/T][K][T]``, to ``[M][N]``, ``channels`` = N."""
    rows, _ = numbers(data.shape)
    blocks, inner, block = numbers(weight.shape)
    k = te.reduce_axis((0, inner), "k")
    acc = te.compute(
        (blocks, rows, block),
        lambda b, m, lane: te.sum(data[m, k] * weight[b, k, lane], axis=[k]),
        name="acc",
    )
    return te.compute((rows, channels), lambda m, c: acc[c // block, m, c % block], name="dense")


def _packed(weight: GenericConst, block: int) -> GenericConst:
    """Known weights ``[K][N]`` as ``[N/T][K][T]``, T = ``block``, the last block padded with zeros."""
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
    """A float32 product of a matrix and known weights; others are left to TVM."""
    data, weight = call.args
    if (
        not isinstance(weight, GenericConst)
        or str(data.ty.dtype) != "float32"
        or len(static_shape(weight)) != 2
        or len(static_shape(data)) != 2
    ):
        return default_legalize(bb, call)
    _, channels = static_shape(weight)
    return bb.call_te(
        dense_compute,
        data,
        _packed(weight, channel_block(channels, target)),
        channels,
        primfunc_name_hint="dense",
        primfunc_attrs={"op_pattern": OUT_FUSIBLE},
    )
