"""Stage 5: ``main`` becomes a static list of kernel calls over one arena.

Every tensor that is not a constant has a fixed place in the arena; tensors whose lifetimes do
not overlap share bytes. Inputs keep their place for the whole run, so a run can be repeated;
outputs keep theirs from the step that writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst, GlobalVar, Op, PrimType

from wasmgraph.abi import ALIGNMENT
from wasmgraph.compiler.constants import array_of, let_go
from wasmgraph.compiler.loops import ROWS, Loop, mark_of
from wasmgraph.compiler.order import counted, in_order
from wasmgraph.compiler.sizes import READS_PAST, dtype_bytes, is_tensor, shape_of, size_of, sizes
from wasmgraph.dims import (
    Dim,
    Expression,
    Size,
    bounds,
    names,
    operation,
    product,
    replaced,
    same,
    to_json,
)
from wasmgraph.errors import CompileError, ModelError, UnsupportedOperatorError
from wasmgraph.tensors import Array

SET = "set"  # takes over a dimension's value that a kernel has computed
COPY = "copy"  # for an output that is also an input, a constant, or another output


class Kernels(Protocol):
    """What compiled kernels take: ``lower/codegen.py``."""

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]: ...  # noqa: D102
    @property
    def workspaces(self) -> Mapping[str, tuple[Size, ...]]: ...  # noqa: D102


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
    """One step: a kernel's name and its arguments: values of its dimensions, inputs (addresses and
    scalars), outputs, workspaces.

    ``traffic_bytes`` is the size of inputs and outputs. The kernel :data:`COPY` has no symbol: it
    copies ``copied_bytes`` from its first address to its second. ``values`` are the sizes that the kernel's
    variables stand for.
    """

    kernel: str
    arguments: tuple[Argument, ...]
    traffic_bytes: Size
    copied_bytes: Size = 0
    values: Mapping[str, Size] = field(default_factory=dict)


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
    limit: Size


@dataclass(frozen=True)
class Repeat:
    """Calls from ``first`` up to ``end``, which is excluded, that are made at most ``turns`` times (None:
    no limit), for as long as the byte at ``condition`` in the arena, if there is one, is not 0."""

    first: int
    end: int
    turns: Size | None
    condition: int | None


@dataclass(frozen=True)
class Plan:
    """The whole run. ``inputs`` and ``outputs`` are arena offsets, in ``main``'s order; of what ``main``
    returns the last are ``checks``. The values of ``dims``, int32 each, are at the offset ``dims_at``."""

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arena_bytes: int
    parameters: tuple[Parameter, ...]
    param_bytes: int
    checks: tuple[Check, ...] = ()
    repeats: tuple[Repeat, ...] = ()  # inner ones before those around them
    computed: tuple[str, ...] = ()  # of dims, those that calls of SET write
    dims: tuple[Dim, ...] = ()
    dims_at: int = 0

    def turns(self, call: int) -> Size:
        """How often a call is done in a run; a loop that data may end counts as one turn."""
        around = [r for r in self.repeats if r.first <= call < r.end and r.condition is None]
        return product(1 if r.turns is None else r.turns for r in around)

    def to_json(self) -> str:
        """The plan as ``graph.json`` shows it."""
        return json.dumps(_plain(self), indent=1)


def _plain(value: Any) -> Any:
    """A record as JSON holds it."""
    if isinstance(value, Expression):
        return to_json(value)
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


@dataclass
class _Buffer:
    """A piece of the arena, live from step ``first`` to step ``last`` (both included). ``used`` are the
    bytes of a run, ``nbytes`` the most that they can be."""

    nbytes: int
    first: int
    last: int
    used: Size = 0
    offset: int = -1


_Place = _Buffer | int  # a buffer of the arena, or an offset in the parameters
_Operand = _Place | Scalar


class _Step(NamedTuple):
    kernel: str
    operands: list[_Operand]
    traffic_bytes: Size
    values: Mapping[str, Size]


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
    mod: tvm.IRModule
    kernels: Kernels
    dims: Mapping[str, Dim]
    rowwise: Collection[str] = ()  # kernels that write one row in each turn
    open: list[_OpenLoop] = field(default_factory=list)
    repeats: list[tuple[_OpenLoop, int]] = field(default_factory=list)  # each with its end
    places: dict[relax.Var, list[_Place]] = field(default_factory=dict)
    buffers: list[_Buffer] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    constant_bytes: dict[int, int] = field(default_factory=dict)
    unplanned: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    blob: list[Array] = field(default_factory=list)
    param_bytes: int = 0
    # The names of dimensions whose values kernels compute, by the result of a call and its number; equal
    # calls are one.
    counts: dict[tuple[relax.Var, int], list[str]] = field(default_factory=dict)
    past: int = 0  # bytes that kernels may read past the end of a tensor
    constants: dict[bytes, int] = field(default_factory=dict)

    def new(self, ty: relax.TensorType, first: int) -> _Buffer:
        used = operation("*", product(shape_of(ty)), dtype_bytes(str(ty.dtype)))
        buffer = _Buffer(bounds(used, self.dims)[1], first, first, used)
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

    def step(
        self,
        kernel: str,
        operands: Sequence[_Operand],
        results: list[_Buffer],
        values: Mapping[str, Size] | None = None,
    ) -> None:
        now = len(self.steps)
        values = values or {}
        taken = [replaced(used, values) for used in self.kernels.workspaces.get(kernel, ())]
        work = [_Buffer(bounds(used, self.dims)[1], now, now, used) for used in taken]
        self.buffers.extend(work)
        for place in [*operands, *results]:
            if isinstance(place, _Buffer):
                place.last = max(place.last, now)
        traffic: Size = 0
        for place in [*operands, *results]:
            if not isinstance(place, Scalar):
                some = place.used if isinstance(place, _Buffer) else self.constant_bytes[place]
                traffic = operation("+", traffic, some)
        dims = [Scalar(values[name]) for name in self.kernels.dims.get(kernel, ())]
        self.steps.append(_Step(kernel, [*dims, *operands, *results, *work], traffic, values))

    def note_past(self, kernel: tirx.PrimFunc, arguments: Sequence[relax.Expr]) -> None:
        """Note how far a kernel may read past the end of a tensor."""
        mark = str(kernel.attrs.get(READS_PAST, "")) if kernel.attrs else ""
        if not mark:
            return
        for ty in [a.ty for a in arguments if isinstance(a.ty, relax.TensorType)]:
            past = 0
            for each in mark.split(","):
                count, axis = map(int, each.split())
                past += count * bounds(product(shape_of(ty)[axis + 1 :]), self.dims)[1]
            self.past = max(self.past, past * dtype_bytes(str(ty.dtype)))

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
                kernel = value.args[0].name_hint
                values = _values(self.mod[value.args[0]], [*value.args[1].fields, *fields], self.dims)
                self.step(kernel, self.operands(value.args[1]), results, values)
                self.note_past(self.mod[value.args[0]], value.args[1].fields)
                self.places[var] = list(results)
                for number, place in enumerate(results):
                    for dim in self.counts.get((var, number), ()):  # later calls take its value
                        self.step(SET, [place], [], {dim: 0})
                return
            if name == "relax.reshape":
                self.places[var] = self.place(value.args[0])
                return
            self.unplanned.append(name.removeprefix("relax."))
            return
        self.places[var] = self.place(value)


def _values(
    kernel: tirx.PrimFunc, arguments: Sequence[relax.Expr | relax.TensorType], dims: Collection[str]
) -> dict[str, Size]:
    """The sizes that a kernel's variables stand for in a call of it.

    Raises
    ------
    CompileError
        The shapes of the arguments are not those of the kernel's parameters.
    """
    found: dict[str, Size] = {}
    shapes: list[tuple[Size, Size]] = []  # as the kernel writes a size, and as main does
    for parameter, argument in zip(kernel.params, arguments, strict=True):
        if is_tensor(parameter):
            ty = argument if isinstance(argument, tvm.ir.Type) else argument.ty
            shapes += zip(sizes(parameter.shape), shape_of(ty), strict=True)
        else:
            found[parameter.name] = size_of(argument)
    for own, size in shapes:
        if isinstance(own, Expression) and own.operator is None:
            found.setdefault(own.operands[0], size)
    unknown = frozenset().union(*(names(own) for own, _ in shapes)) - found.keys()
    found |= {name: Expression.of(name) for name in unknown & frozenset(dims)}
    for own, size in shapes:
        if not same(replaced(own, found), size):
            raise CompileError(f"a kernel takes {own} elements where {size} are given")
    return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _room(buffer: _Buffer) -> int:
    """The bytes that a buffer keeps from others. Bounds are often such that tensors are whole pages. They
    would all begin at the same place of a page, and a load would wait for a store to another tensor at the
    same place: a product took 14 % longer. So open ones are a line apart."""
    return _aligned(buffer.nbytes) + (0 if isinstance(buffer.used, int) else ALIGNMENT)


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
            if at + _room(buffer) <= rival.offset:
                break
            at = max(at, rival.offset + _room(rival))
        buffer.offset = at
        placed.append(buffer)
    return max((b.offset + _aligned(b.nbytes) for b in placed), default=0)


def _too_large(buffers: Sequence[_Buffer], dims: Sequence[Dim], arena_bytes: int, room: int) -> ModelError:
    """The error for bounds under which the arena does not fit: its largest tensor, and a bound that would
    fit."""
    largest = max(buffers, key=lambda b: b.nbytes)
    open_names = names(largest.used) or {dim.name for dim in dims}
    dim = max((d for d in dims if d.name in open_names), key=lambda d: d.most)

    def fits(most: int) -> bool:
        tried = {d.name: Dim(d.name, d.least, most) if d is dim else d for d in dims}
        return _pack([replace(b, nbytes=bounds(b.used, tried)[1]) for b in buffers]) <= room

    low, high = dim.least, dim.most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    remedy = (
        f"with {dim.name} of at most {low:,} they fit" if fits(low) else "no bound of it is small enough"
    )
    return ModelError(
        f"the tensors take {arena_bytes:,} bytes at {', '.join(map(str, dims))}, where a"
        f" WebAssembly module has room for {max(0, room):,}. The largest is {largest.nbytes:,} bytes,"
        f" {largest.used} of them: {remedy}."
    )


def _walk(builder: _Builder, main: relax.Function) -> list[_Buffer]:
    tensors = [param for param in main.params if isinstance(param.ty, relax.TensorType)]
    inputs = [builder.new(param.ty, 0) for param in tensors]
    for param, buffer in zip(tensors, inputs, strict=True):
        builder.places[param] = [buffer]
    for binding in in_order(main, builder.counts):
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


def _copied_bytes(kernel: str, places: Sequence[_Operand]) -> Size:
    destination = places[-1]
    return destination.used if kernel == COPY and isinstance(destination, _Buffer) else 0


def make_plan(
    mod: tvm.IRModule,
    kernels: Kernels,
    limits: Sequence[Size] = (),
    dims: Sequence[Dim] = (),
    room: int | None = None,
    counts: Sequence[str] = (),
) -> tuple[Plan, list[Array]]:
    """Plan ``mod["main"]``.

    Parameters
    ----------
    kernels : what each kernel takes beside inputs and outputs
    limits : of the checks, the last tensors that ``main`` returns
    dims : bounds of the dimensions that shapes depend on; the arena holds tensors of the largest sizes
    counts : of the dimensions, those whose values are computed, and the very last tensors that ``main``
        returns
    room : the most bytes that arena and parameters may take

    Returns
    -------
    The plan, and the constants in the order of ``plan.parameters``.
    """
    rowwise = {g.name_hint for g, f in mod.functions.items() if f.attrs and f.attrs.get(ROWS)}
    builder = _Builder(mod, kernels, {dim.name: dim for dim in dims}, rowwise)
    main = mod["main"]
    values = _Buffer(4 * len(dims), 0, 0)
    builder.buffers += [values] if dims else []
    if counts:
        builder.counts = counted(main, counts)
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
    for buffer in [*inputs, *outputs, values]:
        buffer.last = end
    arena_bytes = _pack(builder.buffers) + _aligned(builder.past)
    if dims and room is not None and arena_bytes + builder.param_bytes > room:
        raise _too_large(builder.buffers, dims, arena_bytes, room - builder.param_bytes)
    outputs = outputs[: len(outputs) - len(counts)]
    first_check = len(outputs) - len(limits)

    def address(place: _Operand) -> Argument:
        if isinstance(place, Scalar):
            return place
        if isinstance(place, int):
            return Address("params", place)
        return Address("arena", place.offset)

    calls = tuple(
        Call(kernel, tuple(map(address, places)), traffic, _copied_bytes(kernel, places), values)
        for kernel, places, traffic, values in builder.steps
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
        tuple(counts),
        tuple(dims),
        max(0, values.offset),
    )
    return plan, builder.blob
