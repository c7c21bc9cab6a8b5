"""WebAssembly text from LLVM's assembly: Wasmtime must accept it and compute the same with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import wasmtime
from onnx import helper

import wasmgraph as wg
from tests.conftest import model_of
from wasmgraph.compiler.inspect.listing import machine_code, wat
from wasmgraph.compiler.plan import symbol_of

ASSEMBLY = """
\t.functype\texpf (f32) -> (f32)
\t.functype\tkernel (i32, i32) -> (i32)
\t.section\t.text.kernel,"",@
kernel:
.Lfunc_begin0:
\t.functype\tkernel (i32, i32) -> (i32)
\t.local  \tv128, f32
\tblock   \t
.LBB0_1:
\tloop    \ti32                             # label1:
\tlocal.get\t0
\tv128.load\t48:p2align=2
\tv128.const\t0x1p0, 0x1.8p1, -nan, 0x0p0
\tf32x4.add
\tlocal.tee\t2
\tlocal.get\t2
\ti8x16.shuffle\t0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3
\tf32x4.extract_lane\t1
\tcall\texpf
\tlocal.set\t3
\tlocal.get\t1
\tlocal.get\t0
\tv128.load\t.LCPI0_0+16
\tv128.store32_lane\t4, 1
\ti32.const\ttable+8
\tlocal.get\t0
\tlocal.get\t1
\ti32.select
\tend_loop
\tdrop
\tend_block
\ti32.const\t0
\tend_function
.Lfunc_end0:
"""


def test_every_construct() -> None:
    text = wat(ASSEMBLY)
    wasmtime.wat2wasm(text)
    for line in (
        '(import "env" "expf" (func $expf (param f32) (result f32)))',
        '(func $kernel (export "kernel") (param i32 i32) (result i32)',
        "v128.load offset=48 align=4",
        "v128.const f32x4 0x1p0 0x1.8p1 -nan 0x0p0",
        "v128.load offset=16 (;.LCPI0_0;)",
        "v128.store32_lane offset=4 1",
        "global.get $table",
    ):
        assert line in text


def test_kernels_as_text_are_the_kernels(tmp_path: Path) -> None:
    """The text, assembled and run by hand, writes what the module writes."""
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], {"x": [5]}, ["y"])
    artifact = wg.compile(model, keep=tmp_path)
    (step,) = artifact.manifest.steps
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, (tmp_path / "graph.wat").read_text())
    exports = wasmtime.Instance(store, module, []).exports(store)
    memory, kernel = exports["memory"], exports[symbol_of(step.kernel)]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(kernel, wasmtime.Func)
    x = np.arange(5, dtype=np.float32)
    memory.write(store, x.tobytes(), 64)
    assert kernel(store, 64, 128) == 0
    np.testing.assert_array_equal(np.frombuffer(memory.read(store, 128, 148), np.float32), -x)


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "wasm32-relaxed-simd"])
def test_machine_code_names_its_kernels(small_onnx: Path, target: str, tmp_path: Path) -> None:
    artifact = wg.compile(onnx.load(small_onnx), target=target, keep=tmp_path)
    code = (tmp_path / "machine-code.elf").read_bytes()
    assert code[:4] == b"\x7fELF"
    for step in artifact.manifest.steps:
        assert step.kernel.encode() in code
    assert machine_code((tmp_path / "graph.wat").read_text()) == code


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128"])
def test_a_maximum_begins_with_infinity(target: str, tmp_path: Path) -> None:
    """LLVM writes ``-infinity``, the text format ``-inf``."""
    model = model_of([helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)], {"x": [3, 40]}, ["y"])
    wg.compile(model, target=target, keep=tmp_path)
    assert "-inf" in (tmp_path / "graph.wat").read_text()


def test_native_keeps_its_intermediate_representation(small_onnx: Path, tmp_path: Path) -> None:
    wg.compile(small_onnx, target="native", keep=tmp_path)
    assert "define" in (tmp_path / "graph.ll").read_text()
    assert not (tmp_path / "graph.wat").exists()
