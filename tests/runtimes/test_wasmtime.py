from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import wasmtime

import wasmgraph as wg
from wasmgraph import artifact as a
from wasmgraph.errors import ArtifactError, ExecutionError
from wasmgraph.runtimes.wasmtime_engine import EngineConfig, _compiled_path


def test_compiled_code_is_cached_and_private(empty_cache: Path, small_artifact) -> None:
    path = small_artifact("wasm32-simd128")
    wg.load(path).close()
    (compiled,) = (empty_cache / "compiled").glob("*.cwasm")
    written = compiled.stat().st_mtime_ns
    wg.load(path).close()
    assert compiled.stat().st_mtime_ns == written
    assert compiled.parent.stat().st_mode & 0o022 == 0


def test_a_damaged_cache_entry_is_replaced(
    empty_cache: Path, small_artifact, small_input: np.ndarray
) -> None:
    path = small_artifact("wasm32-simd128")
    wg.load(path).close()
    (compiled,) = (empty_cache / "compiled").glob("*.cwasm")
    compiled.write_bytes(b"not compiled code")
    with wg.load(path) as session:
        session.run({"x": small_input})


def test_works_without_a_usable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_artifact, small_input: np.ndarray
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WASMGRAPH_CACHE", str(tmp_path / "file"))
    with wg.load(small_artifact("wasm32")) as session:
        session.run({"x": small_input})


def test_the_key_follows_digest_engine_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    default = EngineConfig()
    base = _compiled_path("0" * 64, default)
    assert _compiled_path("1" * 64, default) != base
    assert _compiled_path("0" * 64, EngineConfig(opt_level="none")) != base
    monkeypatch.setattr("wasmgraph.runtimes.wasmtime_engine.cpu_features", lambda: ("less",))
    assert _compiled_path("0" * 64, default) != base
    monkeypatch.undo()
    monkeypatch.setattr("wasmgraph.runtimes.wasmtime_engine.version", lambda _: "51.0")
    assert _compiled_path("0" * 64, default) != base


def forge(path: Path, template: Path, wat: str, **changes: object) -> Path:
    """A sealed artifact with another module in it."""
    manifest = a.Artifact.open(template).manifest
    path.write_bytes(wasmtime.wat2wasm(wat))
    a.seal(path, dataclasses.replace(manifest, **changes))
    return path


def test_a_trap_is_an_error_and_the_session_lives_on(tmp_path: Path, small_artifact, small_input) -> None:
    wat = """(module (memory (export "memory") 2000)
      (func (export "wasmgraph_run") (result i32) unreachable))"""
    with wg.load(forge(tmp_path / "trap.wasm", small_artifact("wasm32"), wat)) as session:
        for _ in range(2):
            with pytest.raises(ExecutionError, match="trapped"):
                session.run({"x": small_input})


def test_an_error_code_is_an_error(tmp_path: Path, small_artifact, small_input: np.ndarray) -> None:
    wat = """(module (memory (export "memory") 2000)
      (func (export "wasmgraph_run") (result i32) i32.const 7))"""
    with wg.load(forge(tmp_path / "code.wasm", small_artifact("wasm32"), wat)) as session:
        with pytest.raises(ExecutionError, match="returned 7"):
            session.run({"x": small_input})


@pytest.mark.parametrize(
    ("wat", "words"),
    [
        ('(module (memory (export "memory") 1))', "does not export"),
        ('(module (memory (export "memory") 0) (func (export "wasmgraph_run") (result i32) i32.const 0))',
         "lies outside the memory of 0 bytes"),
        ('(module (import "env" "f" (func)) (memory (export "memory") 1))', "imports functions"),
    ],
)  # fmt: skip
def test_the_manifest_is_checked_against_the_module(
    tmp_path: Path, small_artifact, wat: str, words: str
) -> None:
    with pytest.raises(ArtifactError, match=words):
        wg.load(forge(tmp_path / "forged.wasm", small_artifact("wasm32"), wat))
