"""Stage 7, after the linker: software pipelining. A *turn* is an iteration of a loop. Loops read the pixels
of their next turn at the end of the current one.

Cranelift folds the broadcast of a number into its load only if the resulting vector has a single use. A
pixel is used once for every vector of output channels, so Cranelift loads it into a general register, moves
it to a vector register and broadcasts it there, on units that could multiply and add meanwhile. A vector
that is carried from turn to turn has a single use where it is loaded: the beginning of the next turn.

Cranelift computes a loop's carried values in the order in which the loop first reads them. A loop therefore
begins with unused reads of the accumulators of each pixel and then of the pixel, so that the new pixel is
loaded after the last use of the old one, into the same register. No engine generates code for these reads.

V8 folds broadcasts anyway. It moves all loads of a turn to its beginning, where no registers are left for
the new pixels. A module therefore has both versions of each kernel, and a word in memory selects one: 0,
its initial value, selects Cranelift's. Results are equal bit by bit.

Large weights come from memory once per inference, and the first tile that needs a block of them waits. Each
turn of such a *streaming* kernel therefore also loads a weight of a later turn and drops it: nothing waits
for such a load until the processor's window of instructions is full. WebAssembly has no other way to
prefetch.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wasmgraph.abi import READ_AHEAD_BYTES
from wasmgraph.files import replacing
from wasmgraph.wasm.wasmcode import SIMD, Function, Instruction, functions
from wasmgraph.wasm.wasmfile import (
    CODE,
    CUSTOM,
    FUNCTION,
    Module,
    function_names,
    leb128,
    read_module,
    section,
    signed_leb128,
)

# Bytes by which an address may grow in a turn: the last turn reads the pixels of a turn that does not
# follow.
MOST_STRIDE = READ_AHEAD_BYTES
# How far ahead weights are touched. A whole block ahead would evict the current block from the first level.
_TOUCHED_BYTES = READ_AHEAD_BYTES - 64
_V128, _I32 = 0x7B, 0x7F
_LOOP, _END, _BR_IF = (0, 0x03), (0, 0x0B), (0, 0x0D)
_GET, _SET, _TEE = (0, 0x20), (0, 0x21), (0, 0x22)
_LOAD_I32 = (0, 0x28)
_CONST, _ADD, _MUL, _SHL = (0, 0x41), (0, 0x6A), (0, 0x6C), (0, 0x74)
_LOAD, _SPLAT = (SIMD, 0), (SIMD, 9)  # v128.load, v128.load32_splat
_LOADS = (_LOAD, _SPLAT, (SIMD, 1), (SIMD, 2))  # and v128.load8x8_s, v128.load8x8_u
_FUSED = (SIMD, 0x105)  # f32x4.relaxed_madd
_ADD_VECTORS = Instruction(SIMD, 0xE4, b"\xfd\xe4\x01")
_MUL_VECTORS = Instruction(SIMD, 0xE6, b"\xfd\xe6\x01")
_DROP = Instruction(0, 0x1A, b"\x1a")
# The numbers of values that an instruction pops and pushes. A loop with instructions that are not listed
# (stores, calls, branches) is not rewritten.
_ARITY = {
    **dict.fromkeys((_CONST, _GET, (SIMD, 0x0C)), (0, 1)),
    **dict.fromkeys((_SET, (0, 0x1A)), (1, 0)),
    # i32.eqz, f32.load, f32x4.splat
    **dict.fromkeys((_TEE, (0, 0x45), (0, 0x2A), *_LOADS, (SIMD, 0x13)), (1, 1)),
    # of i32: comparisons, add, sub, mul, and, or, xor, shifts
    **{(0, code): (2, 1) for code in (*range(0x46, 0x50), *range(0x6A, 0x6D), *range(0x71, 0x77))},
    # f32x4.add, sub, mul; i32x4.add, dot_i16x8_s
    **{(SIMD, code): (2, 1) for code in (0xE4, 0xE5, 0xE6, 0xAE, 0xBA)},
    _FUSED: (3, 1),
}
# The most instructions that may compute an address.
_LONGEST_ADDRESS = 32


def _op(instruction: Instruction) -> tuple[int, int]:
    return instruction.prefix, instruction.opcode


def _make(opcode: tuple[int, int], operand: bytes = b"") -> Instruction:
    return Instruction(0, opcode[1], bytes([opcode[1]]) + operand)


def _index(instruction: Instruction) -> int:
    return instruction.operands.unsigned()


def _get(variable: int) -> Instruction:
    return _make(_GET, leb128(variable))


def _set(variable: int) -> Instruction:
    return _make(_SET, leb128(variable))


def _tee(variable: int) -> Instruction:
    return _make(_TEE, leb128(variable))


@dataclass
class _Variables:
    """A function's parameters and local variables by index, including variables added here."""

    types: list[int | None]
    added: list[int] = field(default_factory=list)

    def kind(self, variable: int) -> int | None:
        return self.types[variable] if variable < len(self.types) else None

    def new(self, kind: int) -> int:
        self.added.append(kind)
        return len(self.types) + len(self.added) - 1


