"""Just enough of the WebAssembly binary format to check a module without running it.

Section ids and encodings: WebAssembly Core Specification, chapter 5 (Binary Format).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAGIC = b"\0asm\x01\0\0\0"
PAGE_BYTES = 65536
CUSTOM, FUNCTION, CODE = 0, 3, 10  # sections
_TYPE, _IMPORT, _MEMORY, _GLOBAL, _EXPORT, _START = 1, 2, 5, 6, 7, 8
_VALUE_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}
# More than any graph needs; a small file may claim millions, which take minutes to read here.
_MOST_SECTIONS, _MOST_ENTRIES, _MOST_VALUES, _LARGEST_BYTES = 1_000, 100_000, 1_000, 1 << 26
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

    ``exports`` maps a name to its kind, ``signatures`` an imported (``module.name``) or exported
    function to its type, as in ``(i32, i32) -> i32``; ``global_values`` holds the exported globals that
    are constant ``i32`` (addresses that the linker exported); memory sizes are in pages of 64 KiB;
    ``functions`` are the types of all functions, imported ones first, as indices of ``types``.
    """

    imports: tuple[tuple[str, str, str], ...]
    exports: dict[str, str]
    signatures: dict[str, str]
    global_values: dict[str, int]
    memories: int
    memory_min: int
    memory_max: int | None
    memory_shared: bool
    memory_64: bool
    has_start: bool
    types: tuple[str, ...]
    functions: tuple[int, ...]
    sections: tuple[Section, ...]

    @property
    def shared_pages(self) -> tuple[int, int]:
        """Least and most pages of a shared memory; its host may add pages, one a worker's stack."""
        return (self.memory_min, self.memory_max or 0) if self.memory_shared else (0, 0)

    @property
    def code(self) -> Section | None:
        """The section of function bodies."""
        return self.section(CODE)

    def section(self, number: int) -> Section | None:
        """The first section of that number."""
        return next((s for s in self.sections if s.id == number), None)

    def custom(self, name: str) -> Section | None:
        """The last custom section of that name."""
        found = [s for s in self.sections if s.id == CUSTOM and s.name == name]
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


def signed_leb128(value: int) -> bytes:
    """Encode a signed integer."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value & 0x7F])


def section(number: int, body: bytes) -> bytes:
    """Encode a section."""
    return bytes([number]) + leb128(len(body)) + body


def function_names(names: bytes) -> dict[int, str]:
    """The functions' names by index, from the content of the custom section ``name``."""
    reader, found = Reader(names), dict[int, str]()
    while reader.at < len(names):
        kind, size = reader.byte(), reader.unsigned()
        if kind != 1:
            reader.skip(size)
            continue
        for _ in range(reader.count()):
            index = reader.unsigned()
            found[index] = reader.text()
    return found


def custom_section(name: str, data: bytes) -> bytes:
    """Encode a custom section, ready to be appended to a module."""
    return section(CUSTOM, leb128(len(name.encode())) + name.encode() + data)


def export_start(path: Path, name: str) -> None:
    """Make a module's start function, which every instance would run unasked, an export of that name.

    Raises
    ------
    MalformedError
        It has no start function, or no exports.
    """
    raw = path.read_bytes()
    sections = {s.id: s for s in _sections(io.BytesIO(raw), len(raw)) if s.id in (_START, _EXPORT)}
    if sections.keys() != {_START, _EXPORT}:
        raise MalformedError("there is no start function, or nothing is exported")
    start, export = sections[_START], sections[_EXPORT]
    index = raw[start.offset : start.offset + start.size]
    reader = Reader(raw[export.offset : export.offset + export.size])
    count = reader.unsigned()
    entry = leb128(len(name)) + name.encode() + b"\0" + index
    body = leb128(count + 1) + reader.data[reader.at :] + entry
    exports = section(_EXPORT, body)
    before, between = raw[: export.start], raw[export.offset + export.size : start.start]
    path.write_bytes(before + exports + between + raw[start.offset + start.size :])


