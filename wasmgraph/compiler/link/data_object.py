"""Wraps a file in an object file for WebAssembly's linker, with one symbol for its bytes.

An assembler's ``.incbin`` does the same, but holds the file in memory three times. The format of object
files is defined in WebAssembly's tool conventions, "WebAssembly Object File Linking".
"""

from __future__ import annotations

import shutil
from pathlib import Path

from wasmgraph.wasm.wasmfile import MAGIC, PAGE_BYTES, custom_section, leb128, section

_IMPORT, _DATA, _DATA_COUNT = 2, 11, 12
_SEGMENT_INFO, _SYMBOL_TABLE = 5, 8  # parts of the section "linking"
_DATA_SYMBOL = 1
_COPY_BYTES = 1 << 22


def _name(text: str) -> bytes:
    return leb128(len(text)) + text.encode()


def write_data_object(content: Path, symbol: str, path: Path, alignment: int) -> None:
    """Write an object file that defines ``symbol`` as the bytes of ``content``. They are read-only data,
    aligned to ``alignment``, which is a power of two."""
    size = content.stat().st_size
    pages = -(-size // PAGE_BYTES)
    memory = _name("env") + _name("__linear_memory") + b"\x02\x00" + leb128(pages)
    # One active segment at address 0; the linker relocates it.
    segment = b"\x00\x41\x00\x0b" + leb128(size)
    named = _name(f".rodata.{symbol}") + leb128(alignment.bit_length() - 1) + leb128(0)
    info = leb128(1) + named
    symbols = leb128(1) + bytes([_DATA_SYMBOL]) + leb128(0) + _name(symbol)
    symbols += leb128(0) + leb128(0) + leb128(size)  # segment, offset, size
    linking = leb128(2) + section(_SEGMENT_INFO, info) + section(_SYMBOL_TABLE, symbols)
    with content.open("rb") as source, path.open("wb") as stream:
        stream.write(MAGIC + section(_IMPORT, leb128(1) + memory) + section(_DATA_COUNT, leb128(1)))
        stream.write(bytes([_DATA]) + leb128(1 + len(segment) + size) + leb128(1) + segment)
        shutil.copyfileobj(source, stream, _COPY_BYTES)
        stream.write(custom_section("linking", linking))