class _Value(NamedTuple):
    """What is known about a value in a loop's turn.

    ``code`` computes an integer from the variables' values at the beginning of the turn; the integer is
    ``constant`` plus the sum of ``terms``, which are factors by variable. Without code, nothing is known.
    ``pixel`` is the number of the last pixel that the value depends on.
    """

    code: tuple[Instruction, ...] = ()
    constant: int = 0
    terms: tuple[tuple[int, int], ...] = ()
    pixel: int = -1


class _Address(NamedTuple):
    """How a load's address is computed from the values at the beginning of the first turn, the number of
    bytes by which it grows in a turn, and the variable, if any, that has the next turn's address at the end
    of a turn."""

    code: tuple[Instruction, ...]
    stride: int
    variable: int | None


def pipeline(path: Path, flag: int | None, streaming: Collection[str] = ()) -> int:
    """Rewrite a linked module in place, without custom sections; return the number of rewritten loops.

    Parameters
    ----------
    flag : address of the word that selects the kernels; None: the module has only the rewritten ones
    streaming : names of the kernels whose weights come from memory
    """
    with path.open("rb") as stream:
        module = read_module(stream)
        if module.code is None:
            return 0
        wanted: set[int] = set()
        if (names := module.custom("name")) is not None:
            stream.seek(names.offset)
            found = function_names(stream.read(names.size))
            wanted = {index for index, name in found.items() if name in streaming}
        end = module.code.offset + module.code.size
        stream.seek(0)
        head, loops = _rewritten(stream.read(end), module, flag, wanted)
        with replacing(path) as copy:
            copy.write(head)
            for part in module.sections:
                if part.start >= end and part.id != CUSTOM:
                    stream.seek(part.start)
                    _copy(stream, copy, part.offset + part.size - part.start)
    return loops


def _copy(source: BinaryIO, destination: BinaryIO, count: int) -> None:
    while count:
        count -= destination.write(source.read(min(count, 1 << 22)))


def pipelined(raw: bytes) -> bytes:
    """Return a small module with its loops rewritten, without the original loops."""
    module = read_module(io.BytesIO(raw))
    if module.code is None:
        return raw
    end = module.code.offset + module.code.size
    return _rewritten(raw[:end], module, None)[0] + raw[end:]


def _rewritten(
    head: bytes, module: Module, flag: int | None, streaming: Collection[int] = ()
) -> tuple[bytes, int]:
    """Return the module up to the end of its code section, and the number of rewritten loops."""
    declared, code = module.section(FUNCTION), module.code
    assert declared and code
    bodies = list(functions(head[code.offset : code.offset + code.size]))
    imported = len(module.functions) - len(bodies)
    kept: list[Function] = []
    kept_types: list[int] = []
    loops = 0
    for number, (body, kind) in enumerate(zip(bodies, module.functions[imported:], strict=True)):
        parameters = _parameters(module.types[kind])
        changed, count = _function(body, parameters, imported + number in streaming)
        if not count:
            continue
        loops += count
        if flag is not None:
            other = len(module.functions) + len(kept)
            instructions = (*_choice(flag, parameters, other), *changed.instructions)
            changed = Function(changed.variables, instructions)
            kept.append(body)
            kept_types.append(kind)
        bodies[number] = changed
    entries = [*module.functions[imported:], *kept_types]
    return (
        head[: declared.start]
        + section(FUNCTION, leb128(len(entries)) + b"".join(map(leb128, entries)))
        + head[declared.offset + declared.size : code.start]
        + section(CODE, leb128(len(entries)) + b"".join(map(_encode, [*bodies, *kept])))
    ), loops


def _parameters(signature: str) -> int:
    taken = signature[1 : signature.index(")")]
    return len(taken.split(",")) if taken else 0


