"""Just enough of the WebAssembly binary format to check a module without running it.

Section ids and encodings: WebAssembly Core Specification, chapter 5 (Binary Format).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b"\0asm\x01\0\0\0"
PAGE_BYTES = 65536
_CUSTOM, _IMPORT, _MEMORY, _GLOBAL, _EXPORT, _START, _CODE = 0, 2, 5, 6, 7, 8, 10
_KINDS = {0: "func", 1: "table", 2: "memory", 3: "global", 4: "tag"}


class MalformedError(ValueError):
    """The bytes are not a WebAssembly module; the message says where."""


@dataclass(frozen=True)
class Section:
    """One section: its id, a custom section's name, where the whole and its content lie."""

    id: int
    name: str
    start: int
    offset: int
    size: int


@dataclass(frozen=True)
class Module:
    """What a module shows outside.

    ``exports`` maps a name to its kind; ``global_values`` holds the exported globals that are
    constant ``i32`` (addresses that the linker exported); memory sizes are in pages of 64 KiB.
    """

    imports: tuple[tuple[str, str, str], ...]
    exports: dict[str, str]
    global_values: dict[str, int]
    memory_min: int
    memory_max: int | None
    memory_shared: bool
    has_start: bool
    sections: tuple[Section, ...]

    @property
    def shared_pages(self) -> tuple[int, int]:
        """Least and most pages of a shared memory; its host may add pages, one a worker's stack."""
        return (self.memory_min, self.memory_max or 0) if self.memory_shared else (0, 0)

    @property
    def code(self) -> Section | None:
        """The section of function bodies."""
        return next((s for s in self.sections if s.id == _CODE), None)

    def custom(self, name: str) -> Section | None:
        """The last custom section of that name."""
        found = [s for s in self.sections if s.id == _CUSTOM and s.name == name]
        return found[-1] if found else None


def leb128(value: int) -> bytes:
    """Encode an unsigned integer."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def custom_section(name: str, data: bytes) -> bytes:
    """Encode a custom section, ready to be appended to a module."""
    body = leb128(len(name.encode())) + name.encode() + data
    return bytes([_CUSTOM]) + leb128(len(body)) + body


class Reader:
    """A cursor over one section's content."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        """The next byte."""
        if self.at >= len(self.data):
            raise MalformedError("a section ends in the middle of an entry")
        self.at += 1
        return self.data[self.at - 1]

    def _leb128(self) -> tuple[int, int, bool]:
        """The bits of an integer, how many they are, and the last byte's sign bit."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value, shift, bool(byte & 0x40)
            if shift > 63:
                raise MalformedError("an integer is longer than ten bytes")

    def unsigned(self) -> int:
        """The next LEB128 integer, unsigned."""
        return self._leb128()[0]

    def signed(self) -> int:
        """The next LEB128 integer, signed."""
        value, bits, negative = self._leb128()
        return value - (1 << bits) if negative else value

    def skip(self, count: int) -> None:
        """Pass over bytes that must be there."""
        if self.at + count > len(self.data):
            raise MalformedError("a section ends in the middle of an entry")
        self.at += count

    def text(self) -> str:
        """The next name."""
        length = self.unsigned()
        raw = self.data[self.at : self.at + length]
        if len(raw) != length:
            raise MalformedError("a name is longer than its section")
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise MalformedError("a name is not UTF-8") from error

    def limits(self) -> tuple[int, int | None, bool]:
        """Least, most, and whether the memory is shared."""
        flags = self.byte()
        least = self.unsigned()
        return least, self.unsigned() if flags & 1 else None, bool(flags & 2)


def _sections(stream: BinaryIO, length: int) -> Iterator[Section]:
    at = len(MAGIC)
    while at < length:
        stream.seek(at)
        head = Reader(stream.read(11))
        number = head.byte()
        size = head.unsigned()
        offset = at + head.at
        if offset + size > length:
            raise MalformedError(
                f"section {number} at byte {at} needs {size} bytes, {length - offset} are there"
            )
        name = ""
        if number == _CUSTOM:
            stream.seek(offset)
            reader = Reader(stream.read(min(size, 1024)))
            name = reader.text()
            yield Section(number, name, at, offset + reader.at, size - reader.at)
        else:
            yield Section(number, name, at, offset, size)
        at = offset + size


def read_module(stream: BinaryIO) -> Module:
    """Walk a module's sections; code and data are skipped, not read.

    Raises
    ------
    MalformedError
        The bytes are not a whole module.
    """
    length = stream.seek(0, 2)
    stream.seek(0)
    if stream.read(len(MAGIC)) != MAGIC:
        raise MalformedError("it does not begin with WebAssembly's magic number and version 1")
    sections = tuple(_sections(stream, length))
    imports: list[tuple[str, str, str]] = []
    exports: dict[str, tuple[str, int]] = {}
    constants: dict[int, int] = {}
    memory: tuple[int, int | None, bool] = (0, None, False)
    imported_globals = 0
    for section in sections:
        if section.id not in (_IMPORT, _MEMORY, _GLOBAL, _EXPORT):
            continue
        stream.seek(section.offset)
        reader = Reader(stream.read(section.size))
        count = reader.unsigned()
        if section.id == _IMPORT:
            for _ in range(count):
                where, name, kind = reader.text(), reader.text(), reader.byte()
                imports.append((where, name, _KINDS.get(kind, "unknown")))
                if kind == 0:
                    reader.unsigned()
                elif kind == 1:
                    reader.byte()
                    reader.limits()
                elif kind == 2:
                    memory = reader.limits()
                elif kind == 3:
                    reader.byte()
                    reader.byte()
                    imported_globals += 1
                else:
                    raise MalformedError(f"import {where}.{name} is of unknown kind {kind}")
        elif section.id == _MEMORY and count:
            memory = reader.limits()
        elif section.id == _GLOBAL:
            for index in range(imported_globals, imported_globals + count):
                value_type, _mutable, opcode = reader.byte(), reader.byte(), reader.byte()
                if value_type != 0x7F or opcode != 0x41:
                    break  # only leading i32.const globals are needed: the linker's addresses
                constants[index] = reader.signed()
                if reader.byte() != 0x0B:
                    break
        elif section.id == _EXPORT:
            for _ in range(count):
                name, kind, index = reader.text(), reader.byte(), reader.unsigned()
                exports[name] = (_KINDS.get(kind, "unknown"), index)
    return Module(
        imports=tuple(imports),
        exports={name: kind for name, (kind, _) in exports.items()},
        global_values={
            name: constants[index]
            for name, (kind, index) in exports.items()
            if kind == "global" and index in constants
        },
        memory_min=memory[0],
        memory_max=memory[1],
        memory_shared=memory[2],
        has_start=any(section.id == _START for section in sections),
        sections=sections,
    )
