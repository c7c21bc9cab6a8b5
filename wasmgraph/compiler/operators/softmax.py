"""Softmax along the last axis. A row's sum is divided by once, not once for each element."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from wasmgraph.compiler.operators.packing import default_legalize
from wasmgraph.compiler.sizes import call_te, shape_of, sizes

# Marks the kernel.
SOFTMAX = "wasmgraph_softmax"


def softmax_compute(data: te.Tensor) -> te.Tensor:
    """exp(x - max(x)) / sum(exp(x - max(x))), over the last dimension."""
    *outer, length = sizes(data.shape)
    k, n = (te.reduce_axis((0, length), name) for name in ("k", "n"))
    greatest = te.compute(outer, lambda *i: te.max(data[(*i, k)], axis=k), name="greatest")

    def power(*i: Any) -> Any:
        return tirx.exp(data[i] - greatest[i[:-1]])

    powers = te.compute((*outer, length), power, name="powers")
    total = te.compute(outer, lambda *i: te.sum(powers[(*i, n)], axis=n), name="total")
    share = te.compute(outer, lambda *i: tirx.const(1, data.dtype) / total[i], name="share")
    return te.compute((*outer, length), lambda *i: powers[i] * share[i[:-1]], name="softmax")


def legalize_softmax(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Legalise a softmax of float32 along the last axis; others are left to TVM."""
    (data,) = call.args
    shape = shape_of(data)
    if (
        str(data.ty.dtype) != "float32"
        or len(shape) < 2
        or int(call.attrs.axis) % len(shape) != len(shape) - 1
    ):
        return default_legalize(bb, call)
    attributes = {"op_pattern": 8, SOFTMAX: 1}
    return call_te(bb, softmax_compute, data, primfunc_name_hint="softmax", primfunc_attrs=attributes)