def _encode(function: Function) -> bytes:
    variables = b"".join(leb128(count) + bytes([kind]) for count, kind in function.variables)
    body = leb128(len(function.variables)) + variables + b"".join(i.raw for i in function.instructions)
    return leb128(len(body)) + body


def _choice(flag: int, parameters: int, other: int) -> list[Instruction]:
    """Code that calls function ``other`` instead if the word at ``flag`` is not 0."""
    address = flag - (1 << 32) if flag >> 31 else flag
    return [
        _make(_CONST, signed_leb128(address)),
        _make(_LOAD_I32, b"\x02\x00"),
        _make((0, 0x04), b"\x40"),  # if
        *map(_get, range(parameters)),
        _make((0, 0x10), leb128(other)),  # call
        _make((0, 0x0F)),  # return
        _make(_END),
    ]


def _function(function: Function, parameters: int, streaming: bool) -> tuple[Function, int]:
    types: list[int | None] = [None] * parameters
    for count, kind in function.variables:
        types += [kind] * count
    variables = _Variables(types)
    out: list[Instruction] = []
    loops = at = 0
    instructions = function.instructions
    while at < len(instructions):
        out.append(instructions[at])
        at += 1
        if _op(out[-1]) != _LOOP or out[-1].raw[1:] != b"\x40":
            continue
        end = at
        while _op(instructions[end]) in _ARITY:
            end += 1
        if _op(instructions[end]) != _BR_IF or _op(instructions[end + 1]) != _END:
            continue
        rewritten = _loop(instructions[at : end + 1], variables, streaming)
        if rewritten:
            before, body = rewritten
            out[-1:] = [*before, out[-1], *body]
            at = end + 1
            loops += 1
    declared = (*function.variables, *((1, kind) for kind in variables.added))
    return Function(declared, tuple(out)), loops


def _loop(
    body: Sequence[Instruction], variables: _Variables, streaming: bool
) -> tuple[list[Instruction], list[Instruction]] | None:
    """Return the code before a loop and the loop's new body, which carries pixels to the next turn; None to
    keep the loop as it is.

    ``body`` has no branches except the last, back to its beginning, and does not write memory.
    """
    condition = _condition(body)
    loads, now, taken_over = _turn(body)
    found = {at: _address(value, now, body, condition) for at, value in loads.items()}
    growing = {at: address for at, address in found.items() if address}
    pixels = [at for at in loads if _op(body[at]) == _SPLAT]
    if not pixels or any(at not in growing or growing[at].stride > MOST_STRIDE for at in pixels):
        return None
    vectors = [v for v in now if v in taken_over and variables.kind(v) == _V128]
    before: list[Instruction] = []
    first: list[Instruction] = []
    last: list[Instruction] = []
    instead: dict[int, list[Instruction]] = {}
    pointers: dict[tuple[object, ...], int] = {}

    def pointer(at: int) -> list[Instruction]:
        """Code that gets an address from a variable, which is set before the loop and incremented at the
        end of a turn. With an expression, its old and its new value would both be live at once."""
        value, address = loads[at], growing[at]
        key = value.constant, *sorted(value.terms)
        if key not in pointers:
            pointers[key] = own = variables.new(_I32)
            before.extend([*address.code, _set(own)])
            last.extend([_get(own), _make(_CONST, signed_leb128(address.stride)), _make(_ADD), _set(own)])
        return [_get(pointers[key])]

    lowest: dict[tuple[tuple[int, int], ...], int] = {}
    for at in (at for at in growing if at not in pixels):
        group = tuple(sorted(loads[at].terms))
        first_of = lowest.setdefault(group, at)
        if loads[at].constant < loads[first_of].constant:
            lowest[group] = at
    for at, address in growing.items():
        if at in pixels or address.variable is not None:
            continue
        base = lowest[tuple(sorted(loads[at].terms))]
        own = growing[base].variable
        if own is not None and any(_sets(i, own) for i in body[:at]):
            base = at
        read = pointer(base) if own is None or base == at else [_get(own)]
        instead[at] = [_DROP, *read, _further(body[at], loads[at].constant - loads[base].constant)]
    for number, at in enumerate(pixels):
        address = growing[at]
        read = pointer(at) if address.variable is None else [_get(address.variable)]
        handed = variables.new(_V128)
        for variable in (*(v for v in vectors if now[v].pixel == number), handed):
            first += [_get(variable), _DROP]
        load = [*read, body[at], _set(handed)]
        before += load
        last += load
        instead[at] = [_DROP, _get(handed)]
    weights = [growing[at] for at in growing if at not in pixels]
    # First in a turn: elsewhere Cranelift would copy the variables that follow it.
    places = [address.variable for address in weights if address.variable is not None]
    if streaming and places:
        first += [_get(places[0]), _make(_LOAD_I32, b"\x02" + leb128(_TOUCHED_BYTES)), _DROP]
    turn = [i for at in range(condition) for i in instead.get(at, [body[at]])]
    return before, [*first, *_unfused(turn), *last, *body[condition:]]


