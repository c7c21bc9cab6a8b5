"""Recurrent layers (LSTM, GRU, RNN) as one kernel with a loop over the steps inside.

The inputs' products are computed before, for all steps at once. A step multiplies the state by the
recurrent weights, tile by tile: a *tile* is a few hidden units, of several gates, whose sums are in
registers. The sums of a tile are computed in *parts* of 24 at most, and the weights are packed as
``[direction][tile][part][state][sum]``, so that a step reads them in their order in memory. Gate orders and
equations are those of ONNX's operator documentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - as TVM writes it

from wasmgraph.compiler.operators.packing import OPAQUE

# The attribute of a kernel that says which layer it computes.
LAYER = "wasmgraph_recurrent"

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Six vectors of SIMD128: Cranelift loads all weights of a turn before it multiplies the first, so that as
# many registers hold weights as hold sums. Eight and eight do not fit.
_PART = 24
_UNITS = {1: 24, 2: 12, 3: 8, 4: 12}  # of a full tile, by its number of gates
_LEAST_UNITS = 4

Expr = Any
Buffer = Any


class Function(NamedTuple):
    """An activation function, with the parameters that ONNX calls alpha and beta."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class Product:
    """A product of a state by the weights of some gates, ``units`` hidden units of each in a tile."""

    gates: int
    units: int
    tiles: int

    @property
    def sums(self) -> int:
        """The number of sums in a tile."""
        return self.gates * self.units

    @property
    def part(self) -> int:
        """The number of sums in a part."""
        return _divisor(self.sums, _PART)

    @property
    def parts(self) -> int:
        """The number of parts in a tile."""
        return self.sums // self.part

    @property
    def columns(self) -> int:
        """The number of sums of all tiles; the last tile is padded."""
        return self.tiles * self.sums


