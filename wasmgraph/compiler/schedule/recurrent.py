"""Recurrent layers: the kernel is written anew for the target's vectors."""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule

from wasmgraph.compiler.operators.recurrent import BLOCK, layer_of, recurrent_kernel
from wasmgraph.compiler.schedule.blocks import SHARE, narrowed
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Vector
from wasmgraph.compiler.sizes import is_open
from wasmgraph.dims import Size
from wasmgraph.targets import Target

_ACCUMULATORS = BLOCK // 4  # vectors of sums: SIMD128 takes a block of columns at a time
_MOST_GROUPS = 8  # of rows: each reads all weights in every step


def schedule_recurrent(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Compute as many sums at a time as hide the latency of multiply and add. Threads share directions and
    rows of a batch.

    Loops over steps carry a state, which no schedule primitive takes.
    """
    kernel = schedule.mod["main"]
    layer = layer_of(kernel)
    if layer is None:
        return None
    lanes = target.lanes_of(layer.dtype)
    chosen = decision if isinstance(decision, Vector) else Vector(_ACCUMULATORS * lanes)
    # A quantised state has one scale for all rows.
    groups = _groups(layer.batch) if target.threaded and not layer.quantized else 1
    written = recurrent_kernel(layer, chosen.width, lanes, target.exact_vectors, groups, {SHARE: 1})
    written = narrowed(written) if is_open(written) else written
    for name, value in kernel.attrs.items():
        written = written.with_attr(name, value)
    return Schedule(tvm.IRModule({"main": written})), chosen


def _groups(batch: Size) -> int:
    """The number of groups of equal size into which threads divide a batch."""
    if not isinstance(batch, int):
        return 1
    return next(n for n in range(min(batch, _MOST_GROUPS), 0, -1) if batch % n == 0)
