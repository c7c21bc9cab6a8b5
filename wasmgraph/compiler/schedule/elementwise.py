"""Kernels without a reduction: one flat, vectorised loop."""

from __future__ import annotations

from tvm.s_tir import Schedule

from wasmgraph.compiler.schedule.blocks import (
    PEEL,
    blocks,
    conditional,
    extent_of,
    output,
    reads,
    reduces,
    share,
    vectorize_copy,
)
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Vector
from wasmgraph.targets import Target

_COPIES = 8  # the most copies of an expression that inlining may make


def schedule_elementwise(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Inline all blocks into the block that writes the output; vectorise its fused loops.

    A value that inlining would compute many times is computed once, into an array: in a chain of operators
    that each read the preceding one twice, the work would double with every operator.
    """
    order, last = blocks(schedule), output(schedule)
    if last is None or any(reduces(schedule, block) for block in order):
        return None
    chosen = decision if isinstance(decision, Vector) else Vector(target.lanes)
    for block in reversed(order[:-1]):
        if reads(schedule, block) > _COPIES:
            vectorize_copy(schedule, block, chosen.width)
        else:
            schedule.compute_inline(block)
    loops = schedule.get_loops(last)
    sizes = [extent_of(schedule, loop) for loop in loops]
    if not loops:
        return schedule, chosen  # a scalar
    if not isinstance(sizes[-1], int) and conditional(schedule, last):
        # LoopPartition would look for where the condition changes, and never end.
        share(schedule, *loops)
        return schedule, chosen
    # Fused, open loops would be divided into indices for each element.
    closed = next((n for n, size in enumerate(reversed(sizes)) if not isinstance(size, int)), len(loops))
    inner = max(1, closed)
    around, flat = loops[:-inner], schedule.fuse(*loops[-inner:])
    outer, lane = schedule.split(flat, [None, chosen.width])
    schedule.vectorize(lane)
    schedule.annotate(outer, PEEL, 1)
    share(schedule, *around, outer)
    return schedule, chosen
