"""Stage 5: ``main`` becomes a static list of kernel calls over one arena.

Every tensor that is not a constant has a fixed place in the arena; tensors whose lifetimes do
not overlap share bytes. Inputs keep their place for the whole run, so a run can be repeated;
outputs keep theirs from the step that writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Literal

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst, GlobalVar, Op, PrimType

from wasmgraph.abi import ALIGNMENT
from wasmgraph.compiler.constants import array_of, let_go
from wasmgraph.compiler.loops import ROWS, Loop, mark_of
from wasmgraph.compiler.sizes import dtype_bytes, shape_of, size_of
from wasmgraph.dims import Dim, Size, bounds, operation
from wasmgraph.errors import UnsupportedOperatorError
from wasmgraph.tensors import Array

COPY = "copy"  # for an output that is also an input, a constant, or another output


def symbol_of(function: str) -> str:
    """The name of a kernel, or of a phase of one, in the object file. It must not be ``exp`` or ``erf``:
    other kernels call these functions of the C library.
    """
    return f"kernel_{function}"


@dataclass(frozen=True)
class Address:
    """A byte offset in the arena or in the parameters."""

    space: Literal["arena", "params"]
    offset: int


@dataclass(frozen=True)
class Scalar:
    """A size that a kernel takes as a number, such as how many rows there are."""

    size: Size


Argument = Address | Scalar


@dataclass(frozen=True)
class Call:
    """One step: a kernel's name and its arguments: inputs (addresses and scalars), outputs, workspaces.

    ``traffic_bytes`` is the size of inputs and outputs. The kernel :data:`COPY` has no symbol: it
    copies ``copied_bytes`` from its first address to its second.
    """

    kernel: str
    arguments: tuple[Argument, ...]
    traffic_bytes: int
    copied_bytes: int = 0


@dataclass(frozen=True)
class Parameter:
    """A constant's place in the parameter file, in bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Check:
    """An int64 in the arena that is at most ``limit`` when all calls have run, else an index was out of
    range."""

    offset: int
    limit: int


@dataclass(frozen=True)
class Repeat:
    """Calls from ``first`` up to ``end``, which is excluded, that are made at most ``turns`` times (None:
    no limit), for as long as the byte at ``condition`` in the arena, if there is one, is not 0."""

    first: int
    end: int
    turns: int | None
    condition: int | None


@dataclass(frozen=True)
class Plan:
    """The whole run. ``inputs`` and ``outputs`` are arena offsets, in ``main``'s order; of what ``main``
    returns the last are ``checks``."""

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arena_bytes: int
    parameters: tuple[Parameter, ...]
    param_bytes: int
    checks: tuple[Check, ...] = ()
    repeats: tuple[Repeat, ...] = ()  # inner ones before those around them

    def turns(self, call: int) -> int:
        """How often a call is done in a run; a loop that data may end counts as one turn."""
        around = [r for r in self.repeats if r.first <= call < r.end and r.condition is None]
        return prod(r.turns or 1 for r in around)

    def to_json(self) -> str:
        """The plan as ``graph.json`` shows it."""
        return json.dumps(asdict(self), indent=1)


@dataclass
class _Buffer:
    """A piece of the arena, live from step ``first`` to step ``last`` (both included)."""

    nbytes: int
    first: int
    last: int
    offset: int = -1


_Place = _Buffer | int  # a buffer of the arena, or an offset in the parameters
_Operand = _Place | Scalar


@dataclass
class _OpenLoop:
    """A loop whose end has not come yet: its first step, its state, and the tensors of rows that it
    writes."""

    loop: Loop
    first: int
    state: list[_Buffer]
    rows: list[_Buffer] = field(default_factory=list)


