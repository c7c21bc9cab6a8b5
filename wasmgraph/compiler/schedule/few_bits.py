"""Products by weights of few bits: the kernel is written anew for the target's vectors."""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule

from wasmgraph.compiler.operators.few_bits import TILE, few_bits_kernel, few_bits_of
from wasmgraph.compiler.schedule.blocks import SHARE, narrowed
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Tile
from wasmgraph.compiler.sizes import is_open
from wasmgraph.targets import Target

_ROWS = 4  # that share the numbers that weights become


def schedule_few_bits(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """A tile of rows, and of columns."""
    kernel = schedule.mod["main"]
    what = few_bits_of(kernel)
    if what is None:
        return None
    rows = what.rows if isinstance(what.rows, int) else _ROWS
    pixels = min(rows, _ROWS)
    # Sums of as many vectors as there are registers for.
    width = max(target.lanes, TILE >> (pixels - 1).bit_length())
    chosen = decision if isinstance(decision, Tile) else Tile(pixels, width if target.lanes > 1 else 1)
    written = few_bits_kernel(what, chosen.pixels, chosen.channels, {SHARE: 1})
    written = narrowed(written) if is_open(written) else written
    for name, value in kernel.attrs.items():
        written = written.with_attr(name, value)
    return Schedule(tvm.IRModule({"main": written})), chosen
