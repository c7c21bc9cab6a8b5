"""Matrix products by weights that are known, as tensor expressions over packed weights."""

from __future__ import annotations

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


def legalize_dense(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """A float32 product of a matrix and known weights; others go TVM's own way."""
    data, weight = call.args
    if (
        not isinstance(weight, GenericConst)
        or str(data.ty.dtype) != "float32"
        or len(static_shape(weight)) != 2
        or len(static_shape(data)) != 2
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
