"""Recurrent layers (LSTM, GRU, RNN) as one kernel with a loop over the steps inside.

The inputs' products are computed before, for all steps at once. A step multiplies the state by the
recurrent weights, then computes the gates. The weights are packed as ``[direction][block][state][column]``:
a block has as many columns as sums fit in registers, and a step reads all weights in their order in memory.
Gate orders and equations are those of ONNX's operator documentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - as TVM writes it

from wasmgraph.compiler.operators.packing import OPAQUE
from wasmgraph.compiler.sizes import own_variables
from wasmgraph.dims import Size, from_json, product, to_json

# The attribute of a kernel that says which layer it computes.
LAYER = "wasmgraph_recurrent"

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Columns of a block: seven vectors of SIMD128. Cranelift has all vectors of weights in registers at once,
# beside the sums and the state; with eight of each it spills.
BLOCK = 28

Expr = Any
Buffer = Any


class Function(NamedTuple):
    """An activation function, with the parameters that ONNX calls alpha and beta."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class Product:
    """A product of a state by the weights of some gates: ``columns`` sums, from the column ``first`` on.
    The last block is padded."""

    first: int
    columns: int

    @property
    def block(self) -> int:
        """Columns of a block."""
        return next((n for n in (4, 8, 16) if n >= self.columns), BLOCK)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.columns // self.block)