class Limits(NamedTuple):
    """Of a memory, in pages, or of a table."""

    least: int = 0
    most: int | None = None
    shared: bool = False
    wide: bool = False


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

    def count(self, most: int = _MOST_ENTRIES) -> int:
        """How many entries follow."""
        number = self.unsigned()
        if number > most:
            raise MalformedError(f"it has {number} entries where a graph has at most {most}")
        return number

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

    def limits(self) -> Limits:
        """How large a memory or table is and may become."""
        flags = self.byte()
        if flags > 7:
            raise MalformedError(f"0x{flags:02x} is no kind of limits")
        least = self.unsigned()
        return Limits(least, self.unsigned() if flags & 1 else None, bool(flags & 2), bool(flags & 4))

    def value_type(self) -> str:
        """A value's type; references, which no graph has, by their number."""
        byte = self.byte()
        return _VALUE_TYPES.get(byte, f"0x{byte:02x}")

    def function_type(self) -> str:
        """A signature, written as the text format's authors write it."""
        form = self.byte()
        if form != 0x60:
            raise MalformedError(f"0x{form:02x} is no type of a function")
        takes, gives = ([self.value_type() for _ in range(self.count(_MOST_VALUES))] for _ in range(2))
        return f"({', '.join(takes)}) -> {', '.join(gives) or '()'}"


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
        if number == CUSTOM:
            stream.seek(offset)
            reader = Reader(stream.read(min(size, 1024)))
            name = reader.text()
            yield Section(number, name, at, offset + reader.at, size - reader.at)
        else:
            yield Section(number, name, at, offset, size)
        at = offset + size


class _Shape:
    """What the sections of a module say, as they are read in their order."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.functions: list[int] = []  # imported ones first
        self.imports: list[tuple[str, str, str]] = []
        self.exports: dict[str, tuple[str, int]] = {}
        self.signatures: dict[str, str] = {}
        self.constants: dict[int, int] = {}
        self.memories: list[Limits] = []
        self.imported_globals = 0

    def type(self, reader: Reader) -> None:
        self.types += [reader.function_type() for _ in range(reader.count())]

    def _function_type(self, reader: Reader) -> int:
        index = reader.unsigned()
        if index >= len(self.types):
            raise MalformedError(f"a function has type {index} of {len(self.types)}")
        return index

    def import_(self, reader: Reader) -> None:
        for _ in range(reader.count()):
            where, name, kind = reader.text(), reader.text(), reader.byte()
            self.imports.append((where, name, _KINDS.get(kind, "unknown")))
            if kind == 0:
                self.functions.append(self._function_type(reader))
                self.signatures[f"{where}.{name}"] = self.types[self.functions[-1]]
            elif kind == 1:
                reader.byte()
                reader.limits()
            elif kind == 2:
                self.memories.append(reader.limits())
            elif kind == 3:
                reader.byte()
                reader.byte()
                self.imported_globals += 1
            else:
                raise MalformedError(f"import {where}.{name} is of unknown kind {kind}")

    def function(self, reader: Reader) -> None:
        self.functions += [self._function_type(reader) for _ in range(reader.count())]

    def memory(self, reader: Reader) -> None:
        self.memories += [reader.limits() for _ in range(reader.count())]

    def global_(self, reader: Reader) -> None:
        count = reader.count()
        for index in range(self.imported_globals, self.imported_globals + count):
            value_type, _mutable, opcode = reader.byte(), reader.byte(), reader.byte()
            if value_type != 0x7F or opcode != 0x41:
                return  # only leading i32.const globals are needed: the linker's addresses
            self.constants[index] = reader.signed() % (1 << 32)  # an address
            if reader.byte() != 0x0B:
                return

    def export(self, reader: Reader) -> None:
        for _ in range(reader.count()):
            name, kind, index = reader.text(), reader.byte(), reader.unsigned()
            self.exports[name] = (_KINDS.get(kind, "unknown"), index)
            if kind == 0:
                if index >= len(self.functions):
                    raise MalformedError(f"export {name} is function {index} of {len(self.functions)}")
                self.signatures[name] = self.types[self.functions[index]]


_READ = {
    _TYPE: _Shape.type,
    _IMPORT: _Shape.import_,
    FUNCTION: _Shape.function,
    _MEMORY: _Shape.memory,
    _GLOBAL: _Shape.global_,
    _EXPORT: _Shape.export,
}


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
    sections = tuple(islice(_sections(stream, length), _MOST_SECTIONS + 1))
    if len(sections) > _MOST_SECTIONS:
        raise MalformedError(f"it has more than {_MOST_SECTIONS} sections")
    shape = _Shape()
    for section in sections:
        if section.id in _READ:
            if section.size > _LARGEST_BYTES:
                raise MalformedError(f"section {section.id} has {section.size} bytes")
            stream.seek(section.offset)
            _READ[section.id](shape, Reader(stream.read(section.size)))
    memory = shape.memories[0] if shape.memories else Limits()
    return Module(
        imports=tuple(shape.imports),
        exports={name: kind for name, (kind, _) in shape.exports.items()},
        signatures=shape.signatures,
        global_values={
            name: shape.constants[index]
            for name, (kind, index) in shape.exports.items()
            if kind == "global" and index in shape.constants
        },
        memories=len(shape.memories),
        memory_min=memory.least,
        memory_max=memory.most,
        memory_shared=memory.shared,
        memory_64=memory.wide,
        has_start=any(section.id == _START for section in sections),
        types=tuple(shape.types),
        functions=tuple(shape.functions),
        sections=sections,
    )
