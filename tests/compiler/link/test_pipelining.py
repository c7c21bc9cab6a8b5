from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import wasmgraph as wg
from tests.conftest import model_of
from wasmgraph.abi import READ_AHEAD_BYTES
from wasmgraph.compiler.link.pipelining import _TOUCHED_BYTES, MOST_STRIDE, _choice, pipeline, pipelined
from wasmgraph.host import cpu_features
from wasmgraph.wasm.wasmcode import SIMD, functions, opcodes
from wasmgraph.wasm.wasmfile import leb128, read_module

FLAG = 1024
WEIGHTS, PIXELS, RESULTS = 4096, 1 << 16, 1 << 18


def product(
    pixels: int,
    vectors: int,
    stride: int = 4,
    fused: bool = False,
    scaled: bool = False,
    extra: str = "",
    counted: str = "(local.tee $k (i32.add (local.get $k) (i32.const 1)))",
) -> str:
    """``f(weights, pixels, results, turns)``: rows of a product, as LLVM writes its loops.

    ``scaled``: addresses are computed from the turn's number, as without loop strength reduction.
    """
    cells = [(p, v) for p in range(pixels) for v in range(vectors)]
    row = 1024

    def pixel(number: int) -> str:
        if scaled:
            turn = f"(i32.add (local.get $x) (i32.mul (local.get $k) (i32.const {stride})))"
            return f"(v128.load32_splat offset={number * row} (local.tee $at {turn}))"
        own = f"(i32.add (local.get $x) (i32.const {number * row}))" if number else "(local.get $x)"
        return f"(v128.load32_splat {own})"

    weight = f"(i32.add (local.get $w) (i32.mul (local.get $k) (i32.const {16 * vectors})))"
    lines = []
    for p in range(pixels):
        lines.append(f"(local.set $b {pixel(p)})")
        for v in range(vectors):
            place = weight if scaled else "(local.get $w)"
            if not p:
                lines.append(f"(local.set $w{v} (v128.load offset={16 * v} {place}))")
            a, b, w = f"(local.get $a{p}_{v})", "(local.get $b)", f"(local.get $w{v})"
            sum_ = f"(f32x4.relaxed_madd {b} {w} {a})" if fused else f"(f32x4.add (f32x4.mul {b} {w}) {a})"
            lines.append(f"(local.set $a{p}_{v} {sum_})")
    if not scaled:
        lines.append(f"(local.set $x (i32.add (local.get $x) (i32.const {stride})))")
        lines.append(f"(local.set $w (i32.add (local.get $w) (i32.const {16 * vectors})))")
    variables = " ".join(
        [f"(local $w{v} v128)" for v in range(vectors)] + [f"(local $a{p}_{v} v128)" for p, v in cells]
    )
    stores = " ".join(
        f"(v128.store offset={16 * (p * vectors + v)} (local.get $r) (local.get $a{p}_{v}))"
        for p, v in cells
    )
    return f"""(module (memory (export "memory") 8)
      (func $kernel (export "f") (param $w i32) (param $x i32) (param $r i32) (param $n i32) (result i32)
        (local $k i32) (local $at i32) (local $b v128) {variables}
        (loop {" ".join(lines)} {extra} (br_if 0 (i32.lt_u {counted} (local.get $n))))
        {stores} (i32.const 7)))"""