@dataclass(frozen=True)
class Layer:
    """What a recurrent layer computes.

    Attributes
    ----------
    steps, batch : numbers, or names of a kernel's own, if they are open
    backwards : the only direction begins at the last step; a second direction always does
    functions : activation functions of each direction
    lengths : sequences have lengths of their own, which are an input
    coupled : the forget gate is one minus the input gate (``input_forget``)
    reset_after : the reset gate is applied to the product, not to the state (``linear_before_reset``)
    weights : dtype of the recurrent weights. With integers, a step quantises the state to eight bits first,
        by one scale for the batch, as ONNX's DynamicQuantizeLinear does; so onnxruntime's
        DynamicQuantizeLSTM
    """

    kind: str
    steps: Size
    batch: Size
    hidden: int
    directions: int
    backwards: bool
    dtype: str
    functions: tuple[tuple[Function, ...], ...]
    clip: float | None = None
    lengths: bool = False
    peepholes: bool = False
    coupled: bool = False
    reset_after: bool = False
    weights: str = "float32"

    @property
    def quantized(self) -> bool:
        """Whether products are of integers."""
        return self.weights.startswith("int")

    @property
    def pairs(self) -> int:
        """Pairs of elements of a quantised state."""
        return -(-self.hidden // 2)

    @property
    def columns(self) -> int:
        """The number of columns of the inputs' products, for one direction."""
        return GATES[self.kind] * self.hidden

    @property
    def products(self) -> tuple[Product, ...]:
        """The products of one step. Without ``reset_after``, a GRU's last gate depends on the others."""
        if self.kind == "GRU" and not self.reset_after:
            others = 2 * self.hidden
            return Product(0, others), Product(others, self.hidden)
        return (Product(0, self.columns),)

    @property
    def flops(self) -> Size:
        """Multiplications and additions of the products."""
        return product([2, self.steps, self.batch, self.directions, self.columns, self.hidden])

    def to_json(self) -> str:
        """The layer as text."""
        closed = asdict(replace(self, steps=0, batch=0))
        return json.dumps({**closed, "steps": to_json(self.steps), "batch": to_json(self.batch)})

    @staticmethod
    def from_json(text: str) -> Layer:
        """The layer of :meth:`to_json`."""
        data = json.loads(text)
        data["functions"] = tuple(tuple(Function(*f) for f in one) for one in data["functions"])
        return Layer(**{**data, "steps": from_json(data["steps"]), "batch": from_json(data["batch"])})


def layer_of(kernel: tirx.PrimFunc) -> Layer | None:
    """The layer that a kernel computes; None if it is another kernel."""
    text = kernel.attrs.get(LAYER) if kernel.attrs else None
    return None if text is None else Layer.from_json(str(text))


def recurrent_kernel(
    layer: Layer,
    sums: int = 1,
    lanes: int = 1,
    exact: bool = False,
    groups: int = 1,
    marks: Mapping[str, int] | None = None,
) -> tirx.PrimFunc:
    """The kernel of a layer.

    Its inputs are: the inputs' products with biases ``[steps][batch][direction][columns]``; packed weights
    of each product, integers ``[direction][block][pair][2 · column]``, and their scales
    ``[direction][columns]``; for a GRU with ``reset_after`` the bias of the last gate's product
    ``[direction][hidden]``; peepholes ``[direction][3 · hidden]``; lengths ``[batch]``; initial states
    ``[direction][batch][hidden]``. Its outputs are every step's hidden state
    ``[steps][direction][batch][hidden]`` and the last states.

    Parameters
    ----------
    sums : the number of sums that are computed at a time
    lanes : elements of a vector
    exact : no vector in the code is longer
    groups : groups of equal size into which the rows of a batch are divided; each goes through all steps; 1
        if the batch is open
    marks : annotations of the loops over directions and groups, whose turns are independent
    """
    with own_variables([layer.steps, layer.batch]), IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(layer.kind.lower())
        T.func_attr({LAYER: layer.to_json(), "op_pattern": OPAQUE})
        _Kernel(layer, sums, lanes, exact).emit(groups, dict(marks or {}))
    return builder.get()


class _Kernel:
    """A kernel under construction. ``held`` has, for each direction and row of the batch: the state; the
    cell, or the state times the reset gate; the sums of all products."""

    def __init__(self, layer: Layer, sums: int, lanes: int, exact: bool) -> None:
        self.layer, self.sums, self.lanes, self.exact = layer, sums, lanes, exact
        a, d = layer, layer.directions

        def arg(name: str, *shape: Size, dtype: str = a.dtype) -> Buffer:
            return T.arg(name, T.Buffer(shape, dtype))

        self.projected = arg("projected", a.steps, a.batch, d, a.columns)
        self.weights = [
            arg(f"weights{i}", d, p.blocks, a.pairs, 2 * p.block, dtype=a.weights)
            if a.quantized
            else arg(f"weights{i}", d, p.blocks, a.hidden, p.block)
            for i, p in enumerate(a.products)
        ]
        self.scales: Buffer = arg("scales", d, a.columns) if a.quantized else None
        self.inner: Buffer = arg("inner", d, a.hidden) if a.reset_after else None
        self.peepholes: Buffer = arg("peepholes", d, 3 * a.hidden) if a.peepholes else None
        self.lengths = arg("lengths", a.batch, dtype="int32") if a.lengths else None
        states = 2 if a.kind == "LSTM" else 1
        self.initial = [arg(f"initial{i}", d, a.batch, a.hidden) for i in range(states)]
        self.sequence = arg("sequence", a.steps, d, a.batch, a.hidden)
        self.last = [arg(f"last{i}", d, a.batch, a.hidden) for i in range(states)]
        self.first_sum = -(-2 * a.hidden // BLOCK) * BLOCK
        room = self.first_sum + a.columns + BLOCK
        self.held = T.sblock_alloc_buffer((d, a.batch, room), a.dtype)
        if a.quantized:
            self.state = T.sblock_alloc_buffer((d, a.batch, 2 * a.pairs), "int16")
            self.unit = T.sblock_alloc_buffer((d,), a.dtype)
        self.t: Expr = 0
        self.d: Expr = 0
        self.first_row: Expr = 0
        self.size = layer.batch

    def emit(self, groups: int, marks: dict[str, int]) -> None:
        """The loops: over states to begin with, directions, groups, steps, and states to end with."""
        layer = self.layer
        for n, initial in enumerate(self.initial):
            with T.grid(layer.directions, layer.batch, layer.hidden) as (d, b, j):
                T.buffer_store(self.held, initial[d, b, j], [d, b, n * layer.hidden + j])
        with (
            T.serial(layer.directions, annotations=marks) as d,
            T.serial(groups, annotations=marks) as group,
            T.serial(layer.steps) as s,
        ):
            back = layer.steps - 1 - s
            self.d, self.t = d, back if layer.backwards else s
            if layer.directions == 2:
                self.t = s + d * (back - s)
            self.size = layer.batch // groups
            self.first_row = group * self.size
            self.step()
        for n, last in enumerate(self.last):
            with T.grid(layer.directions, layer.batch, layer.hidden) as (d, b, j):
                T.buffer_store(last, self.held[d, b, n * layer.hidden + j], [d, b, j])

    def step(self) -> None:
        """The products and gates of all rows whose sequence has this step; zeros for the others."""
        layer = self.layer
        for which, finish in enumerate(_GATES[layer.kind, layer.reset_after]):
            if layer.quantized:
                self.quantize()
            self.product(which)
            with self.rows() as b:
                self.gates(b, finish)
        if self.lengths is not None:
            zero = tirx.const(0, layer.dtype)
            with self.rows(ended=True) as b, T.serial(layer.hidden) as j:
                T.buffer_store(self.sequence, zero, [self.t, self.d, b, j])

    @contextmanager
    def rows(self, ended: bool = False) -> Iterator[Expr]:
        """A loop over the rows of the group whose sequence has this step, or has ``ended``."""
        with T.serial(self.size) as row:
            b = self.first_row + row
            if self.lengths is None:
                yield b
                return
            length = self.lengths[b]
            with T.If(self.t >= length if ended else self.t < length), T.Then():
                yield b

    def vectors(self, count: int) -> list[tuple[int, int]]:
        """``count`` numbers as vectors: where each begins, and its length, which is a power of two, because
        LLVM pads others."""
        longest = self.lanes if self.exact or self.lanes == 1 else count
        found, begin = [], 0
        while begin < count:
            width = min(longest, 1 << (count - begin).bit_length() - 1)
            found.append((begin, width))
            begin += width
        return found

    def store(self, buffer: Buffer, at: Sequence[Expr], count: int, value: Callable[[Expr], Expr]) -> None:
        """Store ``count`` values in the last dimension of a buffer; the last index is the first one's."""
        for begin, width in self.vectors(count):
            with T.vectorized(width) as lane:
                T.buffer_store(buffer, value(begin + lane), [*at[:-1], at[-1] + begin + lane])

    def product(self, which: int) -> None:
        """Multiply a held row by weights: a state, or for a GRU's second product the one that is reset."""
        p = self.layer.products[which]
        together = min(p.blocks, max(1, self.sums // p.block))
        groups, rest = divmod(p.blocks, together)
        for count, begin, size in ((groups, 0, together), (1, groups * together, rest)):
            if size:
                with T.serial(count) as group, self.rows() as b:
                    sum_up = self.sum_up_integers if self.layer.quantized else self.sum_up
                    sum_up(which, b, begin + group * size, size)

    def sum_up(self, which: int, b: Expr, first: Expr, together: int) -> None:
        """The sums of some blocks for a row of the batch."""
        layer, p, d = self.layer, self.layer.products[which], self.d
        part, zero = _divisor(p.block, self.sums), tirx.const(0, layer.dtype)
        with T.serial(p.block // part) as at:
            sums = T.alloc_buffer((together, part), layer.dtype)
            for n in range(together):
                self.store(sums, [n, 0], part, lambda i: zero)
            with T.serial(layer.hidden) as k:
                for n in range(together):
                    for begin, width in self.vectors(part):
                        lane = tirx.Ramp(begin, 1, width) if width > 1 else begin
                        value = self.held[d, b, which * layer.hidden + k]
                        value = tirx.Broadcast(value, width) if width > 1 else value
                        weight = self.weight(which, [d, first + n, k], at * part, part, begin, width)
                        T.buffer_store(sums, sums[n, lane] + value * weight, [n, lane])
            for n in range(together):
                column = self.first_sum + p.first + (first + n) * p.block + at * part
                self.store(self.held, [d, b, column], part, partial(lambda n, i: sums[n, i], n))

    def quantize(self) -> None:
        """The state of all rows as integers less their zero point, and their scale."""
        layer, d = self.layer, self.d

        def const(value: float) -> Expr:
            return tirx.const(value, layer.dtype)

        def state(b: Expr, at: Expr) -> Expr:
            return self.held[d, b, at]

        ends = [T.alloc_buffer((self.lanes,), layer.dtype) for _ in range(2)]
        kinds = (tirx.Min, tirx.Max)
        for end in ends:
            self.store(end, [0], self.lanes, lambda _: const(0))
        for first, count, width in self.parts(layer.hidden, self.lanes):
            with T.serial(layer.batch) as b, T.serial(count) as n:
                for end, kind in zip(ends, kinds, strict=True):
                    at = first + n * width
                    self.store(end, [0], width, partial(_extreme, kind, end, partial(state, b), at))
        for end, kind in zip(ends, kinds, strict=True):
            for lane in range(1, self.lanes):
                T.buffer_store(end, kind(end[0], end[lane]), [0])
        least, most = (end[0] for end in ends)
        same = tirx.EQ(least, most)
        T.buffer_store(self.unit, tirx.Select(same, const(1), (most - least) / const(255)), [d])
        zero = T.alloc_buffer((1,), layer.dtype)
        held = tirx.Min(tirx.Max(const(0) - least / self.unit[d], const(0)), const(255))
        T.buffer_store(zero, tirx.round(held), [0])

        def whole(b: Expr, at: Expr, i: Expr) -> Expr:
            rounded = tirx.round(state(b, at + i) / self.unit[d])
            kept = tirx.Min(tirx.Max(rounded, const(0) - zero[0]), const(255) - zero[0])
            return kept.astype("int16")

        for first, count, width in self.parts(layer.hidden, 2 * self.lanes):
            with T.serial(layer.batch) as b, T.serial(count) as n:
                at = first + n * width
                self.store(self.state, [d, b, at], width, partial(whole, b, at))
        if layer.hidden % 2:
            with T.serial(layer.batch) as b:
                T.buffer_store(self.state, tirx.const(0, "int16"), [d, b, layer.hidden])

    def parts(self, count: int, width: int) -> Iterator[tuple[int, int, int]]:
        """``count`` elements as loops over vectors, and over the rest: first, turns, width."""
        vectors, rest = divmod(count, width if self.lanes > 1 else 1)
        if vectors:
            yield 0, vectors, width if self.lanes > 1 else 1
        if rest:
            yield count - rest, rest, 1

    def sum_up_integers(self, which: int, b: Expr, first: Expr, together: int) -> None:
        """The sums of some blocks for a quantised row of the batch, times their scales."""
        layer, p, d = self.layer, self.layer.products[which], self.d
        part, weights = _divisor(p.block, self.sums), self.weights[which]

        def product(n: int, k: Expr, at: Expr, begin: int, width: int, j: int) -> Expr:
            value = self.state[d, b, 2 * k + j].astype("int32")
            column = 2 * (at * part + begin) + j
            lane = tirx.Ramp(column, 2, width) if width > 1 else column
            weight = weights[d, first + n, k, lane]
            if width == 1:
                return value * weight.astype("int32")
            return tirx.Broadcast(value, width) * weight.astype(f"int32x{width}")

        with T.serial(p.block // part) as at:
            sums = T.alloc_buffer((together, part), "int32")
            for n in range(together):
                self.store(sums, [n, 0], part, lambda _: tirx.const(0, "int32"))
            with T.serial(layer.pairs) as k:
                for n in range(together):
                    for begin, width in self.vectors(part):
                        lane = tirx.Ramp(begin, 1, width) if width > 1 else begin
                        both = [product(n, k, at, begin, width, j) for j in (0, 1)]
                        T.buffer_store(sums, sums[n, lane] + (both[0] + both[1]), [n, lane])
            for n in range(together):
                own = p.first + (first + n) * p.block + at * part

                def scaled(i: Expr, n: int = n, own: Expr = own) -> Expr:
                    # The last block is padded; its scales are not.
                    column = tirx.Min(own + i, layer.columns - 1)
                    return sums[n, i].astype(layer.dtype) * (self.unit[d] * self.scales[d, column])

                self.store(self.held, [d, b, self.first_sum + own], part, scaled)

    def weight(self, which: int, row: list[Expr], first: Expr, part: int, begin: int, width: int) -> Expr:
        """A vector of a row of weights. It is cut out of a longer one, which LLVM loads from one address
        with constant offsets; the addresses of several vectors it would add up one by one."""
        weights = self.weights[which]
        if self.exact or width == part or width == 1:
            return weights[*row, first + (tirx.Ramp(begin, 1, width) if width > 1 else begin)]
        whole = weights[*row, first + tirx.Ramp(0, 1, part)]
        return tirx.Shuffle([whole], list(range(begin, begin + width)))

    def gates(self, b: Expr, finish: Finish) -> None:
        """Compute gates from the sums, some units at a time."""
        width = 2 * self.lanes if self.lanes > 1 else 1
        vectors, rest = divmod(self.layer.hidden, width)
        for count, begin, size in ((vectors, 0, width), (rest, vectors * width, 1)):
            if count:
                with T.serial(count) as n:
                    units = _Units(self, b, begin + n * size, size)
                    self.by_direction(partial(finish, units))

    def by_direction(self, emit: Callable[[Sequence[Function]], None]) -> None:
        """Emit code for the functions of the current direction."""
        first, *others = self.layer.functions
        if all(functions == first for functions in others):
            emit(first)
            return
        with T.If(tirx.EQ(self.d, 0)):
            with T.Then():
                emit(first)
            with T.Else():
                emit(others[0])


@dataclass(frozen=True)
class _Units:
    """Some hidden units of one row: ``width`` of them from ``first``. Their values are read by the position
    of a unit."""

    kernel: _Kernel
    b: Expr
    first: Expr
    width: int

    @property
    def layer(self) -> Layer:
        return self.kernel.layer

    def one(self) -> Expr:
        return tirx.const(1, self.layer.dtype)

    def summed(self, gate: int, i: Expr) -> Expr:
        """A gate's product with the state."""
        kernel = self.kernel
        return kernel.held[kernel.d, self.b, kernel.first_sum + gate * self.layer.hidden + self.first + i]

    def projected(self, gate: int, i: Expr) -> Expr:
        """A gate's product with the input, and biases."""
        column = gate * self.layer.hidden + self.first + i
        return self.kernel.projected[self.kernel.t, self.b, self.kernel.d, column]

    def added(self, gate: int, i: Expr) -> Expr:
        """A gate before its function."""
        return self.projected(gate, i) + self.summed(gate, i)

    def peephole(self, which: int, i: Expr) -> Expr:
        return self.kernel.peepholes[self.kernel.d, which * self.layer.hidden + self.first + i]

    def inner(self, i: Expr) -> Expr:
        return self.kernel.inner[self.kernel.d, self.first + i]

    def held(self, which: int, i: Expr) -> Expr:
        """The state (0), or what is held beside it (1)."""
        return self.kernel.held[self.kernel.d, self.b, which * self.layer.hidden + self.first + i]

    def hold(self, which: int, values: Buffer) -> None:
        """Set the state (0), or what is held beside it (1)."""
        kernel = self.kernel
        at = [kernel.d, self.b, which * self.layer.hidden + self.first]
        kernel.store(kernel.held, at, self.width, lambda i: values[i])

    def show(self, state: Buffer) -> None:
        """A new state is the step's output."""
        kernel = self.kernel
        self.hold(0, state)
        at = [kernel.t, kernel.d, self.b, self.first]
        kernel.store(kernel.sequence, at, self.width, lambda i: state[i])

    def let(self, value: Callable[[Expr], Expr]) -> Buffer:
        """Values in registers."""
        buffer = T.alloc_buffer((self.width,), self.layer.dtype)
        self.kernel.store(buffer, [0], self.width, value)
        return buffer

    def gate(self, function: Function, value: Callable[[Expr], Expr]) -> Buffer:
        """A function of limited values."""
        clip = self.layer.clip
        if clip is None:
            return self.function(function, value)
        low, high = (tirx.const(c, self.layer.dtype) for c in (-clip, clip))
        return self.function(function, lambda i: tirx.Min(tirx.Max(value(i), low), high))

    def function(self, function: Function, value: Callable[[Expr], Expr]) -> Buffer:
        x = self.let(value)
        if function.name == "Sigmoid":  # the general function is exact for subnormal results too
            power = self.let(lambda i: tirx.exp(-x[i]))
            return self.let(lambda i: self.one() / (self.one() + power[i]))
        if function.name == "Softplus":
            small = self.let(lambda i: tirx.exp(-tirx.abs(x[i])))
            zero = tirx.const(0, self.layer.dtype)
            return self.let(lambda i: tirx.Max(x[i], zero) + tirx.log(self.one() + small[i]))
        return self.let(lambda i: _apply(function, x[i]))


Finish = Callable[[_Units, Sequence[Function]], None]


def _lstm(units: _Units, functions: Sequence[Function]) -> None:
    f, g, h = functions
    layer = units.layer
    cell = units.let(partial(units.held, 1))

    def gate(number: int, which: int, state: Buffer) -> Callable[[Expr], Expr]:
        if not layer.peepholes:
            return partial(units.added, number)
        return lambda i: units.added(number, i) + units.peephole(which, i) * state[i]

    opened = units.gate(f, gate(0, 0, cell))
    kept = (
        units.let(lambda i: units.one() - opened[i]) if layer.coupled else units.gate(f, gate(2, 2, cell))
    )
    candidate = units.gate(g, partial(units.added, 3))
    fresh = units.let(lambda i: kept[i] * cell[i] + opened[i] * candidate[i])
    out = units.gate(f, gate(1, 1, fresh))
    shown = units.function(h, lambda i: fresh[i])
    units.hold(1, fresh)
    units.show(units.let(lambda i: out[i] * shown[i]))


def _rnn(units: _Units, functions: Sequence[Function]) -> None:
    units.show(units.gate(functions[0], partial(units.added, 0)))


def _mixed(units: _Units, update: Buffer, candidate: Buffer) -> Buffer:
    return units.let(lambda i: (units.one() - update[i]) * candidate[i] + update[i] * units.held(0, i))


def _gru(units: _Units, functions: Sequence[Function]) -> None:
    """All gates, if the reset gate applies to the product."""
    f, g = functions
    update, reset = (units.gate(f, partial(units.added, n)) for n in (0, 1))
    candidate = units.gate(
        g, lambda i: units.projected(2, i) + reset[i] * (units.summed(2, i) + units.inner(i))
    )
    units.show(_mixed(units, update, candidate))


def _gru_reset(units: _Units, functions: Sequence[Function]) -> None:
    """Otherwise the reset state comes first, for a product of its own."""
    reset = units.gate(functions[0], partial(units.added, 1))
    units.hold(1, units.let(lambda i: reset[i] * units.held(0, i)))


def _gru_rest(units: _Units, functions: Sequence[Function]) -> None:
    f, g = functions
    update, candidate = units.gate(f, partial(units.added, 0)), units.gate(g, partial(units.added, 2))
    units.show(_mixed(units, update, candidate))


# What follows each product of a step.
_GATES: Mapping[tuple[str, bool], tuple[Finish, ...]] = {
    ("LSTM", False): (_lstm,),
    ("RNN", False): (_rnn,),
    ("GRU", True): (_gru,),
    ("GRU", False): (_gru_reset, _gru_rest),
}


def _apply(function: Function, x: Expr) -> Expr:
    """A function that needs no other's result."""
    name, alpha, beta = function.name, *(tirx.const(v, x.ty.dtype) for v in (function.alpha, function.beta))
    zero, one = (tirx.const(v, x.ty.dtype) for v in (0, 1))
    match name:
        case "Tanh":
            return tirx.tanh(x)
        case "Relu":
            return tirx.Max(x, zero)
        case "Softsign":
            return x / (one + tirx.abs(x))
        case "LeakyRelu":
            return tirx.Select(x < zero, alpha * x, x)
        case "ThresholdedRelu":
            return tirx.Select(x > alpha, x, zero)
        case "HardSigmoid":
            return tirx.Min(tirx.Max(alpha * x + beta, zero), one)
        case "Elu":
            return tirx.Select(x < zero, alpha * (tirx.exp(x) - one), x)
        case "ScaledTanh":
            return alpha * tirx.tanh(beta * x)
        case "Affine":
            return alpha * x + beta
    raise ValueError(name)


def _extreme(kind: type, end: Buffer, state: Callable[[Expr], Expr], at: Expr, i: Expr) -> Expr:
    return kind(end[i], state(at + i))


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``."""
    return max(n for n in range(1, min(number, most) + 1) if number % n == 0)
