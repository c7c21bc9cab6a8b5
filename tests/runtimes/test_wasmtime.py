from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import wasmtime

import wasmgraph as wg
from tests.runtimes.test_checks import GOOD, forge
from wasmgraph.errors import ArtifactError, ExecutionError, MissingDependencyError
from wasmgraph.runtimes import wasmtime_engine
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


def test_a_file_that_is_replaced_while_it_is_loaded(
    empty_cache: Path,
    small_artifact,
    tmp_path: Path,
    small_input: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other file's code stood in the cache under this file's digest, for every later load."""
    path = tmp_path / "graph.wasm"
    path.write_bytes(small_artifact("wasm32").read_bytes())
    other, opened = small_artifact("wasm32-simd128").read_bytes(), wg.Artifact.open

    def open_and_replace(path: Path) -> wg.Artifact:
        artifact = opened(path)
        path.write_bytes(other)
        return artifact

    with monkeypatch.context() as patch:
        patch.setattr(wg.Artifact, "open", open_and_replace)
        with pytest.raises(ArtifactError, match="was replaced while it was loaded"):
            wg.load(path)
        path.write_bytes(small_artifact("wasm32").read_bytes())
        if shutil.which("node"):
            with pytest.raises(ArtifactError, match="was replaced while it was loaded"):
                wg.load(path, runtime="node")
    assert not list((empty_cache / "compiled").glob("*.cwasm"))
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


def test_a_trap_is_an_error_and_the_session_lives_on(tmp_path: Path, small_artifact, small_input) -> None:
    wat = GOOD.replace("i32.const 0", "unreachable")
    with wg.load(forge(tmp_path / "trap.wasm", small_artifact("wasm32"), wat)) as session:
        for _ in range(2):
            with pytest.raises(ExecutionError, match="trapped"):
                session.run({"x": small_input})


def test_an_error_code_is_an_error(tmp_path: Path, small_artifact, small_input: np.ndarray) -> None:
    wat = GOOD.replace("i32.const 0", "i32.const 7")
    with wg.load(forge(tmp_path / "code.wasm", small_artifact("wasm32"), wat)) as session:
        with pytest.raises(ExecutionError, match="returned 7"):
            session.run({"x": small_input})


def test_without_optimisation_the_bits_are_the_same(small_artifact, small_input: np.ndarray) -> None:
    for target in ("wasm32", "wasm32-simd128"):
        path = small_artifact(target)
        with wg.load(path) as default, wg.load(path, runtime="wasmtime-unoptimized") as other:
            expected, found = default.run({"x": small_input}), other.run({"x": small_input})
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])


def test_a_compiler_that_is_not_there_is_named(small_artifact) -> None:
    try:
        wasmtime.Config().strategy = "winch"
    except wasmtime.WasmtimeError:
        with pytest.raises(MissingDependencyError, match="does not offer winch"):
            wg.load(small_artifact("wasm32"), runtime="wasmtime-winch")
    else:
        wg.load(small_artifact("wasm32"), runtime="wasmtime-winch").close()


def test_an_engine_without_a_feature_refuses_and_names_it(
    tmp_path: Path, small_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = wasmtime.Config()
    lacking.wasm_relaxed_simd = False
    monkeypatch.setenv("WASMGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("wasmgraph.runtimes.wasmtime_engine.engine", lambda _: wasmtime.Engine(lacking))
    with pytest.raises(ArtifactError, match="refuses the module, which needs simd128, relaxed-simd"):
        wg.load(small_artifact("wasm32-relaxed-simd"))


def test_threads_that_load_at_once_get_one_engine(
    small_artifact, small_input: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = wasmtime_engine._new_engine

    def slowly(config: EngineConfig) -> wasmtime.Engine:
        time.sleep(0.05)
        return make(config)

    monkeypatch.setattr(wasmtime_engine, "_ENGINES", {})
    monkeypatch.setattr(wasmtime_engine, "_new_engine", slowly)
    results: list[object] = []

    def work() -> None:
        try:
            with wg.load(small_artifact("wasm32-simd128")) as session:
                results.append(session.run({"x": small_input})["logits"].tobytes())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(type, results))) == len(set(results)) == 1
    assert isinstance(results[0], bytes), results
