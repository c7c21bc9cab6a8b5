"""Products by weights of four or eight bits that become numbers in registers.

A block of weights along K shares a scale and a zero point (onnxruntime's MatMulNBits). The products of a
block are summed first, then scaled: s·(Σ x·q − z·Σ x). Weights take an eighth or a quarter of the memory
and of its bandwidth.

A word of 32 bits has consecutive elements of one column. The bits of one of them, where they are, converted
to float32 are the element times a power of two, exactly. So nothing is shifted: the rows are divided by
these powers beforehand, which is exact too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - as TVM writes it

from wasmgraph.compiler.operators.packing import OPAQUE
from wasmgraph.compiler.sizes import own_variables
from wasmgraph.dims import Size, from_json, product, to_json
from wasmgraph.tensors import Array

# The attribute of a kernel that says which product it computes.
FEW_BITS = "wasmgraph_few_bits"
TILE = 16  # columns of a block of weights: as many vectors as a register tile of SIMD128 has

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class FewBits:
    """A product ``[rows][inner]`` by weights of ``bits`` bits, ``[columns][inner]``.

    ``block`` elements along ``inner`` share a scale and, with ``zeros``, a zero point; otherwise this is in
    the middle of the range.
    """

    rows: Size
    inner: int
    columns: int
    bits: int
    block: int
    zeros: bool

    @property
    def blocks(self) -> int:
        """Blocks of elements that share a scale."""
        return -(-self.inner // self.block)

    @property
    def tiles(self) -> int:
        """Blocks of columns; the last one is padded."""
        return -(-self.columns // TILE)

    @property
    def step(self) -> int:
        """Elements along ``inner`` of a word."""
        return 32 // self.bits

    @property
    def middle(self) -> int:
        """The zero point where none is given."""
        return 1 << (self.bits - 1)

    @property
    def flops(self) -> Size:
        """Multiplications and additions."""
        return product([2, self.rows, self.inner, self.columns])

    def to_json(self) -> str:
        """The product as text."""
        return json.dumps({**asdict(replace(self, rows=0)), "rows": to_json(self.rows)})

    @staticmethod
    def from_json(text: str) -> FewBits:
        """The product of :meth:`to_json`."""
        data = json.loads(text)
        return FewBits(**{**data, "rows": from_json(data["rows"])})

    def packed(self, numbers: Array) -> Array:
        """Pack weights ``[columns][inner]`` to words ``[tile][inner / step][TILE]``: an element's bits are
        above those of the one before it."""
        whole = self.blocks * self.block
        padding = [(0, self.tiles * TILE - self.columns), (0, whole - self.inner)]
        parts = np.pad(numbers.astype(np.uint32), padding).reshape(self.tiles, TILE, -1, self.step)
        words = np.zeros(parts.shape[:3], np.uint32)
        for n in range(self.step):
            words |= parts[..., n] << np.uint32(n * self.bits)
        return np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.int32)

    def by_block(self, values: Array) -> Array:
        """Pack scales or zero points ``[columns][blocks]`` to ``[tile][blocks][TILE]``."""
        padded = np.pad(values, [(0, self.tiles * TILE - self.columns), (0, 0)])
        parts = padded.reshape(self.tiles, TILE, self.blocks)
        return np.ascontiguousarray(parts.transpose(0, 2, 1))


def few_bits_of(kernel: tirx.PrimFunc) -> FewBits | None:
    """The product that a kernel computes; None if it is another kernel."""
    text = kernel.attrs.get(FEW_BITS) if kernel.attrs else None
    return None if text is None else FewBits.from_json(str(text))


def few_bits_kernel(
    what: FewBits, pixels: int = 1, width: int = 1, marks: dict[str, int] | None = None
) -> tirx.PrimFunc:
    """The kernel of a product.

    Its inputs are the rows (float32), packed weights, scales (float32) and, if there are any, zero points
    (uint8): see :meth:`FewBits.packed`.

    Parameters
    ----------
    pixels : rows that are computed at a time
    width : columns that are computed at a time: a divisor of TILE
    marks : annotations of loops whose turns are independent
    """
    with own_variables([what.rows]), IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("few_bits")
        T.func_attr({FEW_BITS: what.to_json(), "op_pattern": OPAQUE})
        _Kernel(what, width).emit(pixels, marks or {})
    return builder.get()


class _Kernel:
    """A kernel under construction."""

    def __init__(self, what: FewBits, width: int) -> None:
        self.what, self.width = what, width
        whole = what.blocks * what.block
        self.data = T.arg("data", T.Buffer((what.rows, what.inner), "float32"))
        words = (what.tiles, whole // what.step, TILE)
        self.weights = T.arg("weights", T.Buffer(words, "int32"))
        blocks = (what.tiles, what.blocks, TILE)
        self.scales = T.arg("scales", T.Buffer(blocks, "float32"))
        self.zeros: Buffer = T.arg("zeros", T.Buffer(blocks, "uint8")) if what.zeros else None
        self.result = T.arg("result", T.Buffer((what.rows, what.columns), "float32"))
        # The rows divided by powers of two, and the sum of each of their blocks.
        self.rows = T.sblock_alloc_buffer((what.rows, whole), "float32")
        self.totals = T.sblock_alloc_buffer((what.rows, what.blocks), "float32")

    def emit(self, pixels: int, marks: dict[str, int]) -> None:
        """The rows, then tiles of columns."""
        what = self.what
        with T.serial(what.rows, annotations=marks) as row:
            self.divide(row)
        whole = what.rows // pixels
        with T.serial(what.tiles, annotations=marks) as tile, T.serial(TILE // self.width) as part:
            with T.serial(whole) as row:
                self.tile(tile, part * self.width, row * pixels, pixels)
            if not isinstance(what.rows, int) or what.rows % pixels:
                with T.serial(what.rows - whole * pixels) as row:
                    self.tile(tile, part * self.width, whole * pixels + row, 1)

    def divide(self, row: Expr) -> None:
        """Divide a row's elements as their places in words demand, and sum up its blocks."""
        what = self.what
        zero = tirx.const(0, "float32")
        with T.serial(what.blocks) as block:
            total = T.alloc_buffer((1,), "float32")
            T.buffer_store(total, zero, [0])
            with T.serial(what.block // what.step) as word:
                for j in range(what.step):
                    at = block * what.block + word * what.step + j
                    inside = what.blocks * what.block == what.inner
                    value = self.data[row, at]
                    value = value if inside else tirx.if_then_else(at < what.inner, value, zero)
                    factor = 1.0 if j == what.step - 1 else 2.0 ** -(what.bits * j)
                    T.buffer_store(self.rows, value * tirx.const(factor, "float32"), [row, at])
                    T.buffer_store(total, total[0] + value, [0])
            T.buffer_store(self.totals, total[0], [row, block])

    def tile(self, tile: Expr, first: Expr, begin: Expr, count: int) -> None:
        """``count`` rows from ``begin`` on, ``width`` columns of a tile from ``first`` on."""
        what, width = self.what, self.width
        total = self.cleared(count)
        with T.serial(what.blocks) as block:
            sums = self.cleared(count)
            with T.serial(what.block // what.step) as word:
                at = block * (what.block // what.step) + word
                for j in range(what.step):
                    for n in range(count):
                        self.add(sums, n, begin + n, [tile, at, first], j)
            for n in range(count):

                def scaled(lane: Expr, n: int = n) -> Expr:
                    zero = tirx.const(float(what.middle), "float32")
                    if self.zeros is not None:
                        zero = self.zeros[tile, block, first + lane].astype("int32").astype("float32")
                    centred = sums[n, lane] - zero * self.totals[begin + n, block]
                    return total[n, lane] + centred * self.scales[tile, block, first + lane]

                _vector(total, [n, 0], width, scaled)
        column = tile * TILE + first
        for n in range(count):
            if what.columns % width == 0:
                with T.If(column < what.columns), T.Then():
                    _vector(self.result, [begin + n, column], width, partial(_element, total, n))
                continue
            with T.serial(width) as lane, T.If(column + lane < what.columns), T.Then():
                T.buffer_store(self.result, total[n, lane], [begin + n, column + lane])

    def cleared(self, count: int) -> Buffer:
        """Sums, which begin with 0."""
        sums = T.alloc_buffer((count, self.width), "float32")
        for n in range(count):
            _vector(sums, [n, 0], self.width, lambda _: tirx.const(0, "float32"))
        return sums

    def add(self, sums: Buffer, n: int, row: Expr, place: list[Expr], j: int) -> None:
        """Add the products of the element ``j`` of words at ``place``, and of a row, to sums."""
        what, width = self.what, self.width
        bits, most = what.bits, (1 << what.bits) - 1
        tile, at, first = place
        kind = "int32" if width == 1 else f"int32x{width}"
        word = self.weights[tile, at, first if width == 1 else tirx.Ramp(first, 1, width)]

        def const(value: int) -> Expr:
            return tirx.const(value, kind)

        if j == what.step - 1:  # its highest bit is no sign
            own = tirx.bitwise_and(tirx.shift_right(word, const(32 - bits)), const(most))
        else:
            own = tirx.bitwise_and(word, const(most << (bits * j)))
        own = own.astype(kind.replace("int", "float"))
        if width == 1:
            T.buffer_store(sums, sums[n, 0] + self.rows[row, at * what.step + j] * own, [n, 0])
            return
        # All elements that a word goes with are one load; each is broadcast from a register.
        x = self.rows[row, tirx.Ramp(at * what.step, 1, what.step)]
        lanes = tirx.Ramp(0, 1, width)
        T.buffer_store(
            sums, sums[n, lanes] + tirx.Broadcast(tirx.Shuffle([x], [j]), width) * own, [n, lanes]
        )


def _element(buffer: Buffer, row: int, lane: Expr) -> Expr:
    return buffer[row, lane]


def _vector(buffer: Buffer, place: list[Expr], width: int, value: Callable[[Expr], Expr]) -> None:
    if width == 1:
        T.buffer_store(buffer, value(tirx.const(0, "int32")), place)
        return
    with T.vectorized(width) as lane:
        T.buffer_store(buffer, value(lane), [*place[:-1], place[-1] + lane])