@dataclass(frozen=True)
class Layer:
    """What a recurrent layer computes.

    Attributes
    ----------
    backwards : the only direction begins at the last step; a second direction always does
    functions : activation functions of each direction
    lengths : sequences have lengths of their own, which are an input
    coupled : the forget gate is one minus the input gate (``input_forget``)
    reset_after : the reset gate is applied to the product, not to the state (``linear_before_reset``)
    """

    kind: str
    steps: int
    batch: int
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

    @property
    def products(self) -> tuple[Product, ...]:
        """The products of one step, in the order of their gates. Without ``reset_after``, a GRU's last gate
        depends on the others."""
        gates = (2, 1) if self.kind == "GRU" and not self.reset_after else (GATES[self.kind],)
        return tuple(self._product(n) for n in gates)

    def _product(self, gates: int) -> Product:
        units = _UNITS[gates]
        while units % 2 == 0 and units > _LEAST_UNITS and units >= 2 * self.hidden:
            units //= 2
        return Product(gates, units, -(-self.hidden // units))

    @property
    def columns(self) -> int:
        """The number of columns of the inputs' products, for one direction."""
        return sum(product.columns for product in self.products)

    @property
    def padded(self) -> int:
        """The number of hidden units with padding."""
        return max(product.units * product.tiles for product in self.products)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products."""
        products = GATES[self.kind] * self.hidden * self.hidden
        return 2 * self.steps * self.batch * self.directions * products


def layer_of(kernel: tirx.PrimFunc) -> Layer | None:
    """The layer that a kernel computes; None if it is another kernel."""
    text = kernel.attrs.get(LAYER) if kernel.attrs else None
    if text is None:
        return None
    data = json.loads(str(text))
    data["functions"] = tuple(tuple(Function(*f) for f in one) for one in data["functions"])
    return Layer(**data)


def recurrent_kernel(
    layer: Layer,
    sums: int = 1,
    lanes: int = 1,
    exact: bool = False,
    marks: Mapping[str, int] | None = None,
) -> tirx.PrimFunc:
    """The kernel of a layer.

    Its inputs are: the inputs' products with biases ``[steps][batch][direction][columns]``, whose columns
    are ordered as those of the packed weights; packed weights of each product; for a GRU with
    ``reset_after`` the bias of the last gate's product ``[direction][padded]``; peepholes
    ``[direction][3][padded]``; lengths ``[batch]``; initial states ``[direction][batch][hidden]``. Its
    outputs are every step's hidden state ``[steps][direction][batch][hidden]`` and the last states.

    Parameters
    ----------
    sums : the number of sums that are computed at a time
    lanes : elements of a vector
    exact : no vector in the code is longer
    marks : annotations of the loop over directions
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(layer.kind.lower())
        T.func_attr({LAYER: json.dumps(asdict(layer)), "op_pattern": OPAQUE})
        _Kernel(layer, sums, lanes, exact).emit(marks or {})
    return builder.get()


class _Kernel:
    """A kernel under construction. ``held`` has, for each direction and row of the batch: the state, the
    next state, the cell or the update gate, the state times the reset gate."""

    def __init__(self, layer: Layer, sums: int, lanes: int, exact: bool) -> None:
        self.layer, self.sums, self.lanes, self.exact = layer, sums, lanes, exact
        a, d, products = layer, layer.directions, layer.products

        def arg(name: str, *shape: int, dtype: str = a.dtype) -> Buffer:
            return T.arg(name, T.Buffer(shape, dtype))

        self.projected = arg("projected", a.steps, a.batch, d, a.columns)
        self.weights = [
            arg(f"weights{i}", d, p.tiles, p.parts, a.hidden, p.part) for i, p in enumerate(products)
        ]
        self.inner: Buffer = arg("inner", d, a.padded) if a.kind == "GRU" and a.reset_after else None
        self.peepholes: Buffer = arg("peepholes", d, 3, a.padded) if a.peepholes else None
        self.lengths = arg("lengths", a.batch, dtype="int32") if a.lengths else None
        states = 2 if a.kind == "LSTM" else 1
        self.initial = [arg(f"initial{i}", d, a.batch, a.hidden) for i in range(states)]
        self.sequence = arg("sequence", a.steps, d, a.batch, a.hidden)
        self.last = [arg(f"last{i}", d, a.batch, a.hidden) for i in range(states)]
        self.held = T.alloc_buffer((4, d, a.batch, a.padded), a.dtype)
        self.t: Expr = 0
        self.d: Expr = 0

    def emit(self, marks: Mapping[str, int]) -> None:
        """The loops: over states to begin with, directions, steps, and states to end with."""
        layer = self.layer
        for n, initial in enumerate(self.initial):
            with T.grid(layer.directions, layer.batch, layer.hidden) as (d, b, j):
                T.buffer_store(self.held, initial[d, b, j], [2 * n, d, b, j])
        with T.serial(layer.directions, annotations=dict(marks)) as d, T.serial(layer.steps) as s:
            back = layer.steps - 1 - s
            self.d, self.t = d, back if layer.backwards else s
            if layer.directions == 2:
                self.t = s + d * (back - s)
            self.step()
        for n, last in enumerate(self.last):
            with T.grid(layer.directions, layer.batch, layer.hidden) as (d, b, j):
                T.buffer_store(last, self.held[2 * n, d, b, j], [d, b, j])

    def step(self) -> None:
        if self.layer.kind == "LSTM":
            self.product(0, 0, _lstm)
        elif self.layer.kind == "RNN":
            self.product(0, 0, _rnn)
        elif self.layer.reset_after:
            self.product(0, 0, _gru)
        else:
            self.product(0, 0, _gru_gates)
            self.product(1, 3, _gru_candidate)
        with T.serial(self.layer.batch) as b:
            if self.lengths is None:
                self.pass_on(b)
                return
            with T.If(self.t < self.lengths[b]):
                with T.Then():
                    self.pass_on(b)
                with T.Else(), T.serial(self.layer.hidden) as j:
                    T.buffer_store(self.sequence, tirx.const(0, self.layer.dtype), [self.t, self.d, b, j])

    def pass_on(self, b: Expr) -> None:
        """The next state becomes the state, and the step's output."""
        with T.serial(self.layer.hidden) as j:
            T.buffer_store(self.held, self.held[1, self.d, b, j], [0, self.d, b, j])
        with T.serial(self.layer.hidden) as j:
            T.buffer_store(self.sequence, self.held[1, self.d, b, j], [self.t, self.d, b, j])

    @contextmanager
    def rows(self) -> Iterator[Expr]:
        """A loop over the rows of the batch whose sequence has this step."""
        with T.serial(self.layer.batch) as b:
            if self.lengths is None:
                yield b
            else:
                with T.If(self.t < self.lengths[b]), T.Then():
                    yield b

    @contextmanager
    def vectors(self, count: int) -> Iterator[Expr]:
        """``count`` numbers as vectors: their index."""
        width = count & -count  # LLVM pads vectors whose length is no power of two
        if self.lanes == 1 or self.exact:
            width = min(width, self.lanes)
        if width == count:
            with T.vectorized(count) as lane:
                yield lane
        elif width == 1:
            with T.unroll(count) as n:
                yield n
        else:
            with T.unroll(count // width) as n, T.vectorized(width) as lane:
                yield n * width + lane

    def product(self, which: int, source: int, finish: Finish) -> None:
        """Multiply the held rows ``source`` by weights, and compute gates from the sums of each tile."""
        layer, p, weights = self.layer, self.layer.products[which], self.weights[which]
        part = _divisor(p.part, self.sums)
        together = _divisor(p.tiles, self.sums // p.sums)
        before = sum(other.columns for other in layer.products[:which])
        d, zero = self.d, tirx.const(0, layer.dtype)
        with T.serial(p.tiles // together) as group, self.rows() as b:
            acc = T.alloc_buffer((together, p.sums), layer.dtype)
            with T.serial(p.sums // part) as at:
                local = T.alloc_buffer((together, part), layer.dtype)
                with T.unroll(together) as n, self.vectors(part) as i:
                    T.buffer_store(local, zero, [n, i])

                def term(n: Expr, k: Expr, i: Expr) -> Expr:
                    tile, column = group * together + n, at * part + i
                    weight = weights[d, tile, column // p.part, k, column % p.part]
                    return self.held[source, d, b, k] * weight

                with T.serial(layer.hidden) as k, T.unroll(together) as n, self.vectors(part) as i:
                    T.buffer_store(local, local[n, i] + term(n, k, i), [n, i])
                with T.unroll(together) as n, self.vectors(part) as i:
                    T.buffer_store(acc, local[n, i], [n, at * part + i])
            widths = (2 * self.lanes, self.lanes, 4) if self.lanes > 1 else ()
            width = next((w for w in widths if p.units % w == 0), 1)
            with T.serial(together) as n, T.serial(p.units // width) as chunk:
                tile, first = group * together + n, chunk * width

                def summed(gate: int, i: Expr) -> Expr:
                    return acc[n, gate * p.units + first + i]

                def projected(gate: int, i: Expr) -> Expr:
                    column = before + tile * p.sums + gate * p.units + first + i
                    return self.projected[self.t, b, d, column]

                units = _Units(self, b, tile * p.units + first, width, summed, projected)
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
    """Some hidden units of one row: ``width`` of them from ``first``.

    A gate's values are read by its number and the position of a unit: ``summed``, its product with the
    state; ``projected``, that with the input.
    """

    kernel: _Kernel
    b: Expr
    first: Expr
    width: int
    summed: Callable[[int, Expr], Expr]
    projected: Callable[[int, Expr], Expr]

    @property
    def layer(self) -> Layer:
        return self.kernel.layer

    def one(self) -> Expr:
        return tirx.const(1, self.layer.dtype)

    def added(self, gate: int, i: Expr) -> Expr:
        """A gate before its function."""
        return self.projected(gate, i) + self.summed(gate, i)

    def peephole(self, which: int, i: Expr) -> Expr:
        return self.kernel.peepholes[self.kernel.d, which, self.first + i]

    def inner(self, i: Expr) -> Expr:
        return self.kernel.inner[self.kernel.d, self.first + i]

    def held(self, which: int, i: Expr) -> Expr:
        return self.kernel.held[which, self.kernel.d, self.b, self.first + i]

    def hold(self, which: int, value: Callable[[Expr], Expr]) -> None:
        with self.kernel.vectors(self.width) as i:
            T.buffer_store(self.kernel.held, value(i), [which, self.kernel.d, self.b, self.first + i])

    def let(self, value: Callable[[Expr], Expr]) -> Buffer:
        """Values in registers. Functions take only such values: a function whose argument contains another
        would be a call (``lower/elementary.py``)."""
        buffer = T.alloc_buffer((self.width,), self.layer.dtype)
        with self.kernel.vectors(self.width) as i:
            T.buffer_store(buffer, value(i), [i])
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
        if function.name == "Softplus":
            small = self.let(lambda i: tirx.exp(-tirx.abs(x[i])))
            return self.let(
                lambda i: tirx.Max(x[i], tirx.const(0, self.layer.dtype)) + tirx.log(self.one() + small[i])
            )
        return self.let(lambda i: _apply(function, x[i]))


Finish = Callable[[_Units, Sequence[Function]], None]


def _lstm(units: _Units, functions: Sequence[Function]) -> None:
    f, g, h = functions
    layer = units.layer
    cell = units.let(lambda i: units.held(2, i))

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
    units.hold(2, lambda i: fresh[i])
    units.hold(1, lambda i: out[i] * shown[i])


def _rnn(units: _Units, functions: Sequence[Function]) -> None:
    new = units.gate(functions[0], partial(units.added, 0))
    units.hold(1, lambda i: new[i])


def _gru(units: _Units, functions: Sequence[Function]) -> None:
    """All gates, if the reset gate applies to the product."""
    f, g = functions
    update, reset = (units.gate(f, partial(units.added, n)) for n in (0, 1))
    candidate = units.gate(
        g, lambda i: units.projected(2, i) + reset[i] * (units.summed(2, i) + units.inner(i))
    )
    units.hold(1, lambda i: (units.one() - update[i]) * candidate[i] + update[i] * units.held(0, i))


def _gru_gates(units: _Units, functions: Sequence[Function]) -> None:
    update, reset = (units.gate(functions[0], partial(units.added, n)) for n in (0, 1))
    units.hold(2, lambda i: update[i])
    units.hold(3, lambda i: reset[i] * units.held(0, i))


def _gru_candidate(units: _Units, functions: Sequence[Function]) -> None:
    candidate = units.gate(functions[1], partial(units.added, 0))
    update = units.let(lambda i: units.held(2, i))
    units.hold(1, lambda i: (units.one() - update[i]) * candidate[i] + update[i] * units.held(0, i))


def _apply(function: Function, x: Expr) -> Expr:
    """A function that needs no other's result."""
    name, alpha, beta = function.name, *(tirx.const(v, x.ty.dtype) for v in (function.alpha, function.beta))
    zero, one = (tirx.const(v, x.ty.dtype) for v in (0, 1))
    match name:
        case "Sigmoid":
            return tirx.sigmoid(x)
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


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``; at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and (n <= most or n == 1))
