"""Products and convolutions whose rows or columns are open: the loops of ``schedule/tiled.py``, written
out.

TVM's primitives find the parts of arrays that loops use by arithmetic that does not go far with sizes that
are no numbers. Here a tile always has all of its pixels. The last one may reach past the end of its
operand; what it finds there is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - as TVM writes it
from tvm.sym import Analyzer
from tvm.tirx import IterVar

from wasmgraph.compiler.schedule.blocks import (
    SHARE,
    axis_sizes,
    blocks,
    extent_of,
    find,
    inline_between,
    output,
    reduces,
)
from wasmgraph.compiler.schedule.decisions import Tile
from wasmgraph.compiler.sizes import READS_PAST, size_of
from wasmgraph.dims import is_closed, typical
from wasmgraph.targets import Target

_FEW_ROWS = 16
_PART = 16  # terms: of a block of 16 channels, as many lines as a processor's prefetcher runs ahead
_LONG = range(64, 1 << 20, _PART)  # numbers of terms
Expr = Any
Buffer = Any


class Block(NamedTuple):
    """A block: its axes that are not reduced, those that are, the buffer it writes, and the value; of a
    sum, one term."""

    axes: list[tirx.Var]
    extents: list[Expr]
    reduced: list[tirx.Var]
    lengths: list[Expr]
    buffer: Buffer
    value: Expr
    indices: list[Expr]


def read(schedule: Schedule, block: SBlockRV) -> Block:
    """What a block computes."""
    found = schedule.get(block)
    store = found.body
    spatial = [axis for axis in found.iter_vars if axis.iter_type == IterVar.DataPar]
    reduced = [axis for axis in found.iter_vars if axis.iter_type != IterVar.DataPar]
    return Block(
        [a.var for a in spatial],
        [a.dom.extent for a in spatial],
        [a.var for a in reduced],
        [a.dom.extent for a in reduced],
        store.buffer,
        store.value.b if reduced else store.value,
        list(store.indices),
    )


def loads(expression: Expr, buffer: Buffer) -> list[TensorLoad]:
    """The reads of a buffer in an expression."""
    found: list[TensorLoad] = []

    def note(load: TensorLoad) -> TensorLoad:
        if load.source.same_as(buffer):
            found.append(load)
        return load

    tvm_ffi.structural_map(expression, [(TensorLoad, note)])
    return found


def exchanged(expression: Expr, buffer: Buffer, value: Expr) -> Expr:
    """The expression with reads of a buffer replaced by a value."""

    def exchange(load: TensorLoad) -> Expr:
        return value if load.source.same_as(buffer) else load

    return tvm_ffi.structural_map(expression, [(TensorLoad, exchange)])


def at(expression: Expr, values: Mapping[tirx.Var, Expr]) -> Expr:
    """The expression with variables replaced."""
    if not isinstance(expression, tvm.ir.Expr):
        return expression
    return tvm_ffi.structural_map(expression, [(tirx.Var, lambda var: values.get(var, var))])


def vector(buffer: Buffer, place: Sequence[Expr], width: int, value: Callable[[Expr], Expr]) -> None:
    """Store a vector, whose first element is at ``place``."""
    with T.vectorized(width) as lane:
        T.buffer_store(buffer, value(lane), [*place[:-1], place[-1] + lane])


def row_of(buffer: Buffer, row: Expr) -> Callable[[Expr], Expr]:
    """An element of a row, by its lane."""
    return lambda lane: buffer[row, lane]


def sum_up(
    pixels: int,
    width: int,
    dtype: str,
    lengths: Sequence[Expr],
    term: Callable[[Sequence[Expr], Expr, int], Expr],
    begun: Callable[[int, Expr], Expr] | None = None,
) -> Buffer:
    """A tile of sums; each term is of the reduced axes' values, a lane and a pixel of the tile. They begin
    with 0, or with what ``begun`` gives for a pixel and a lane."""
    sums = T.alloc_buffer((pixels, width), dtype)
    for pixel in range(pixels):
        first = partial(begun, pixel) if begun else lambda _: tirx.const(0, dtype)
        vector(sums, [pixel, 0], width, first)
    values: list[Expr] = []

    def summed(pixel: int, lane: Expr) -> Expr:
        return sums[pixel, lane] + term(values, lane, pixel)

    def nest(left: Sequence[Expr]) -> None:
        if not left:
            for pixel in range(pixels):
                vector(sums, [pixel, 0], width, partial(summed, pixel))
            return
        with T.serial(left[0]) as value:
            values.append(value)
            nest(left[1:])

    nest(lengths)
    return sums


def store_tile(
    buffer: Buffer,
    place: Sequence[Expr],
    block: int,
    channels: Expr,
    value: Callable[[Expr], Expr],
) -> None:
    """Store a row of a tile at ``place``, as far as there are ``channels``."""
    count = size_of(channels)
    if isinstance(count, int) and count % block == 0:
        vector(buffer, place, block, value)
        return
    first = place[-1]
    with T.If(first + block <= channels):
        with T.Then():
            vector(buffer, place, block, value)
        with T.Else(), T.serial(channels - first) as lane:
            T.buffer_store(buffer, value(lane), [*place[:-1], first + lane])


def like(kernel: tirx.PrimFunc, emit: Callable[[], None]) -> tirx.PrimFunc:
    """A kernel with the parameters and attributes of another."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        for parameter in kernel.params:
            T.arg(parameter.name, parameter)
        emit()
    return tirx.PrimFunc(kernel.params, builder.get().body, kernel.ret_type, attrs=kernel.attrs)


