from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime

from wasmgraph.wasm.wasmcode import ATOMIC, SIMD, opcodes, relaxed_count
from wasmgraph.wasm.wasmfile import MalformedError, read_module

EVERY_IMMEDIATE = """(module (memory 1 2 shared) (table 1 funcref) (type $t (func))
  (global $g (mut i32) (i32.const 0))
  (func $f (param i32) (result i32) (local v128 i64 f32) (local $d f64)
    (block (loop (br_if 1 (local.get 0)) (br_table 0 1 0 (i32.const -5))))
    (if (local.get 0) (then nop) (else (call_indirect (type $t) (i32.const 0))))
    (local.set 2 (i64.const -1234567890123)) (local.set 3 (f32.const 1.5)) (local.set $d (f64.const 2.5))
    (global.set $g (memory.grow (memory.size)))
    (memory.copy (i32.const 0) (i32.const 1) (i32.const 2))
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 2))
    (drop (i32.trunc_sat_f32_s (local.get 3)))
    (local.set 1 (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 31
      (v128.const i32x4 1 2 3 4) (local.get 1)))
    (local.set 1 (f32x4.replace_lane 3 (v128.load offset=70000 align=1 (i32.const 0)) (local.get 3)))
    (local.set 1 (v128.load32_lane 2 (i32.const 4) (local.get 1)))
    (local.set 1 (f32x4.relaxed_madd (local.get 1) (local.get 1) (local.get 1)))
    (local.set 1 (i8x16.relaxed_swizzle (local.get 1) (local.get 1)))
    (drop (select (result i32) (i32.const 1) (i32.const 2) (local.get 0)))
    (atomic.fence) (drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1)))
    (memory.atomic.notify (i32.const 0) (i32.const 1))))"""


def test_every_kind_of_immediate_is_passed_over() -> None:
    stream = io.BytesIO(wasmtime.wat2wasm(EVERY_IMMEDIATE))
    found = opcodes(stream, read_module(stream))
    assert relaxed_count(found) == 2
    assert found[SIMD, 0x105] == 1
    assert {opcode for prefix, opcode in found if prefix == ATOMIC} == {0x00, 0x03, 0x1E}
    assert found[0, 0x0B] == 4  # function, block, loop, if


def test_our_modules_are_read_to_their_end(small_artifact: Callable[[str], Path]) -> None:
    counts = {}
    for target in ("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "wasm32-simd128-threads"):
        with small_artifact(target).open("rb") as stream:
            counts[target] = opcodes(stream, read_module(stream))
    assert {t for t, found in counts.items() if relaxed_count(found)} == {"wasm32-relaxed-simd"}
    assert {t for t, found in counts.items() if any(p == ATOMIC for p, _ in found)} == {
        "wasm32-simd128-threads"
    }
    assert not any(prefix == SIMD for prefix, _ in counts["wasm32"])


def test_what_is_no_instruction_is_said() -> None:
    code = wasmtime.wat2wasm("(module (func nop))")
    broken = code.replace(b"\x01\x0b", b"\xff\x0b")
    stream = io.BytesIO(broken)
    with pytest.raises(MalformedError, match="0xff is no instruction"):
        opcodes(stream, read_module(stream))
