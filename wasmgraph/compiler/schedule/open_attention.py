"""Attention whose length or rows are open: the loops of ``schedule/attention.py``, written out, as those
of ``open_tiles.py`` are. Scores lie in rows of whole blocks of columns, and columns past the end are −∞, so
that no loop needs a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.script.ir_builder import tirx as T  # noqa: N812 - as TVM writes it
from tvm.sym import Analyzer

from wasmgraph.compiler.schedule.blocks import SHARE
from wasmgraph.compiler.schedule.decisions import Tile
from wasmgraph.compiler.schedule.open_tiles import (
    Block,
    at,
    exchanged,
    like,
    loads,
    read,
    store_tile,
    sum_up,
    vector,
)
from wasmgraph.compiler.sizes import READS_PAST

Expr = Any
Buffer = Any


def open_attention(
    schedule: Schedule,
    products: tuple[SBlockRV, SBlockRV],
    scores: SBlockRV,
    softmax: SBlockRV,
    last: SBlockRV,
    decision: Tile,
) -> tirx.PrimFunc | None:
    """The kernel; None if its results do not lie in rows and columns as the second product writes them."""
    first, second, masked, out = (read(schedule, b) for b in (products[0], products[1], scores, last))
    shares = schedule.get(softmax).body.buffer
    outer = loads(out.value, second.buffer)
    inner = loads(masked.value, first.buffer)
    if len(outer) != 1 or len(inner) != 1 or not outer[0].indices[2].same_as(out.axes[-2]):
        return None
    written = like(
        schedule.mod["main"],
        lambda: _Attention(first, second, masked, out, shares, decision).emit(outer[0], inner[0]),
    )
    rank = len(out.axes)
    past = f"{decision.pixels - 1} {rank - 2},{first.extents[-1]} {rank - 1}"
    return written.with_attr(READS_PAST, past)


class _Attention:
    def __init__(
        self, first: Block, second: Block, masked: Block, out: Block, shares: Buffer, tile: Tile
    ) -> None:
        self.first, self.second, self.masked, self.out = first, second, masked, out
        self.shares, self.tile = shares, tile
        self.rows, self.columns = masked.extents[-2:]
        self.block = int(first.extents[-1])
        self.analyzer = Analyzer()
        assert tile.chunk is not None
        self.chunk = tile.chunk
        self.dtype = str(first.buffer.dtype)
        self.blocks = (self.columns + (self.block - 1)) // self.block
        # The rows of scores of one chunk.
        self.scores = T.sblock_alloc_buffer((self.chunk, self.blocks * self.block), self.dtype)
        self.scale = T.sblock_alloc_buffer((self.chunk,), self.dtype)

    def zero(self, value: float = 0.0) -> Expr:
        return tirx.const(value, self.dtype)

    def emit(self, outer: TensorLoad, inner: TensorLoad) -> None:
        leading = self.out.axes[:-2]
        loops = [T.serial(extent, annotations={SHARE: 1}) for extent in self.out.extents[:-2]]
        places: list[Expr] = []

        def nest(depth: int) -> None:
            if depth < len(loops):
                with loops[depth] as place:
                    places.append(place)
                    nest(depth + 1)
                return
            where = dict(zip(leading, places, strict=True))
            batch = self.analyzer.simplify(at(outer.indices[0], where))
            (load,) = loads(self.second.value, self.shares)
            head = [at(i, {self.second.axes[0]: batch}) for i in load.indices[:-2]]
            head = list(map(self.analyzer.simplify, head))
            own = dict(zip(self.masked.axes[:-2], head, strict=True))
            product = self.analyzer.simplify(at(inner.indices[0], own))
            with T.serial((self.rows + (self.chunk - 1)) // self.chunk, annotations={SHARE: 1}) as chunk:
                begin = chunk * self.chunk
                here = tirx.Min(self.chunk, self.rows - begin)
                self.first_product(begin, here, product, own)
                self.softmax(here)
                self.second_product(begin, here, batch, where)

        nest(0)

    def tiles(self, here: Expr) -> Expr:
        pixels = self.tile.pixels
        return T.serial((here + (pixels - 1)) // pixels)

    def first_product(self, begin: Expr, here: Expr, product: Expr, own: Mapping[tirx.Var, Expr]) -> None:
        f, block = self.first, self.block
        with T.serial(self.blocks) as b, self.tiles(here) as tile:
            first = tile * self.tile.pixels

            def term(reduced: Sequence[Expr], lane: Expr, pixel: int) -> Expr:
                values = (product, b, begin + first + pixel, lane, *reduced)
                return at(f.value, dict(zip((*f.axes, *f.reduced), values, strict=True)))

            sums = sum_up(self.tile.pixels, block, self.dtype, f.lengths, term)
            for pixel in range(self.tile.pixels):

                def score(lane: Expr, pixel: int = pixel) -> Expr:
                    column = b * block + lane
                    axes = {self.masked.axes[-2]: begin + first + pixel, self.masked.axes[-1]: column}
                    value = exchanged(self.masked.value, f.buffer, sums[pixel, lane])
                    return at(value, {**own, **axes})

                vector(self.scores, [first + pixel, b * block], block, score)

    def softmax(self, here: Expr) -> None:
        block, scores = self.block, self.scores
        last = (self.blocks - 1) * block

        def within(row: Expr, lane: Expr) -> Expr:
            there = last + lane < self.columns
            return tirx.Select(there, scores[row, last + lane], self.zero(-np.inf))

        with T.serial(here) as row:
            vector(scores, [row, last], block, partial(within, row))
            most = T.alloc_buffer((block,), self.dtype)
            total = T.alloc_buffer((block,), self.dtype)
            vector(most, [0], block, lambda lane: self.zero(-np.inf))
            with T.serial(self.blocks) as b:
                vector(most, [0], block, lambda lane: tirx.Max(most[lane], scores[row, b * block + lane]))
            self.fold(most, tirx.Max)
            vector(total, [0], block, lambda lane: self.zero())
            with T.serial(self.blocks) as b:
                vector(
                    scores,
                    [row, b * block],
                    block,
                    lambda lane: tirx.exp(scores[row, b * block + lane] - most[0]),
                )
                vector(total, [0], block, lambda lane: total[lane] + scores[row, b * block + lane])
            self.fold(total, tirx.Add)
            T.buffer_store(self.scale, self.zero(1.0) / total[0], [row])

    def fold(self, buffer: Buffer, function: Callable[[Expr, Expr], Expr]) -> None:
        """Reduce the lanes of a vector to its first one."""

        def folded(width: int, lane: Expr) -> Expr:
            return function(buffer[lane], buffer[lane + width])

        width = self.block
        while width > 1:
            width //= 2
            vector(buffer, [0], width, partial(folded, width))

    def second_product(self, begin: Expr, here: Expr, batch: Expr, where: Mapping[tirx.Var, Expr]) -> None:
        s, out = self.second, self.out
        block = int(s.extents[-1])
        with T.serial(s.extents[1]) as b, self.tiles(here) as tile:
            first = tile * self.tile.pixels

            def term(reduced: Sequence[Expr], lane: Expr, pixel: int) -> Expr:
                values = (batch, b, begin + first + pixel, lane, *reduced)
                value = exchanged(s.value, self.shares, self.scores[first + pixel, reduced[0]])
                return at(value, dict(zip((*s.axes, *s.reduced), values, strict=True)))

            sums = sum_up(self.tile.pixels, block, self.dtype, s.lengths, term)
            for pixel in range(self.tile.pixels):
                row = first + pixel

                def result(lane: Expr, pixel: int = pixel, row: Expr = row) -> Expr:
                    value = exchanged(out.value, s.buffer, sums[pixel, lane] * self.scale[row])
                    axes = {out.axes[-2]: begin + row, out.axes[-1]: b * block + lane}
                    return at(value, {**where, **axes})

                place = [*where.values(), begin + row, b * block]
                with T.If(row < here), T.Then():
                    store_tile(out.buffer, place, block, out.extents[-1], result)
