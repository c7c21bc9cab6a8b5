"""Which instructions a module consists of: a walk over its code, without running it.

Opcodes and immediates: WebAssembly Core Specification 3.0, chapter 5.4 (Instructions), and the threads
proposal for the prefix 0xFE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from wasmgraph.wasm.wasmfile import MalformedError, Module, Reader

SIMD, ATOMIC = 0xFD, 0xFE
_MISC = 0xFC
_RELAXED = range(0x100, 0x114)  # of the prefix SIMD
# Opcodes by what follows them.
_BLOCK = {0x02, 0x03, 0x04}
_ONE_INDEX = {0x0C, 0x0D, 0x10, 0x12, *range(0x20, 0x27), 0x3F, 0x40, 0x41, 0x42, 0xD0, 0xD2}
_MEMORY = set(range(0x28, 0x3F))
_MISC_INDICES = {**dict.fromkeys(range(8), 0), 8: 2, 9: 1, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2}
_MISC_INDICES |= dict.fromkeys(range(15, 18), 1)


class Instruction(NamedTuple):
    """One instruction: its prefix (0 for none), its opcode, and all of it as bytes."""

    prefix: int
    opcode: int
    raw: bytes

    @property
    def operands(self) -> Reader:
        """What follows the opcode."""
        reader = Reader(self.raw)
        reader.byte()
        if self.prefix:
            reader.unsigned()
        return reader


class Function(NamedTuple):
    """A function's body: its declared locals as (how many, type), and its instructions."""

    variables: tuple[tuple[int, int], ...]
    instructions: tuple[Instruction, ...]


def functions(code: bytes) -> Iterator[Function]:
    """Decode the content of a code section.

    Raises
    ------
    MalformedError
        It holds something that is no known instruction.
    """
    reader = Reader(code)
    for _ in range(reader.unsigned()):
        end = reader.unsigned() + reader.at
        variables = tuple((reader.unsigned(), reader.byte()) for _ in range(reader.unsigned()))
        yield Function(variables, tuple(_instructions(reader, end)))


def opcodes(stream: BinaryIO, module: Module) -> Counter[tuple[int, int]]:
    """How often each instruction occurs, by prefix (0 for none) and opcode.

    Raises
    ------
    MalformedError
        The code section holds something that is no known instruction.
    """
    found: Counter[tuple[int, int]] = Counter()
    if module.code is None:
        return found
    stream.seek(module.code.offset)
    reader = Reader(stream.read(module.code.size))
    for _ in range(reader.unsigned()):
        end = reader.unsigned() + reader.at
        for _ in range(reader.unsigned()):
            reader.unsigned()
            reader.byte()
        found.update((prefix, opcode) for prefix, opcode, _ in _instructions(reader, end))
    return found


def relaxed_count(found: Counter[tuple[int, int]]) -> int:
    """How many instructions are of relaxed SIMD, whose results may differ between engines."""
    return sum(n for (prefix, opcode), n in found.items() if prefix == SIMD and opcode in _RELAXED)


def _instructions(reader: Reader, end: int) -> Iterator[Instruction]:
    while reader.at < end:
        began = reader.at
        prefix, opcode = _instruction(reader)
        yield Instruction(prefix, opcode, reader.data[began : reader.at])
    if reader.at != end:
        raise MalformedError("an instruction runs over the end of its function")


def _instruction(reader: Reader) -> tuple[int, int]:
    opcode = reader.byte()
    if opcode in (_MISC, SIMD, ATOMIC):
        prefix, opcode = opcode, reader.unsigned()
        {_MISC: _misc, SIMD: _simd, ATOMIC: _atomic}[prefix](reader, opcode)
        return prefix, opcode
    if opcode in _BLOCK or opcode in _ONE_INDEX:
        reader.signed()
    elif opcode in _MEMORY:
        _memory_argument(reader)
    elif opcode == 0x0E:  # br_table
        for _ in range(reader.unsigned() + 1):
            reader.unsigned()
    elif opcode == 0x11:  # call_indirect
        reader.unsigned()
        reader.unsigned()
    elif opcode == 0x1C:  # select with types
        reader.skip(reader.unsigned())
    elif opcode in (0x43, 0x44):  # f32.const, f64.const
        reader.skip(4 if opcode == 0x43 else 8)
    elif not (opcode in (0x00, 0x01, 0x05, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1) or 0x45 <= opcode <= 0xC4):
        raise MalformedError(f"0x{opcode:02x} is no instruction")
    return 0, opcode


def _memory_argument(reader: Reader) -> None:
    reader.unsigned()
    reader.unsigned()


def _misc(reader: Reader, opcode: int) -> None:
    if opcode not in _MISC_INDICES:
        raise MalformedError(f"0xfc {opcode} is no instruction")
    for _ in range(_MISC_INDICES[opcode]):
        reader.unsigned()


def _simd(reader: Reader, opcode: int) -> None:
    if opcode <= 11 or opcode in (92, 93):  # loads and stores
        _memory_argument(reader)
    elif opcode in (12, 13):  # v128.const, i8x16.shuffle
        reader.skip(16)
    elif 21 <= opcode <= 34:  # lanes
        reader.byte()
    elif 84 <= opcode <= 91:  # loads and stores of one lane
        _memory_argument(reader)
        reader.byte()
    elif opcode not in _RELAXED and opcode > 0xFF:
        raise MalformedError(f"0xfd {opcode} is no instruction")


def _atomic(reader: Reader, opcode: int) -> None:
    if opcode == 3:  # atomic.fence
        reader.byte()
    elif opcode <= 2 or 0x10 <= opcode <= 0x4E:
        _memory_argument(reader)
    else:
        raise MalformedError(f"0xfe {opcode} is no instruction")
