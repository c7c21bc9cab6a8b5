"""Kernels for several threads. Each loop nest becomes a function of its own, a *phase*. A call of it runs a
range of *turns*, which are iterations of the nest's outermost loops. The threads take ranges of turns until
none is left, and meet at a barrier before the next phase begins (``csrc/pool.c``).

Phases are separate functions because of ``noalias``: LLVM may assume that no other thread writes to a
kernel's buffers while the kernel runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import tirx

from wasmgraph.compiler.schedule.blocks import SHARE
from wasmgraph.compiler.sizes import buffer_bytes, size_of
from wasmgraph.dims import Size, is_one, is_zero, operation, product, same, typical

# Loops are joined until they have this many turns: enough for all threads to finish at about the same time.
_TURNS = 128
# Local arrays larger than this lie in the arena; a stack has 64 KiB.
LOCAL_BYTES = 1024


@dataclass(frozen=True)
class Phase:
    """A phase's symbol, and its number of turns, which may depend on the kernel's dimensions."""

    symbol: str
    turns: Size


@dataclass(frozen=True)
class Divided:
    """A module of phases. For each kernel, its phases, and the sizes in bytes of the arrays that they take
    after the kernel's own parameters."""

    module: tvm.IRModule
    phases: dict[str, tuple[Phase, ...]]
    workspaces: dict[str, tuple[Size, ...]]


def divide(mod: tvm.IRModule) -> Divided:
    """Divide every kernel of a lowered module."""
    functions: dict[str, tirx.PrimFunc] = {}
    phases: dict[str, tuple[Phase, ...]] = {}
    workspaces: dict[str, tuple[Size, ...]] = {}
    for gvar, function in mod.functions.items():
        kernel = gvar.name_hint
        found, arrays = _phases(function)
        phases[kernel] = tuple(Phase(f"{kernel}_phase{i}", turns) for i, (_, turns) in enumerate(found))
        workspaces[kernel] = tuple(buffer_bytes(buffer) for buffer in arrays)
        for phase, (body, _) in zip(phases[kernel], found, strict=True):
            functions[phase.symbol] = body.with_attr("global_symbol", phase.symbol)
    return Divided(tvm.IRModule(functions), phases, workspaces)


def _phases(function: tirx.PrimFunc) -> tuple[list[tuple[tirx.PrimFunc, Size]], list[tirx.Buffer]]:
    """The phases of a kernel with their numbers of turns, in order, and the arrays that are shared between
    phases or too large for a stack. The parameters of a phase are the kernel's, those arrays, then
    ``begin`` and ``end`` (int32), the range of turns to run. Code that cannot be parallelised is a phase of
    one turn.
    """
    declared = [s for s in _statements(function.body) if isinstance(s, tirx.DeclBuffer)]
    arrays: list[tirx.Buffer] = []

    def lift(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        if not is_large(allocation.buffer):
            return allocation
        arrays.append(allocation.buffer)
        return tirx.Evaluate(tirx.const(0, "int32"))

    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    bodies: list[tuple[tirx.Stmt, Size]] = []
    serial: list[tirx.Stmt] = []

    def end_serial() -> None:
        if serial:
            bodies.append((_sequence(serial), 1))
            serial.clear()

    for statement in _statements(function.body):
        if isinstance(statement, tirx.DeclBuffer):
            continue
        if isinstance(statement, tirx.AllocBuffer):
            arrays.append(statement.buffer)
            continue
        shared = _shared(statement, begin, end)
        if shared is None:
            serial.append(tvm_ffi.structural_map(statement, [(tirx.AllocBuffer, lift)]))
        else:
            end_serial()
            bodies.append(shared)
    end_serial()
    parameters = [*function.params, *arrays, begin, end]
    found = []
    for body, turns in bodies:
        whole = _sequence([*declared, body])
        found.append((tirx.PrimFunc(parameters, whole, function.ret_type, attrs=function.attrs), turns))
    return found, arrays


def _statements(body: tirx.Stmt) -> Iterator[tirx.Stmt]:
    if isinstance(body, tirx.SeqStmt):
        for statement in body.seq:
            yield from _statements(statement)
    else:
        yield body


def _sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _shared(nest: tirx.Stmt, begin: tirx.Var, end: tirx.Var) -> tuple[tirx.Stmt, Size] | None:
    """Join a nest's outermost marked loops into one loop that runs from ``begin`` to ``end``. Return the
    nest and its total number of turns.

    None if the nest has no such loop, or if a turn needs arrays too large for a stack.
    """
    loops: list[tirx.For] = []
    turns: Size = 1
    body = nest
    while isinstance(body, tirx.For) and SHARE in body.annotations and typical(turns) < _TURNS:
        loops.append(body)
        turns = operation("*", turns, size_of(body.extent))
        body = body.body
    if not loops or is_one(turns) or is_zero(turns) or _has_large_arrays(body):
        return None
    joined = tirx.Var("turn", "int32")
    bindings: list[tirx.Stmt] = []
    for number, loop in enumerate(loops):
        below = _turns(loops[number + 1 :])
        left = product(size_of(each.extent) for each in loops[number:])
        index = joined if same(left, turns) else tirx.floormod(joined, _turns(loops[number:]))
        place = tirx.floordiv(index, below)
        if str(loop.loop_var.ty.dtype) != "int32":
            place = tirx.Cast(loop.loop_var.ty.dtype, place)
        bindings.append(tirx.stmt.Bind(loop.loop_var, place + loop.min))
    body = _sequence([*bindings, body])
    return tirx.For(joined, begin, end - begin, tirx.ForKind.SERIAL, body), turns


def _turns(loops: list[tirx.For]) -> tirx.PrimExpr:
    """The number of turns of all of these loops, int32."""
    turns = tirx.const(1, "int32")
    for loop in loops:
        turns = turns * (
            loop.extent if str(loop.extent.ty.dtype) == "int32" else tirx.Cast("int32", loop.extent)
        )
    return turns


def is_large(buffer: tirx.Buffer) -> bool:
    """Whether a local array is too large for a stack, or may be."""
    size = buffer_bytes(buffer)
    return not isinstance(size, int) or size > LOCAL_BYTES


def _has_large_arrays(body: tirx.Stmt) -> bool:
    large: list[tirx.Buffer] = []

    def note(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        if is_large(allocation.buffer):
            large.append(allocation.buffer)
        return allocation

    tvm_ffi.structural_map(body, [(tirx.AllocBuffer, note)])
    return bool(large)
