from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.wasm.wasmfile import MAGIC, MalformedError, custom_section, export_start, leb128, read_module

WAT = """(module
  (import "env" "f" (func (param i32)))
  (import "env" "g" (global i32))
  (memory (export "memory") 3 7)
  (global (export "address") i32 (i32.const -70000))
  (global (export "other") (mut f32) (f32.const 1))
  (func (export "run") (result i32) i32.const 0))"""


def test_reads_what_a_module_shows() -> None:
    module = read_module(io.BytesIO(wasmtime.wat2wasm(WAT)))
    assert module.imports == (("env", "f", "func"), ("env", "g", "global"))
    assert module.exports == {"memory": "memory", "address": "global", "other": "global", "run": "func"}
    assert module.global_values == {"address": (1 << 32) - 70000}  # addresses are unsigned
    assert (module.memory_min, module.memory_max, module.has_start) == (3, 7, False)


def test_reads_signatures_and_every_memory() -> None:
    module = read_module(io.BytesIO(wasmtime.wat2wasm(WAT)))
    assert module.signatures == {"env.f": "(i32) -> ()", "run": "() -> i32"}
    assert (module.memories, module.memory_64) == (1, False)
    text = """(module (memory i64 1) (memory 2)
      (func (export "f") (param f32 v128) (result i64 externref) unreachable))"""
    module = read_module(io.BytesIO(wasmtime.wat2wasm(text)))
    assert module.signatures == {"f": "(f32, v128) -> i64, 0x6f"}
    assert (module.memories, module.memory_64) == (2, True)


def test_a_start_function_becomes_an_export(tmp_path: Path) -> None:
    path = tmp_path / "start.wasm"
    path.write_bytes(
        wasmtime.wat2wasm("""(module (global $g (export "g") (mut i32) (i32.const 0))
      (func $f (global.set $g (i32.const 7))) (func (export "h")) (start $f))""")
    )
    export_start(path, "begin")
    store = wasmtime.Store()
    exports = wasmtime.Instance(store, wasmtime.Module.from_file(store.engine, str(path)), []).exports(
        store
    )
    assert exports["g"].value(store) == 0
    exports["begin"](store)
    exports["h"](store)
    assert exports["g"].value(store) == 7
    with pytest.raises(MalformedError, match="no start function"):
        export_start(path, "again")


def test_sees_a_start_function() -> None:
    text = "(module (func $f) (start $f))"
    assert read_module(io.BytesIO(wasmtime.wat2wasm(text))).has_start


@given(st.integers(0, 2**32), st.binary(max_size=300), st.text(min_size=1, max_size=20))
def test_custom_sections_come_back(number: int, data: bytes, name: str) -> None:
    assert len(leb128(number)) <= 5
    raw = MAGIC + custom_section(name, data)
    section = read_module(io.BytesIO(raw)).custom(name)
    assert section is not None
    assert raw[section.offset : section.offset + section.size] == data


@given(st.integers(9, 140), st.integers(0, 255))
def test_damage_is_malformed_or_harmless(at: int, value: int) -> None:
    raw = bytearray(wasmtime.wat2wasm(WAT))
    raw[at % len(raw)] = value
    for damaged in (bytes(raw), bytes(raw[: at % len(raw)])):
        with contextlib.suppress(MalformedError):
            read_module(io.BytesIO(damaged))


def vector(number: int, count: int, entries: bytes) -> bytes:
    """A module of one section, which says that it has so many entries."""
    body = leb128(count) + entries
    return MAGIC + bytes([number]) + leb128(len(body)) + body


@pytest.mark.parametrize(
    "raw",
    [
        MAGIC + b"\0\1\0" * 1_001,
        vector(1, 1_000_000, b"\x60\0\0" * 1_000_000),
        vector(1, 1, b"\x60" + leb128(1_001) + b"\x7f" * 1_001 + b"\0"),
        vector(7, 100_001, b"\0\0\0" * 100_001),
    ],
    ids=["sections", "types", "operands", "exports"],
)
def test_small_files_that_claim_millions_are_not_read(raw: bytes) -> None:
    with pytest.raises(MalformedError, match="where a graph has at most|more than 1000 sections"):
        read_module(io.BytesIO(raw))


def test_agrees_with_wasmtime_on_an_artifact(small_artifact: Callable[[str], Path]) -> None:
    path = small_artifact("wasm32-simd128")
    theirs = wasmtime.Module.from_file(wasmtime.Engine(), str(path))
    with path.open("rb") as stream:
        ours = read_module(stream)
    assert set(ours.exports) == {e.name for e in theirs.exports}
    assert len(ours.imports) == len(list(theirs.imports)) == 0
