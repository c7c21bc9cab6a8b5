"""No module that is not what wasmgraph makes is ever instantiated; each check is hit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import wasmtime

import wasmgraph as wg
from wasmgraph import artifact as a
from wasmgraph.errors import ArtifactError
from wasmgraph.files import sha256_file
from wasmgraph.runtimes.checks import CHECKS, check

RUN = '(func (export "wasmgraph_run") (result i32) i32.const 0)'
STEP = '(func (export "wasmgraph_step") (param i32) (result i32) i32.const 0)'
MEMORY = '(memory (export "memory") 2000 2000)'
GOOD = f"(module {MEMORY} {RUN} {STEP})"
SHARED = '(import "env" "memory" (memory 2000 2010 shared))'
POOL = """
  (global (export "__stack_pointer") (mut i32) (i32.const 65536))
  (func (export "wasmgraph_init"))
  (func (export "wasmgraph_threads") (param i32))
  (func (export "wasmgraph_worker") (result i32) i32.const 0)
  (func (export "wasmgraph_fail"))
  (func (export "wasmgraph_stop"))"""


def forge(path: Path, template: Path, wat: str, **changes: object) -> Path:
    """A sealed artifact with another module in it."""
    manifest = a.Artifact.open(template).manifest
    path.write_bytes(wasmtime.wat2wasm(wat))
    a.seal(path, dataclasses.replace(manifest, **changes))
    return path


@pytest.fixture
def template(small_artifact) -> Path:
    return small_artifact("wasm32")


def test_what_the_forgeries_start_from_is_sound(tmp_path: Path, template: Path) -> None:
    wg.load(forge(tmp_path / "plain.wasm", template, GOOD)).close()
    wat = f"(module {SHARED} {RUN} {STEP} {POOL})"
    wg.load(forge(tmp_path / "threads.wasm", template, wat)).close()


MODULES = {
    "imports": [
        (f'(module (import "env" "f" (func)) {MEMORY} {RUN} {STEP})', "imports env.f; .*imports nothing"),
        (f'(module (import "wasi_snapshot_preview1" "fd_write" (func)) {MEMORY} {RUN} {STEP})', "fd_write"),
        (f'(module (import "env" "memory" (memory 2000 2000)) {RUN} {STEP})', "imports env.memory"),
        (f'(module {SHARED} (import "env" "f" (func)) {RUN} {STEP} {POOL})', r"kind imports env.memory\."),
        (f'(module (import "my" "memory" (memory 1 9 shared)) {RUN} {STEP} {POOL})', "imports my.memory"),
    ],
    "exports": [
        (f"(module {MEMORY} {STEP})", r"does not export wasmgraph_run \(\) -> i32"),
        (f'(module {MEMORY} {STEP} (func (export "wasmgraph_run")))', "wasmgraph_run"),
        (f'(module {MEMORY} {RUN} (global (export "wasmgraph_step") i32 (i32.const 0)))', "wasmgraph_step"),
        (f"(module (memory 2000 2000) {RUN} {STEP})", "does not export memory"),
        (f"(module {SHARED} {RUN} {STEP} {POOL.replace('i32) (i32', 'f32) (f32')})", "__stack_pointer i32"),
        (f"(module {SHARED} {RUN} {STEP})", r"wasmgraph_threads \(i32\) -> \(\), .*__stack_pointer"),
    ],
    "start": [(f"(module {MEMORY} {RUN} {STEP} (func $f) (start $f))", "would run unasked")],
    "memory": [
        (f'(module (memory (export "memory") 2000) {RUN} {STEP})', "any number of pages"),
        (f'(module (memory (export "memory") 2000 2001) {RUN} {STEP})', "from 2000 to 2001 pages"),
        (f'(module (memory (export "memory") i64 2000 2000) {RUN} {STEP})', "64-bit memory"),
        (f'(module {MEMORY} (memory 1 1) {RUN} {STEP})', "2 memories"),
    ],
    "tensors": [
        (f'(module (memory (export "memory") 0 0) {RUN} {STEP})', "outside the memory of 0 bytes"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "wat", "words"), [(check, *case) for check, cases in MODULES.items() for case in cases]
)
@pytest.mark.parametrize("runtime", ["wasmtime", "node"])
def test_a_module_of_another_kind(
    tmp_path: Path, template: Path, runtime: str, check: str, wat: str, words: str
) -> None:
    forged = forge(tmp_path / "forged.wasm", template, wat)
    with pytest.raises(ArtifactError, match=words) as caught:
        wg.load(forged, runtime=runtime)
    assert caught.value.check == check


def moved(tensor: a.Placed, offset: int) -> tuple[a.Placed]:
    return (dataclasses.replace(tensor, offset=offset),)


def test_a_manifest_that_claims_another_module(tmp_path: Path, template: Path) -> None:
    manifest = a.Artifact.open(template).manifest
    x, output = manifest.inputs[0], manifest.outputs[0]
    claims = [
        ("tensors", {"inputs": moved(x, 2000 * 65536 - 8)}, "outside the memory"),
        ("tensors", {"inputs": moved(x, 12)}, "not aligned"),
        ("tensors", {"checks": (a.Check("node 'n'", "Gather", 0, 1, 2000 * 65536),)}, "a check's code"),
        ("tensors", {"inputs": moved(x, output.offset)}, "overlap"),
        ("tensors", {"param_bytes": 1 << 40}, "arena and parameters"),
        ("names", {"inputs": (x, *moved(x, 64 << 20))}, "two of its inputs"),
        ("features", {"features": ("simd128", "telepathy")}, "needs telepathy, which no target has"),
    ]
    for name, changes, words in claims:
        with pytest.raises(ArtifactError, match=words) as caught:
            wg.load(forge(tmp_path / "forged.wasm", template, GOOD, **changes))
        assert caught.value.check == name
    assert {name for name, *_ in claims} | MODULES.keys() == CHECKS.keys()


@pytest.mark.parametrize("target", ["wasm32", "native", "onnx"])
def test_the_file_that_was_asked_for(small_artifact, small_onnx: Path, target: str) -> None:
    path = small_onnx if target == "onnx" else small_artifact(target)
    digest = sha256_file(path) if target == "onnx" else a.Artifact.open(path).sha256
    wg.load(path, sha256=digest.upper()).close()
    with pytest.raises(ArtifactError, match="another file than was expected") as caught:
        wg.load(path, sha256="0" * 64)
    assert caught.value.check == "sha256"


def test_pages_of_a_shared_memory_that_are_not_the_modules(tmp_path: Path, template: Path) -> None:
    path = forge(tmp_path / "threads.wasm", template, f"(module {SHARED} {RUN} {STEP} {POOL})")
    artifact = a.Artifact.open(path)
    assert artifact.manifest.memory_pages == (2000, 2010)
    lying = dataclasses.replace(artifact.manifest, memory_pages=(1, 2010))
    forged = a.Artifact(path, lying, artifact.sha256, artifact.module, artifact._covered)
    with pytest.raises(ArtifactError, match="its manifest says memory of"):
        check(forged)