def open_tiles(schedule: Schedule, target: Target) -> tuple[tirx.PrimFunc, Tile] | None:
    """The kernel of one product or convolution with what is element-wise around it, if one of its sizes is
    open; None if it is not of that form."""
    acc, last = find(schedule, "acc"), output(schedule)
    order = blocks(schedule)
    if acc is None or last is None or sum(reduces(schedule, b) for b in order) != 1:
        return None
    if all(is_closed([extent_of(schedule, loop) for loop in schedule.get_loops(b)]) for b in order):
        return None
    if is_closed([extent_of(schedule, loop) for loop in _tiled(schedule, acc, last)]):
        return None  # only loops around the tiles are open
    inline_between(schedule, acc, last)
    order = blocks(schedule)
    names = [schedule.get(b).name_hint for b in order]
    before = [read(schedule, b) for b in order[: names.index(schedule.get(acc).name_hint)]]
    sums, out = read(schedule, acc), read(schedule, last)
    found = loads(out.value, sums.buffer)
    straight = all(index.same_as(axis) for index, axis in zip(out.indices, out.axes, strict=True))
    if len(found) != 1 or len(out.axes) < 2 or not straight or len(order) != len(before) + 2:
        return None
    sizes = [size_of(extent) for extent in out.extents]
    pixel = max(range(len(sizes) - 1), key=lambda axis: (typical(sizes[axis]), axis))
    block = int(sums.extents[-1])
    tile = Tile(target.tile_pixels, block)
    streams = not target.threaded and tile.pixels <= _FEW_ROWS // 4
    tiles = _Tiles(sums, out, found[0], pixel, tile, streams)
    written = like(schedule.mod["main"], lambda: tiles.emit(before, target.lanes))
    past = tiles.past()
    return (written.with_attr(READS_PAST, past) if past else written), tile


def _tiled(schedule: Schedule, acc: SBlockRV, last: SBlockRV) -> list[LoopRV]:
    """The loops over a tile's pixels, its channels and its sums."""
    spatial = len(axis_sizes(schedule, acc))
    return [*schedule.get_loops(last)[-2:], *schedule.get_loops(acc)[spatial:]]


