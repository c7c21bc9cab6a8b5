"""Loops whose body is converted once. The body must return a state with the same shapes and
dtypes in every turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - as TVM writes it

from wasmgraph.compiler.importing.frontend.graph import Operator, Walk
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    expression,
    has_no_elements,
    is_known,
    scalar,
    shape_of,
    size_array,
)
from wasmgraph.compiler.loops import ROWS, Loop
from wasmgraph.compiler.operators.packing import OPAQUE
from wasmgraph.compiler.sizes import number, own_variables
from wasmgraph.compiler.tvm_private import end_blocks
from wasmgraph.dims import Size, most, names, operation, product, same
from wasmgraph.errors import UnboundDimensionError, WasmgraphError

# A loop of fewer turns is unrolled: its constants fold, and its turns share kernels anyway.
FEW_TURNS = 5
_MOST_ELEMENTS = 1 << 32  # of all rows together: no memory has room for more
_COUNTERS = (("number", "int64"), ("condition", "bool"))


@dataclass(frozen=True)
class Turn:
    """What a body makes of a state: whether there is another turn, the next state, a row of each tensor of
    rows."""

    again: Value
    state: list[Value]
    rows: list[Value]


# From the number of the turn (int64, a scalar), the condition under which it began (a scalar), the state,
# and tensors from outside.
Body = Callable[[Value, Value, list[Value], list[Value]], Turn]


@dataclass(frozen=True)
class Start:
    """How a loop begins.

    Attributes
    ----------
    state : initial values
    turns : the most turns that there are; None: only conditions end the loop
    first : whether there is a first turn: a known True, or a tensor
    again : from the number of turns done, a condition beside the body's own; None if there is none
    outside : computed tensors that the body reads, the same in every turn
    also : other computed tensors that the body may be the first to use: they must be computed before it,
        because what follows a loop without turns may use them too
    """

    state: Sequence[Value]
    turns: Size | None
    first: Value
    again: Callable[[Value], Value] | None = None
    outside: Sequence[Value] = ()
    also: Sequence[Value] = ()


@dataclass(frozen=True)
class _Probe:
    """What a trial conversion found: whether data may end the loop, and how many checks of indices its body
    makes."""

    conditional: bool
    checks: int


def repeat(op: Operator, body: Body, start: Start) -> tuple[list[Value], list[Value]] | None:
    """Convert ``body`` as a loop.

    Returns
    -------
    The final state, and the tensors of rows; None if the body cannot be a loop.
    """
    if any(map(_is_no_state, start.state)):
        return None
    if (probe := _probe(op, body, start)) is None:
        return None
    walk = op.walk
    # The state: whether there is another turn, the number of turns done, the worst index of each check so
    # far, the body's own.
    before = len(walk.checks)
    codes: list[Value] = [np.zeros(1, np.int64)] * probe.checks
    conditions = [_truth(op, start.first)] if probe.conditional else []
    state = [*conditions, np.array(0, np.int64), *codes, *start.state]
    loop = Loop(walk.next_loop(), start.turns, probe.conditional, len(state))
    also = [value for value in (*start.also, walk.condition) if not is_known(value)]
    begun = _mark(walk, loop.begin, [*state, *start.outside, *also])
    fixed = len(conditions) + 1
    done, codes = begun[fixed - 1], begun[fixed : fixed + probe.checks]
    own, outside = begun[fixed + probe.checks : loop.states], begun[loop.states :]
    turn = body(done, begun[0] if probe.conditional else np.array(True), own, outside)
    following = op("Add", done, np.array(1, np.int64))
    if probe.conditional:
        conditions = [_truth(op, turn.again)]
        if start.again is not None:
            conditions = [op("And", conditions[0], start.again(following))]
    codes = [op("Max", code, new) for code, (_, new) in zip(codes, walk.checks[before:], strict=True)]
    rows = [_write_row(walk, row, done, start.turns) for row in turn.rows]
    ended = _mark(walk, loop.end, [*conditions, following, *codes, *turn.state, *rows])
    for place in range(probe.checks):
        walk.checks[before + place] = (walk.checks[before + place][0], ended[fixed + place])
    first_row = len(ended) - len(rows)
    shaped = [
        op("Reshape", tensor, size_array([start.turns, *shape_of(row)]))
        for tensor, row in zip(ended[first_row:], turn.rows, strict=True)
    ]
    if probe.conditional and shaped:
        (made,) = op.said_sizes(ended[fixed - 1], [start.turns])
        shaped = [first_rows(op, tensor, made) for tensor in shaped]
    return ended[fixed + probe.checks : first_row], shaped


def within(turn: Any, turns: Size) -> Any:
    """The number of a turn. Whoever runs single calls in any order may find another number in its place."""
    return tirx.Max(tirx.Min(turn, number(turns - 1, "int64")), tirx.const(0, "int64"))


def first_rows(op: Operator, rows: Value, count: Size) -> relax.Expr:
    """The rows of a tensor that count."""
    rest = shape_of(rows)[1:]
    return op.te(lambda x: te.compute((count, *rest), lambda *i: x(*i), name="kept"), rows)


def _truth(op: Operator, value: Value) -> Value:
    return np.array(True) if value is None else op("Reshape", value, np.array([], np.int64))


def _probe(op: Operator, body: Body, start: Start) -> _Probe | None:
    """Convert the body in a scratch function, which is thrown away."""
    counter, condition = (relax.Var(name, relax.TensorType((), kind)) for name, kind in _COUNTERS)
    state, outside = (
        [relax.Var("given", relax.TensorType(shape_of(v), dtype_of(v))) for v in values]
        for values in (start.state, start.outside)
    )
    conditional = start.turns is None or start.again is not None or not is_known(start.first)
    before = set(op.walk.computed.dims)
    with _scratch(op.walk, [counter, condition, *state, *outside]) as checks:
        try:
            turn = body(counter, condition if conditional else np.array(True), state, outside)
        except UnboundDimensionError:
            raise
        except WasmgraphError:
            return None
        fresh = op.walk.computed.dims.keys() - before
        return _judged(turn, start, condition, conditional, len(op.walk.checks) - checks, fresh)


def _judged(
    turn: Turn, start: Start, condition: Value, conditional: bool, checks: int, fresh: Set[str]
) -> _Probe | None:
    """What a turn, which computes the dimensions ``fresh``, tells of the loop; None if it cannot be one."""
    if any(map(_is_no_state, (*turn.state, *turn.rows))):
        return None
    if any(names(size) & fresh for row in turn.rows for size in shape_of(row)):
        return None  # each turn may write a row of another size
    rows: Size = sum((product(shape_of(row)) for row in turn.rows), 0)
    if start.turns is not None and most(operation("*", start.turns, rows)) > _MOST_ELEMENTS:
        return None
    keeps = len(turn.state) == len(start.state) and all(map(_alike, turn.state, start.state))
    if not keeps or (is_known(turn.again) and not scalar(turn.again, True)):
        return None
    unchanged = is_known(turn.again) or turn.again is condition
    if start.turns is None and start.again is None and unchanged:
        return None  # it would never end
    conditional = conditional or not is_known(turn.again)
    return None if turn.rows and start.turns is None else _Probe(conditional, checks)


def _alike(one: Value, other: Value) -> bool:
    """Whether two tensors have the same dtype and shape, whatever dimensions are."""
    shapes = shape_of(one), shape_of(other)
    return dtype_of(one) == dtype_of(other) and len(shapes[0]) == len(shapes[1]) and all(map(same, *shapes))


@contextmanager
def _scratch(walk: Walk, parameters: list[relax.Var]) -> Iterator[int]:
    outer, checks, loops = walk.builder, len(walk.checks), walk.loops
    computed = walk.computed.mark()
    walk.builder = relax.BlockBuilder()
    try:
        with walk.builder.function("scratch", params=parameters):
            with walk.builder.dataflow():
                yield checks
                value = walk.builder.emit_output(parameters[0])
            walk.builder.emit_func_output(value)
    finally:
        end_blocks(walk.builder)
        walk.builder, walk.loops = outer, loops
        del walk.checks[checks:]
        walk.computed.forget(computed)


def _mark(walk: Walk, name: str, values: Sequence[Value]) -> list[Value]:
    tensors = [expression(value) for value in values]
    types = relax.TupleType([tensor.ty for tensor in tensors])
    whole = walk.builder.emit(relax.op.call_pure_packed(name, *tensors, ty_args=types))
    return [walk.builder.emit(relax.TupleGetItem(whole, i)) for i in range(len(tensors))]


def _is_no_state(value: Value) -> bool:
    return value is None or isinstance(value, list) or has_no_elements(shape_of(value))


def _write_row(walk: Walk, row: Value, turn: Value, turns: Size | None) -> relax.Expr:
    """A flat tensor of all rows, of which a turn writes its own."""
    assert turns is not None
    tensor = expression(row)
    size, dtype = product(shape_of(row)), dtype_of(row)
    flat = walk.builder.emit(relax.op.reshape(tensor, (size,)))
    kernel = _row_kernel(size, turns, dtype)
    gvar = walk.builder.add_func(kernel, "write_row")
    out = relax.TensorType((turns * size,), dtype)
    return walk.builder.emit(relax.call_tir(gvar, relax.Tuple([flat, expression(turn)]), out))


def _row_kernel(size: Size, turns: Size, dtype: str) -> tirx.PrimFunc:
    with own_variables([size, turns]), IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("write_row")
        T.func_attr({"op_pattern": OPAQUE, ROWS: 1, "tirx.noalias": True})
        row = T.arg("row", T.Buffer((size,), dtype))
        turn = T.arg("number", T.Buffer((), "int64"))
        rows = T.arg("rows", T.Buffer((turns * size,), dtype))
        with T.serial(0, size) as i, T.sblock("rows"):
            at = T.axis.spatial(size, i)
            place = within(turn[()], turns) * size + at
            T.reads(row[at], turn[()])
            T.writes(rows[place])
            T.buffer_store(rows, row[at], [place])
    return builder.get()