@dataclass
class _Builder:
    workspaces: Mapping[str, tuple[int, ...]]
    dims: Mapping[str, Dim]
    rowwise: Collection[str] = ()  # kernels that write one row in each turn
    open: list[_OpenLoop] = field(default_factory=list)
    repeats: list[tuple[_OpenLoop, int]] = field(default_factory=list)  # each with its end
    places: dict[relax.Var, list[_Place]] = field(default_factory=dict)
    buffers: list[_Buffer] = field(default_factory=list)
    steps: list[tuple[str, list[_Operand], int]] = field(default_factory=list)
    constant_bytes: dict[int, int] = field(default_factory=dict)
    unplanned: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    blob: list[Array] = field(default_factory=list)
    param_bytes: int = 0
    constants: dict[bytes, int] = field(default_factory=dict)

    def new(self, ty: relax.TensorType, first: int) -> _Buffer:
        count: Size = 1
        for size in shape_of(ty):
            count = operation("*", count, size)
        most = bounds(count, self.dims)[1]
        buffer = _Buffer(most * dtype_bytes(str(ty.dtype)), first, first)
        self.buffers.append(buffer)
        return buffer

    def constant(self, const: GenericConst) -> int:
        value = array_of(const)
        head = f"{value.dtype}{value.shape}".encode()
        key = head + hashlib.sha256(np.ascontiguousarray(value).data).digest()
        let_go(value)
        if key not in self.constants:
            self.constants[key] = self.param_bytes
            self.parameters.append(Parameter(self.param_bytes, value.shape, str(value.dtype)))
            self.blob.append(value)
            self.constant_bytes[self.param_bytes] = value.nbytes
            self.param_bytes += _aligned(value.nbytes)
        return self.constants[key]

    def place(self, expr: relax.Expr) -> list[_Place]:
        """Where a tensor, or each field of a tuple, lies."""
        if isinstance(expr, GenericConst):
            return [self.constant(expr)]
        if isinstance(expr, relax.Tuple):
            return [place for item in expr.fields for place in self.place(item)]
        if isinstance(expr, relax.TupleGetItem):
            return [self.place(expr.tuple_value)[expr.index]]
        return self.places[expr]

    def operands(self, arguments: relax.Tuple) -> list[_Operand]:
        """A kernel's arguments: addresses of tensors, and numbers."""
        found: list[_Operand] = []
        for argument in arguments.fields:
            if isinstance(argument.ty, PrimType):
                found.append(Scalar(size_of(argument)))
            else:
                found += self.place(argument)
        return found

    def step(self, kernel: str, operands: Sequence[_Operand], results: list[_Buffer]) -> None:
        now = len(self.steps)
        work = [_Buffer(nbytes, now, now) for nbytes in self.workspaces.get(kernel, ())]
        self.buffers.extend(work)
        for place in [*operands, *results]:
            if isinstance(place, _Buffer):
                place.last = max(place.last, now)
        traffic = sum(
            place.nbytes if isinstance(place, _Buffer) else self.constant_bytes[place]
            for place in [*operands, *results]
            if not isinstance(place, Scalar)
        )
        self.steps.append((kernel, [*operands, *results, *work], traffic))

    def begin(self, loop: Loop, values: Sequence[relax.Expr]) -> list[_Place]:
        """Copy a loop's initial state to its place."""
        state: list[_Buffer] = []
        for value in values[: loop.states]:
            (source,) = self.place(value)
            state.append(self.new(value.ty, len(self.steps)))
            self.step(COPY, [source], [state[-1]])
        self.open.append(_OpenLoop(loop, len(self.steps), state))
        return [*state, *(place for value in values[loop.states :] for place in self.place(value))]

    def end(self, loop: Loop, values: Sequence[relax.Expr]) -> list[_Place]:
        """Copy the next state to the state's place, and extend the lives of all that a later turn needs."""
        ended = self.open.pop()
        assert ended.loop == loop
        places = [place for value in values for place in self.place(value)]
        following, rows = places[: len(ended.state)], places[len(ended.state) :]
        types = [value.ty for value in values[: len(ended.state)]]
        moves = [(s, d, t) for s, d, t in zip(following, ended.state, types, strict=True) if s is not d]
        for number, (source, destination, ty) in enumerate(moves):
            if any(source is state for state in ended.state):  # another copy may overwrite it first
                held = self.new(ty, len(self.steps))
                self.step(COPY, [source], [held])
                moves[number] = held, destination, ty
        for source, destination, _ in moves:
            self.step(COPY, [source], [destination])
        last = len(self.steps) - 1
        for buffer in self.buffers:
            if buffer.first < ended.first <= buffer.last:
                buffer.last = max(buffer.last, last)
        for buffer in (*ended.state, *ended.rows):
            buffer.first, buffer.last = min(buffer.first, ended.first), max(buffer.last, last)
        self.repeats.append((ended, len(self.steps)))
        return [*ended.state, *rows]

    def bind(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Call) and isinstance(value.op, relax.ExternFunc):
            mark = mark_of(value.op.global_symbol)
            assert mark is not None, value.op.global_symbol
            loop, begins = mark
            self.places[var] = (self.begin if begins else self.end)(loop, value.args)
            return
        if isinstance(value, relax.Call) and isinstance(value.op, Op):
            name = value.op.name
            if name == "relax.call_tir" and isinstance(value.args[0], GlobalVar):
                types = value.ty_args[0] if value.ty_args else value.ty
                fields = types.fields if isinstance(types, relax.TupleType) else [types]
                results = [self.new(ty, len(self.steps)) for ty in fields]
                if value.args[0].name_hint in self.rowwise:
                    self.open[-1].rows += results
                self.step(value.args[0].name_hint, self.operands(value.args[1]), results)
                self.places[var] = list(results)
                return
            if name == "relax.reshape":
                self.places[var] = self.place(value.args[0])
                return
            self.unplanned.append(name.removeprefix("relax."))
            return
        self.places[var] = self.place(value)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _pack(buffers: list[_Buffer]) -> int:
    """Give every buffer an offset; largest first, each in the lowest gap that fits.

    Greedy by size (Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference",
    2020). Returns the arena's size in bytes.
    """
    placed: list[_Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.nbytes, b.first)):
        rivals = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        at = 0
        for rival in sorted(rivals, key=lambda b: b.offset):
            if at + _aligned(buffer.nbytes) <= rival.offset:
                break
            at = max(at, rival.offset + _aligned(rival.nbytes))
        buffer.offset = at
        placed.append(buffer)
    return max((b.offset + _aligned(b.nbytes) for b in placed), default=0)


