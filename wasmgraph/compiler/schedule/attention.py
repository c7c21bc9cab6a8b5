"""Attention: for each head, a chunk of the rows of scores at a time goes from the first product through the
softmax into the second product, and stays in the cache.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from wasmgraph.compiler.operators.dense import BATCHED
from wasmgraph.compiler.schedule.blocks import blocks, extent_of, find, inline_between, output, share
from wasmgraph.compiler.schedule.decisions import Decision, Scheduled, Tile, decide_tile
from wasmgraph.compiler.schedule.open_attention import open_attention
from wasmgraph.compiler.schedule.rows import reduce_in_lanes, row_width, schedule_pass
from wasmgraph.compiler.schedule.tiled import packed_channels, tile
from wasmgraph.dims import Size, is_closed, most
from wasmgraph.targets import Target

_CHUNK_BYTES = 64 << 10  # of scores; the chunk is held twice
_LEAST_ROWS = 8


def schedule_attention(
    schedule: Schedule, target: Target, decision: Decision | None = None
) -> Scheduled | None:
    """Schedule what ``relax/attention.py`` groups. A decision's tile is that of the second product, and its
    ``chunk`` the number of rows; the first product's tile has as many rows."""
    order, last = blocks(schedule), output(schedule)
    products = [block for block in order if BATCHED in schedule.get(block).annotations]
    softmax, greatest = find(schedule, "softmax"), find(schedule, "greatest")
    if len(products) != 2 or softmax is None or greatest is None or last is None:
        return None
    first, second = products
    names = [schedule.get(block).name_hint for block in order]
    scores = order[names.index("greatest") - 1]
    inline_between(schedule, first, scores)
    if not isinstance(decision, Tile) or decision.chunk is None:
        decision = _decide(schedule, scores, second, target)
    if not is_closed([extent_of(schedule, loop) for loop in schedule.get_loops(scores)]):
        inline_between(schedule, second, last)
        written = open_attention(schedule, (first, second), scores, softmax, last, decision)
        return None if written is None else (Schedule(tvm.IRModule({"main": written})), decision)
    *outer, row, column = schedule.get_loops(last)
    chunks, row = schedule.split(row, [None, decision.chunk])
    inner = replace(decision, chunk=None)
    tile(schedule, second, last, row, column, target, inner, [*outer, chunks], alone=False)
    _softmax(schedule, softmax, chunks, target)
    schedule.compute_at(scores, chunks, preserve_unit_loops=True)
    *around, row, column = schedule.get_loops(scores)
    inner = replace(inner, channels=min(packed_channels(schedule, first), target.tile_channels))
    tile(schedule, first, scores, row, column, target, inner, around, alone=False)
    share(schedule, *outer, chunks)
    return schedule, decision


def _decide(schedule: Schedule, scores: SBlockRV, product: SBlockRV, target: Target) -> Tile:
    rows, length = (extent_of(schedule, loop) for loop in schedule.get_loops(scores)[-2:])
    chunk = _chunk(rows, length, target)
    return replace(decide_tile(chunk, packed_channels(schedule, product), target), chunk=chunk)


def _softmax(schedule: Schedule, softmax: SBlockRV, chunks: LoopRV, target: Target) -> None:
    """Compute each chunk of the softmax row by row, as ``schedule_rows`` does."""
    reducing = [block for name in ("greatest", "total") if (block := find(schedule, name)) is not None]
    width = row_width(schedule, reducing, target.lanes)
    for block in reducing:
        reduce_in_lanes(schedule, block, width)
    order = blocks(schedule)
    names = [schedule.get(block).name_hint for block in order]
    begin = next(n for n, name in enumerate(names) if name.startswith("greatest"))
    group = order[begin : names.index("softmax")]
    schedule.compute_at(softmax, chunks, preserve_unit_loops=True)
    *_, row, _ = schedule.get_loops(softmax)
    depth = len(schedule.get_loops(softmax)) - 1
    for block in reversed(group):
        schedule.compute_at(block, row, preserve_unit_loops=True)
    for block in (*group, softmax):
        schedule_pass(schedule, block, schedule.get_loops(block)[depth:], width)


def _chunk(rows: Size, length: Size, target: Target) -> int:
    """The number of rows in a chunk: a divisor of ``rows``, of whole tiles where there is one. If all
    divisors are small, all rows are one chunk."""
    fitting = max(target.tile_pixels, _CHUNK_BYTES // (4 * most(length)))
    if not isinstance(rows, int):
        return fitting // target.tile_pixels * target.tile_pixels
    dividing = [n for n in range(1, min(rows, fitting) + 1) if rows % n == 0]
    whole = [n for n in dividing if n % target.tile_pixels == 0]
    best = max(whole or dividing)
    return best if best >= _LEAST_ROWS else rows
