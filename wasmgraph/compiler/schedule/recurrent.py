"""Recurrent layers: the kernel is written anew for the target's vectors."""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule

from wasmgraph.compiler.operators.recurrent import layer_of, recurrent_kernel
from wasmgraph.compiler.schedule.blocks import SHARE
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Vector
from wasmgraph.targets import Target

_ACCUMULATORS = 6  # vectors of sums


def schedule_recurrent(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Compute as many sums at a time as hide the latency of multiply and add; threads share directions.

    Loops over steps carry a state, which no schedule primitive takes.
    """
    kernel = schedule.mod["main"]
    layer = layer_of(kernel)
    if layer is None:
        return None
    lanes = target.lanes_of(layer.dtype)
    chosen = decision if isinstance(decision, Vector) else Vector(_ACCUMULATORS * lanes)
    written = recurrent_kernel(layer, chosen.width, lanes, target.exact_vectors, {SHARE: 1})
    for name, value in kernel.attrs.items():
        written = written.with_attr(name, value)
    return Schedule(tvm.IRModule({"main": written})), chosen