def _sets(instruction: Instruction, variable: int) -> bool:
    return _op(instruction) in (_SET, _TEE) and _index(instruction) == variable


def _further(load: Instruction, distance: int) -> Instruction:
    """A load from so many bytes further on. The address without them is one that the turn reads, so their
    sum does not overflow."""
    operands = load.operands
    alignment, offset = operands.unsigned(), operands.unsigned()
    raw = bytes([load.prefix]) + leb128(load.opcode) + leb128(alignment) + leb128(offset + distance)
    return Instruction(load.prefix, load.opcode, raw)


def _unfused(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Replace fused multiply-adds that add to a variable by multiplications and additions."""
    out: list[Instruction] = []
    for instruction in instructions:
        if _op(instruction) == _FUSED and _op(out[-1]) == _GET:
            out[-1:] = [_MUL_VECTORS, out[-1], _ADD_VECTORS]
        else:
            out.append(instruction)
    return out


def _condition(body: Sequence[Instruction]) -> int:
    """The position at which the stack is empty for the last time before the loop's branch."""
    depth = found = 0
    for at, instruction in enumerate(body[:-1], 1):
        taken, left = _ARITY[_op(instruction)]
        depth += left - taken
        if not depth:
            found = at
    return found


def _turn(body: Sequence[Instruction]) -> tuple[dict[int, _Value], dict[int, _Value], set[int]]:
    """Return the addresses of a turn's loads by instruction, the variables' values at the end of the turn,
    and the set of variables whose values the turn takes from the one before."""
    stack: list[_Value] = []
    addresses: dict[int, _Value] = {}
    now: dict[int, _Value] = {}
    taken_over: set[int] = set()
    pixels = 0
    for at, instruction in enumerate(body[:-1]):
        operation = _op(instruction)
        taken, left = _ARITY[operation]
        operands = stack[len(stack) - taken :]
        del stack[len(stack) - taken :]
        value = _value(instruction, operands)
        if operation == _GET:
            variable = _index(instruction)
            if variable not in now:
                taken_over.add(variable)
            value = now.get(variable, value)
        elif operation in (_SET, _TEE):
            now[_index(instruction)] = value = operands[0]
        elif operation in _LOADS:
            addresses[at] = operands[0]
            if operation == _SPLAT:
                value = _Value(pixel=pixels)
                pixels += 1
        stack += [value] * left
    return addresses, now, taken_over


def _value(instruction: Instruction, operands: Sequence[_Value]) -> _Value:
    operation = _op(instruction)
    code = (*(i for operand in operands for i in operand.code), instruction)
    if operation == _CONST:
        return _Value(code, instruction.operands.signed())
    if operation == _GET:
        return _Value(code, terms=((_index(instruction), 1),))
    if len(operands) == 2 and all(o.code for o in operands) and len(code) <= _LONGEST_ADDRESS:
        left, right = operands
        if operation == _ADD:
            return _Value(code, left.constant + right.constant, left.terms + right.terms)
        if operation in (_SHL, _MUL) and not right.terms:
            factor = 1 << (right.constant & 31) if operation == _SHL else right.constant
            return _Value(code, left.constant * factor, tuple((v, f * factor) for v, f in left.terms))
    return _Value(pixel=max((o.pixel for o in operands), default=-1))


def _address(
    value: _Value, now: Mapping[int, _Value], body: Sequence[Instruction], condition: int
) -> _Address | None:
    """Return the address, if it grows by the same number of bytes in every turn; otherwise None."""
    stride = 0
    for variable, factor in value.terms:
        after = now.get(variable, _Value(terms=((variable, 1),)))
        if after.terms != ((variable, 1),):
            return None
        stride += factor * after.constant
    if not value.code or stride < 0:
        return None
    if len(value.code) > 1 or not value.terms:
        return _Address(value.code, stride, None)
    variable = value.terms[0][0]
    late = any(_sets(i, variable) for i in body[condition:])
    return _Address(value.code, stride, None if late else variable)