class _Tiles:
    """The loops: blocks of channels, other dimensions of the result, tiles along the dimension
    ``pixel``."""

    def __init__(
        self, sums: Block, out: Block, found: TensorLoad, pixel: int, tile: Tile, streams: bool
    ) -> None:
        self.sums, self.out, self.found, self.pixel, self.tile = sums, out, found, pixel, tile
        self.analyzer = Analyzer()
        # Whether few rows have loops of their own.
        terms = size_of(sums.lengths[0]) if len(sums.lengths) == 1 else 0
        self.has_few = streams and isinstance(terms, int) and terms in _LONG
        self.held: dict[Buffer, Buffer] = {}

    def emit(self, before: Sequence[Block], lanes: int) -> None:
        """All blocks; those before the sums are arrays of their own."""
        for each in before:
            self.held[each.buffer] = T.sblock_alloc_buffer(each.buffer.shape, each.buffer.dtype)
            self.fill(each, lanes)
        out, tile = self.out, self.tile
        others = [axis for axis in range(len(out.axes) - 1) if axis != self.pixel]
        values: dict[tirx.Var, Expr] = {}
        extents = {
            **{out.axes[axis]: out.extents[axis] for axis in others},
            out.axes[self.pixel]: (out.extents[self.pixel] + (tile.pixels - 1)) // tile.pixels,
        }

        def nest(left: Sequence[tirx.Var], channel: Expr, inside: Callable[..., None]) -> None:
            if not left:
                inside(values, channel)
                return
            with T.serial(extents[left[0]], annotations={SHARE: 1}) as value:
                values[left[0]] = value
                nest(left[1:], channel, inside)

        blocks = (out.extents[-1] + (tile.channels - 1)) // tile.channels
        with T.serial(blocks, annotations={SHARE: 1}) as block:
            channel = block * tile.channels
            if not self.has_few:
                nest(list(extents), channel, self.one)
                return
            rows = reduce(lambda left, right: left * right, out.extents[:-1])
            with T.If(rows <= _FEW_ROWS):
                with T.Then():
                    nest([out.axes[axis] for axis in others], channel, self.few)
                with T.Else():
                    nest(list(extents), channel, self.one)

    def fill(self, block: Block, lanes: int) -> None:
        """Compute a block on which the sums depend, such as padding."""
        buffer = self.held[block.buffer]
        places: list[Expr] = []

        def value(lane: Expr) -> Expr:
            where = dict(zip(block.axes, [*places[:-1], places[-1] + lane], strict=True))
            return self.reading(at(block.value, where))

        def nest(left: Sequence[Expr]) -> None:
            if len(left) > 1:
                with T.serial(left[0], annotations={SHARE: 1}) as place:
                    places.append(place)
                    nest(left[1:])
                return
            width = size_of(left[0])
            step = lanes if isinstance(width, int) and width % lanes == 0 else 1
            with T.serial(left[0] // step) as place:
                places.append(place * step)
                vector(buffer, places, step, value)

        nest(block.extents)

    def reading(self, expression: Expr) -> Expr:
        """The expression with arrays of the original kernel replaced by those of this one."""

        def exchange(load: TensorLoad) -> Expr:
            for old, new in self.held.items():
                if load.source.same_as(old):
                    return new[tuple(load.indices)]
            return load

        return tvm_ffi.structural_map(expression, [(TensorLoad, exchange)]) if self.held else expression

    def at_row(self, values: Mapping[tirx.Var, Expr], row: Expr, channel: Expr) -> dict[tirx.Var, Expr]:
        """The axes of the result at a row and a channel."""
        return {**values, self.out.axes[self.pixel]: row, self.out.axes[-1]: channel}

    def term(
        self, values: Mapping[tirx.Var, Expr], first: Expr, channel: Expr
    ) -> Callable[[Sequence[Expr], Expr, int], Expr]:
        """One term of the sums of a tile: of the reduced axes' values, a lane, and a row of the tile."""
        sums = self.sums

        def one(reduced: Sequence[Expr], lane: Expr, pixel: int) -> Expr:
            here = self.at_row(values, first + pixel, channel + lane)
            self.analyzer.bind(lane, tvm.ir.Range(0, self.tile.channels), allow_override=True)
            place = [self.analyzer.simplify(at(index, here)) for index in self.found.indices]
            names = dict(zip((*sums.axes, *sums.reduced), (*place, *reduced), strict=True))
            return self.reading(at(sums.value, names))

        return one

    def store_row(
        self, values: Mapping[tirx.Var, Expr], row: Expr, channel: Expr, sum_of: Callable[[Expr], Expr]
    ) -> None:
        """Store what is made of a row of sums."""
        out = self.out

        def value(lane: Expr) -> Expr:
            made = exchanged(out.value, self.sums.buffer, sum_of(lane))
            return at(made, self.at_row(values, row, channel + lane))

        first = self.at_row(values, row, channel)
        place = [first[axis] for axis in out.axes]
        store_tile(out.buffer, place, self.tile.channels, out.extents[-1], value)

    def one(self, values: Mapping[tirx.Var, Expr], channel: Expr) -> None:
        """A tile from a channel on, at a place: of the dimension of pixels the number of the tile."""
        out, sums, pixels, width = self.out, self.sums, self.tile.pixels, self.tile.channels
        first = values[out.axes[self.pixel]] * pixels
        term = self.term(values, first, channel)
        tile = sum_up(pixels, width, str(sums.buffer.dtype), sums.lengths, term)
        for pixel in range(pixels):
            with T.If(first + pixel < out.extents[self.pixel]), T.Then():
                self.store_row(values, first + pixel, channel, row_of(tile, pixel))

    def few(self, values: Mapping[tirx.Var, Expr], channel: Expr) -> None:
        """All rows from a channel on, a part of their terms at a time. Few rows wait for weights from
        memory. A part of a block is so short that the processor fetches the next one by itself while all
        tiles use this one; it does not fetch a whole block ahead."""
        pixels, width, dtype = self.tile.pixels, self.tile.channels, str(self.sums.buffer.dtype)
        rows = self.out.extents[self.pixel]
        tiles = (rows + (pixels - 1)) // pixels
        total = T.alloc_buffer((_FEW_ROWS, width), dtype)
        # By tiles: LLVM would make one loop a memory.fill, for which Cranelift calls the host.
        with T.serial(tiles) as tile:
            for pixel in range(pixels):
                vector(total, [tile * pixels + pixel, 0], width, lambda _: tirx.const(0, dtype))
        with T.serial(int(self.sums.lengths[0]) // _PART) as part, T.serial(tiles) as tile:
            first, begin = tile * pixels, part * _PART
            term = self.term(values, first, channel)
            sums = sum_up(
                *(pixels, width, dtype, [_PART]),
                lambda n, lane, pixel: term([begin + n[0]], lane, pixel),
                lambda pixel, lane: total[first + pixel, lane],
            )
            for pixel in range(pixels):
                vector(total, [first + pixel, 0], width, row_of(sums, pixel))
        with T.serial(rows) as row:
            self.store_row(values, row, channel, row_of(total, row))

    def past(self) -> str:
        """How far the last tile may read past the end of a tensor: see READS_PAST."""
        axis = self.out.axes[self.pixel]
        moved = {axis: axis + 1}
        steps: list[tuple[Expr, Expr]] = []
        for own, index in zip(self.sums.axes, self.found.indices, strict=True):
            steps.append((own, at(index, moved) - index))
        marks = []

        def note(load: TensorLoad) -> TensorLoad:
            for number, index in enumerate(load.indices):
                further = at(index, {own: own + self.analyzer.simplify(step) for own, step in steps})
                step = self.analyzer.simplify(further - index)
                if isinstance(step, tirx.IntImm) and int(step) > 0:
                    marks.append(f"{(self.tile.pixels - 1) * int(step)} {number}")
            return load

        tvm_ffi.structural_map(self.sums.value, [(TensorLoad, note)])
        return ",".join(marks)
