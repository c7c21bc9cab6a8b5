"""Kernels for several threads. Each nest of loops becomes a function of its own, a *phase*, that runs one
of as many equal pieces of the nest's outermost loops as it is told; the threads take pieces until none is
left, and meet at a barrier before the next phase begins (``csrc/pool.c``).

Phases are functions, and not turns of one function, because of ``noalias``: LLVM may assume that nobody
else writes to a kernel's buffers while the kernel runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import tvm
import tvm_ffi
from tvm import tirx

from wasmgraph.compiler.operators import tvm_dtype_bytes
from wasmgraph.compiler.schedule.blocks import SHARE

# Enough turns for equal pieces: loops are joined until there are so many.
_TURNS = 128
# Local arrays larger than this lie in the arena; a stack has 64 KiB.
LOCAL_BYTES = 1024


@dataclass(frozen=True)
class Divided:
    """A module of phases; by kernel, its phases' names, and the bytes of the arrays that they take after
    the kernel's own parameters."""

    module: tvm.IRModule
    phases: dict[str, tuple[str, ...]]
    workspaces: dict[str, tuple[int, ...]]


def divide(mod: tvm.IRModule) -> Divided:
    """Divide every kernel of a lowered module."""
    functions: dict[str, tirx.PrimFunc] = {}
    names: dict[str, tuple[str, ...]] = {}
    workspaces: dict[str, tuple[int, ...]] = {}
    for gvar, function in mod.functions.items():
        kernel = gvar.name_hint
        found, arrays = _phases(function)
        names[kernel] = tuple(f"{kernel}_phase{i}" for i in range(len(found)))
        workspaces[kernel] = tuple(buffer_bytes(buffer) for buffer in arrays)
        for name, phase in zip(names[kernel], found, strict=True):
            functions[name] = phase.with_attr("global_symbol", name)
    return Divided(tvm.IRModule(functions), names, workspaces)


def buffer_bytes(buffer: tirx.Buffer) -> int:
    """Size of a buffer of static shape."""
    return prod(int(d) for d in buffer.shape) * tvm_dtype_bytes(str(buffer.dtype))


def _phases(function: tirx.PrimFunc) -> tuple[list[tirx.PrimFunc], list[tirx.Buffer]]:
    """The phases of a kernel, in order, and the arrays that they hand to each other or that are too large
    for a stack. Parameters of a phase: the kernel's, those arrays, then ``piece`` and ``pieces`` (int32).
    """
    declared = [s for s in _statements(function.body) if isinstance(s, tirx.DeclBuffer)]
    arrays: list[tirx.Buffer] = []

    def lift(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        if buffer_bytes(allocation.buffer) <= LOCAL_BYTES:
            return allocation
        arrays.append(allocation.buffer)
        return tirx.Evaluate(tirx.const(0, "int32"))

    piece, pieces = tirx.Var("piece", "int32"), tirx.Var("pieces", "int32")
    bodies: list[tirx.Stmt] = []
    serial: list[tirx.Stmt] = []

    def end_serial() -> None:
        if serial:
            bodies.append(tirx.IfThenElse(tirx.EQ(piece, 0), _sequence(serial), None))
            serial.clear()

    for statement in _statements(function.body):
        if isinstance(statement, tirx.DeclBuffer):
            continue
        if isinstance(statement, tirx.AllocBuffer):
            arrays.append(statement.buffer)
            continue
        shared = _shared(statement, piece, pieces)
        if shared is None:
            serial.append(tvm_ffi.structural_map(statement, [(tirx.AllocBuffer, lift)]))
        else:
            end_serial()
            bodies.append(shared)
    end_serial()
    parameters = [*function.params, *arrays, piece, pieces]
    found = [
        tirx.PrimFunc(parameters, _sequence([*declared, body]), function.ret_type, attrs=function.attrs)
        for body in bodies
    ]
    return found, arrays


def _statements(body: tirx.Stmt) -> Iterator[tirx.Stmt]:
    if isinstance(body, tirx.SeqStmt):
        for statement in body.seq:
            yield from _statements(statement)
    else:
        yield body


def _sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _shared(nest: tirx.Stmt, piece: tirx.Var, pieces: tirx.Var) -> tirx.Stmt | None:
    """The nest with its outermost marked loops joined into one, of which one piece is run.

    None if it has no such loop, or if a turn needs arrays too large for a stack.
    """
    loops: list[tirx.For] = []
    body, turns = nest, 1
    while isinstance(body, tirx.For) and SHARE in body.annotations and turns < _TURNS:
        loops.append(body)
        turns *= int(body.extent)
        body = body.body
    if not loops or turns == 1 or _has_large_arrays(body):
        return None
    joined = tirx.Var("turn", "int32")
    bindings: list[tirx.Stmt] = []
    below = turns
    for loop in loops:
        above, below = below, below // int(loop.extent)
        index = joined if above == turns else tirx.floormod(joined, above)
        bindings.append(tirx.stmt.Bind(loop.loop_var, tirx.floordiv(index, below) + loop.min))
    body = _sequence([*bindings, body])
    begin = tirx.floordiv(piece * turns, pieces)
    end = tirx.floordiv((piece + 1) * turns, pieces)
    return tirx.For(joined, begin, end - begin, tirx.ForKind.SERIAL, body)


def _has_large_arrays(body: tirx.Stmt) -> bool:
    large: list[tirx.Buffer] = []

    def note(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        if buffer_bytes(allocation.buffer) > LOCAL_BYTES:
            large.append(allocation.buffer)
        return allocation

    tvm_ffi.structural_map(body, [(tirx.AllocBuffer, note)])
    return bool(large)
