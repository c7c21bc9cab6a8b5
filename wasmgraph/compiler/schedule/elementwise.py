"""Kernels without a reduction: one flat loop in vectors."""

from __future__ import annotations

from tvm.s_tir import Schedule

from wasmgraph.compiler.schedule.blocks import PEEL, blocks, output, reduces, share
from wasmgraph.targets import Target


def schedule_elementwise(schedule: Schedule, target: Target) -> Schedule | None:
    """Inline everything into the block that writes the output; vectorize its fused loops."""
    order, last = blocks(schedule), output(schedule)
    if last is None or any(reduces(schedule, block) for block in order):
        return None
    for block in order[:-1]:
        schedule.compute_inline(block)
    loops = schedule.get_loops(last)
    if not loops:
        return schedule  # a scalar
    flat = schedule.fuse(*loops)
    outer, lane = schedule.split(flat, [None, target.lanes])
    schedule.vectorize(lane)
    schedule.annotate(outer, PEEL, 1)
    share(schedule, outer)
    return schedule
