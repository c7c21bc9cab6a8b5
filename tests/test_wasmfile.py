from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.wasmfile import MAGIC, MalformedError, custom_section, leb128, read_module

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
    assert module.global_values == {"address": -70000}
    assert (module.memory_min, module.memory_max, module.has_start) == (3, 7, False)


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


def test_agrees_with_wasmtime_on_an_artifact(small_artifact: Callable[[str], Path]) -> None:
    path = small_artifact("wasm32-simd128")
    theirs = wasmtime.Module.from_file(wasmtime.Engine(), str(path))
    with path.open("rb") as stream:
        ours = read_module(stream)
    assert set(ours.exports) == {e.name for e in theirs.exports}
    assert len(ours.imports) == len(list(theirs.imports)) == 0