def run(raw: bytes, turns: int, cells: int, plain: int = 0) -> np.ndarray:
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    exports = wasmtime.Instance(store, wasmtime.Module(engine, raw), []).exports(store)
    memory = exports["memory"]
    values = np.random.default_rng(turns).standard_normal(1 << 16).astype(np.float32)
    memory.write(store, values[: (PIXELS - WEIGHTS) // 4].tobytes(), WEIGHTS)
    memory.write(store, values.tobytes()[: RESULTS - PIXELS], PIXELS)
    memory.write(store, plain.to_bytes(4, "little"), FLAG)
    assert exports["f"](store, WEIGHTS, PIXELS, RESULTS, turns) == 7
    return np.frombuffer(memory.read(store, RESULTS, RESULTS + 16 * cells), np.float32)


def rewritten(
    text: str, folder: Path, flag: int | None = FLAG, streaming: Sequence[str] = ()
) -> tuple[bytes, bytes, int]:
    path = folder / "module.wasm"
    before = bytes(wasmtime.wat2wasm(text))
    path.write_bytes(before)
    loops = pipeline(path, flag, streaming)
    return before, path.read_bytes(), loops


def splats(raw: bytes) -> int:
    stream = io.BytesIO(raw)
    return opcodes(stream, read_module(stream))[SIMD, 9]


@settings(deadline=None, max_examples=40)
@given(
    pixels=st.integers(1, 4),
    vectors=st.integers(1, 4),
    turns=st.integers(1, 20),
    stride=st.sampled_from([0, 4, 12, 64]),
    scaled=st.booleans(),
)
def test_results_are_those_of_the_loop_as_it_was(
    pixels: int,
    vectors: int,
    turns: int,
    stride: int,
    scaled: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = product(pixels, vectors, stride, scaled=scaled)
    before, after, loops = rewritten(text, tmp_path_factory.mktemp("pipelining"))
    assert loops == 1
    assert splats(after) == splats(before) * 3  # before the loop, in it, and in the other version
    expected = run(before, turns, pixels * vectors)
    for plain in (0, 1):
        assert np.array_equal(run(after, turns, pixels * vectors, plain), expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_fused_additions_are_made_in_two_steps_for_cranelift(tmp_path: Path, scaled: bool) -> None:
    before, after, loops = rewritten(product(2, 4, fused=True, scaled=scaled), tmp_path)
    two_steps, _, _ = rewritten(product(2, 4, scaled=scaled), tmp_path)
    assert loops == 1
    assert np.array_equal(run(after, 30, 8), run(two_steps, 30, 8))
    assert np.array_equal(run(after, 30, 8, plain=1), run(before, 30, 8))


def test_a_pixel_is_loaded_where_it_is_broadcast(tmp_path: Path) -> None:
    """In Cranelift's code; the loop as LLVM writes it broadcasts from registers."""

    def broadcasts(raw: bytes) -> tuple[int, int]:
        code = bytes(wasmtime.Module(wasmtime.Engine(), raw).serialize())
        (tmp_path / "code.elf").write_bytes(code)
        # VEX.128.66.0F38 18 (vbroadcastss) and 58 (vpbroadcastd), by whether the operand is a register.
        found = [0, 0]
        for at in range(len(code) - 5):
            vex, second, third, opcode, operand = code[at : at + 5]
            if vex == 0xC4 and second & 0x1F == 2 and third & 0x7F == 0x79 and opcode in (0x18, 0x58):
                found[operand >> 6 == 3] += 1
        return found[0], found[1]

    if "avx2" not in cpu_features():
        pytest.skip("this processor has no AVX2")
    raw = bytes(wasmtime.wat2wasm(product(2, 4)))
    assert broadcasts(raw) == (0, 2)
    assert broadcasts(pipelined(raw)) == (4, 0)


KEPT = {
    "a store in the loop": product(2, 4, extra="(f32.store (i32.const 0) (f32.const 1))"),
    "a branch in the loop": product(2, 4, extra="(if (local.get $at) (then nop))"),
    "an address that does not grow evenly": product(
        2, 4, extra="(local.set $x (i32.add (local.get $x) (local.get $k)))"
    ),
    "an address of which nothing is known": product(
        2, 4, extra="(local.set $x (i32.xor (local.get $x) (i32.const 4)))"
    ),
    "an address that grows by more than memory has room for": product(2, 4, stride=MOST_STRIDE + 4),
    "an address that shrinks": product(2, 4, stride=-4),
    "no broadcast": product(2, 4).replace("load32_splat", "load"),
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_what_is_not_understood_is_kept(text: str, tmp_path: Path) -> None:
    before, after, loops = rewritten(text, tmp_path)
    assert loops == 0
    names = read_module(io.BytesIO(before)).custom("name")
    assert names is not None
    assert after == before[: names.start]


@pytest.mark.parametrize("scaled", [False, True])
def test_what_the_condition_advances_has_not_yet_grown_when_pixels_are_read(
    tmp_path: Path, scaled: bool
) -> None:
    advanced = "(i32.mul (local.tee $x (i32.add (local.get $x) (i32.const 4))) (i32.const 0))"
    counted = f"(i32.add {advanced} (local.tee $k (i32.add (local.get $k) (i32.const 1))))"
    before, after, loops = rewritten(product(2, 4, scaled=scaled, counted=counted), tmp_path)
    assert loops == 1
    assert np.array_equal(run(after, 9, 8), run(before, 9, 8))


@pytest.mark.parametrize(("pixels", "vectors"), [(4, 2), (3, 2), (2, 4), (1, 1)])
def test_weights_are_touched_ahead(pixels: int, vectors: int, tmp_path: Path) -> None:
    """At most as far ahead as a module has memory behind its last tensor."""
    text = product(pixels, vectors)
    before, after, _ = rewritten(text, tmp_path, streaming=["kernel"])
    _, still, _ = rewritten(text, tmp_path, streaming=["another"])

    def loads(raw: bytes) -> int:
        return opcodes(io.BytesIO(raw), read_module(io.BytesIO(raw)))[0, 0x28]

    assert (loads(before), loads(still), loads(after)) == (0, 1, 2)  # one chooses the version
    assert read_module(io.BytesIO(after)).custom("name") is None
    assert _TOUCHED_BYTES + 4 <= READ_AHEAD_BYTES
    assert np.array_equal(run(after, 9, pixels * vectors), run(before, 9, pixels * vectors))


def test_an_address_above_two_gibibytes_is_written_as_a_signed_number() -> None:
    first, *_ = _choice(3 << 30, 0, 1)
    assert first.operands.signed() == -(1 << 30)


def test_artifacts_have_both_versions(small_artifact: Callable[[str], Path]) -> None:
    for target in ("wasm32-simd128", "wasm32-relaxed-simd", "wasm32-simd128-threads"):
        with small_artifact(target).open("rb") as stream:
            module = read_module(stream)
            assert opcodes(stream, module)[0, 0x03] > 0
        assert module.exports["wasmgraph_plain_loops"] == "global"
        assert module.global_values["wasmgraph_plain_loops"] % 4 == 0


def test_a_kernel_with_large_weights_loads_ahead_and_one_with_small_weights_does_not() -> None:
    def ahead(width: int) -> int:
        weights = np.ones((width, 128), np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        artifact = wg.compile(model_of(nodes, {"x": [8, width]}, ["y"], {"w": weights}))
        raw = artifact.path.read_bytes()
        module = read_module(io.BytesIO(raw))
        assert {s.name for s in module.sections if s.id == 0} <= {"wasmgraph", "wasmgraph.sha256"}
        code = module.code
        assert code is not None
        found = functions(raw[code.offset : code.offset + code.size])
        load = b"\x28\x02" + leb128(_TOUCHED_BYTES)
        return sum(i.raw == load for function in found for i in function.instructions)

    assert ahead(64) == 0
    assert ahead(256) > 0
