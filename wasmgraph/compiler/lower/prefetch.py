"""Stage 6, for targets that can prefetch: while a tile is computed, its share of the next block of weights
is fetched into the second-level cache.

Weights that do not fit the cache are read from memory once per inference. Without prefetching, the first
tile of pixels that needs a block of weights waits for memory; the other tiles compute from the cache while
memory is idle, so the two times add up. Prefetches that are spread over all tiles of a block let loading
and computing overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

from wasmgraph.compiler.schedule.blocks import FETCH_AHEAD
from wasmgraph.compiler.sizes import buffer_bytes, dtype_bytes

# Weights of fewer bytes stay in the cache from one inference to the next, or nearly so.
_OUTGROWN = 512 << 10
_LINE = 64  # bytes
_READ, _SECOND_LEVEL, _DATA = 0, 2, 1  # arguments of llvm.prefetch


def fetch_ahead(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Add prefetches inside marked loops. Buffers must be flat, and loops not yet vectorised."""

    def rewrite(loop: tirx.For) -> tirx.For:
        return _in_tiles(loop, []) if FETCH_AHEAD in loop.annotations else loop

    return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.For, rewrite)]))


def _in_tiles(loop: tirx.For, around: list[tirx.For]) -> tirx.For:
    tiles = [*around, loop]
    if len(tiles) < int(tiles[0].annotations[FETCH_AHEAD]):
        return _with_body(loop, _nested(loop.body, lambda inner: _in_tiles(inner, tiles)))
    return _with_body(loop, _nested(loop.body, lambda inner: _in_reduction(inner, tiles, [])))


def _in_reduction(loop: tirx.For, tiles: list[tirx.For], around: list[tirx.For]) -> tirx.For:
    """Add prefetches to each iteration of ``loop`` if it is a reduction's innermost loop. A reduction's
    loops are serial."""
    if loop.kind != tirx.ForKind.SERIAL:
        return loop
    reduction = [*around, loop]
    inside = _nested(loop.body, lambda inner: _in_reduction(inner, tiles, reduction))
    if inside.same_as(loop.body):
        fetches = _prefetches(inside, tiles, reduction)
        inside = tirx.SeqStmt([*fetches, inside]) if fetches else inside
    return _with_body(loop, inside)


def _nested(body: tirx.Stmt, rewrite: Callable[[tirx.For], tirx.For]) -> tirx.Stmt:
    """Rewrite the outermost loops of ``body``."""
    if isinstance(body, tirx.For):
        return rewrite(body)
    if isinstance(body, tirx.SeqStmt):
        parts = [_nested(part, rewrite) for part in body.seq]
        unchanged = all(new.same_as(old) for new, old in zip(parts, body.seq, strict=True))
        return body if unchanged else tirx.SeqStmt(parts)
    if isinstance(body, tirx.AttrStmt):
        return tirx.AttrStmt(body.node, body.attr_key, body.value, _nested(body.body, rewrite))
    return body


def _with_body(loop: tirx.For, body: tirx.Stmt) -> tirx.For:
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=dict(loop.annotations)
    )


def _prefetches(turn: tirx.Stmt, tiles: list[tirx.For], reduction: list[tirx.For]) -> list[tirx.Stmt]:
    """Prefetches for one iteration of the reduction: its tile's and its own share of the next block."""
    weights = _weights(turn, tiles)
    if weights is None:
        return []
    load, width = weights
    buffer, index = load.source, load.indices[0]
    if buffer_bytes(buffer) < _OUTGROWN:
        return []
    first = _at_zero(index, _loops(turn))
    block = _at_zero(first, reduction)
    size = width * prod(int(loop.extent) for loop in reduction)
    count = prod(int(loop.extent) for loop in tiles)
    tile = tirx.const(0, "int64")
    for loop in tiles:
        tile = tile * loop.extent + loop.loop_var
    share = -(-width // count)  # elements per iteration; shares overlap if rounded up
    ahead = block + size + tile * size // count + (first - block) // width * share
    step = _LINE // dtype_bytes(str(buffer.dtype))
    return [
        tirx.Evaluate(
            tirx.call_intrin(
                "void",
                "tirx.prefetch",
                tirx.address_of(buffer[ahead + offset]),
                _READ,
                _SECOND_LEVEL,
                _DATA,
            )
        )
        for offset in range(0, share, step)
    ]


def _weights(turn: tirx.Stmt, tiles: list[tirx.For]) -> tuple[TensorLoad, int] | None:
    """The load of the weights by which an iteration multiplies, one for each output channel, and the number
    of channels. It is the load whose index depends on the vector lane and on no pixel."""
    stored = [store.buffer for store in _within(turn, tirx.BufferStore)]
    lanes = [loop for loop in _loops(turn) if loop.kind == tirx.ForKind.VECTORIZED]
    for load in _within(turn, TensorLoad):
        if any(load.source.same_as(buffer) for buffer in stored):
            continue  # the accumulator
        index = load.indices[0]
        if any(_mentions(index, lane.loop_var) for lane in lanes) and not any(
            _mentions(index, tile.loop_var) for tile in tiles
        ):
            channels = [loop for loop in _loops(turn) if _mentions(index, loop.loop_var)]
            return load, prod(int(loop.extent) for loop in channels)
    return None


def _loops(body: tirx.Stmt) -> list[tirx.For]:
    return _within(body, tirx.For)


def _mentions(expression: tvm.ir.Expr, variable: tirx.Var) -> bool:
    return any(other.same_as(variable) for other in _within(expression, tirx.Var))


def _within(tree: Any, kind: type) -> list[Any]:
    """All nodes of class ``kind`` in a statement or expression."""
    found: list[Any] = []

    def note(node: Any) -> Any:
        found.append(node)
        return node

    tvm_ffi.structural_map(tree, [(kind, note)])
    return found


def _at_zero(expression: tvm.ir.Expr, loops: Sequence[tirx.For]) -> tvm.ir.Expr:
    """An expression's value in the first iteration of ``loops``."""

    def replace(variable: tirx.Var) -> tvm.ir.Expr:
        first = any(variable.same_as(loop.loop_var) for loop in loops)
        return tirx.const(0, str(variable.ty.dtype)) if first else variable

    return tvm_ffi.structural_map(expression, [(tirx.Var, replace)])
