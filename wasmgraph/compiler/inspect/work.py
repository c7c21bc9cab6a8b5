"""The work of a kernel before any schedule, with which its time is compared."""

from __future__ import annotations

from math import prod

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.analysis import estimate_tir_flops

from wasmgraph.compiler.operators.recurrent import layer_of
from wasmgraph.compiler.schedule.blocks import find


def kernel_flops(kernel: tirx.PrimFunc) -> int:
    """Floating-point operations of one call.

    A convolution counts as its *direct* algorithm would, whatever algorithm it got, so that GFLOP/s can be
    compared. Winograd can therefore exceed the roofline. Padding to whole tiles is not counted.
    """
    layer = layer_of(kernel)
    if layer is not None:
        return layer.flops
    mod = tvm.IRModule({"main": kernel})
    schedule = Schedule(mod)
    for name in ("conv2d", "dense"):
        result, acc = find(schedule, name), find(schedule, "acc")
        if result is None or acc is None:
            continue
        outputs = prod(int(axis.dom.extent) for axis in schedule.get(result).iter_vars)
        reduced = prod(int(axis.dom.extent) for axis in schedule.get(acc).iter_vars if axis.iter_type != 0)
        window = 9 if find(schedule, "tiles") is not None else 1
        return 2 * outputs * reduced * window
    try:
        return int(estimate_tir_flops(mod))
    except (tvm.error.InternalError, ValueError):
        return 0  # loops whose extents are data: TVM cannot count them