def _walk(builder: _Builder, main: relax.Function) -> list[_Buffer]:
    inputs = [builder.new(param.ty, 0) for param in main.params]
    for param, buffer in zip(main.params, inputs, strict=True):
        builder.places[param] = [buffer]
    for block in main.body.blocks:
        for binding in block.bindings:
            if not builder.unplanned:
                builder.bind(binding.var, binding.value)
            elif isinstance(binding.value, relax.Call) and isinstance(binding.value.op, Op):
                name = binding.value.op.name
                if name not in ("relax.call_tir", "relax.reshape"):
                    builder.unplanned.append(name.removeprefix("relax."))
    if builder.unplanned:
        names = ", ".join(sorted(set(builder.unplanned)))
        raise UnsupportedOperatorError(f"no kernel for: {names}. Export the model without them.")
    return inputs


def _results(builder: _Builder, main: relax.Function) -> tuple[list[relax.TensorType], list[_Place]]:
    ty = main.body.body.ty
    types = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
    return types, builder.place(main.body.body)


def _copied_bytes(kernel: str, places: Sequence[_Operand]) -> int:
    destination = places[-1]
    return destination.nbytes if kernel == COPY and isinstance(destination, _Buffer) else 0


def make_plan(
    mod: tvm.IRModule,
    workspaces: Mapping[str, tuple[int, ...]],
    limits: Sequence[int] = (),
    dims: Mapping[str, Dim] | None = None,
) -> tuple[Plan, list[Array]]:
    """Plan ``mod["main"]``.

    Parameters
    ----------
    workspaces : bytes of each workspace that a kernel takes after its outputs
    limits : of the checks, the last tensors that ``main`` returns
    dims : bounds of the dimensions that shapes depend on; the arena holds tensors of the largest sizes

    Returns
    -------
    The plan, and the constants in the order of ``plan.parameters``.
    """
    rowwise = {g.name_hint for g, f in mod.functions.items() if f.attrs and f.attrs.get(ROWS)}
    builder = _Builder(workspaces, dims or {}, rowwise)
    main = mod["main"]
    inputs = _walk(builder, main)
    outputs: list[_Buffer] = []
    for ty, place in zip(*_results(builder, main), strict=True):
        fresh = isinstance(place, _Buffer) and all(place is not b for b in [*inputs, *outputs])
        if not fresh:
            copied = builder.new(ty, len(builder.steps))
            builder.step(COPY, [place], [copied])
            place = copied
        assert isinstance(place, _Buffer)
        outputs.append(place)
    end = len(builder.steps)
    for buffer in [*inputs, *outputs]:
        buffer.last = end
    arena_bytes = _pack(builder.buffers)
    first_check = len(outputs) - len(limits)

    def address(place: _Operand) -> Argument:
        if isinstance(place, Scalar):
            return place
        if isinstance(place, int):
            return Address("params", place)
        return Address("arena", place.offset)

    calls = tuple(
        Call(kernel, tuple(map(address, places)), traffic, _copied_bytes(kernel, places))
        for kernel, places, traffic in builder.steps
    )
    plan = Plan(
        calls,
        tuple(b.offset for b in inputs),
        tuple(b.offset for b in outputs[:first_check]),
        arena_bytes,
        tuple(builder.parameters),
        builder.param_bytes,
        tuple(Check(b.offset, n) for b, n in zip(outputs[first_check:], limits, strict=True)),
        tuple(
            Repeat(o.first, last, o.loop.turns, o.state[0].offset if o.loop.conditional else None)
            for o, last in builder.repeats
        ),
    )
    return plan, builder.blob
