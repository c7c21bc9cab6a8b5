"""Wasmtime's engines, by configuration, and the cache of compiled modules."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import wasmtime

from wasmgraph.artifact import Artifact
from wasmgraph.errors import ArtifactError, CacheError, MissingDependencyError
from wasmgraph.files import cache_dir, cache_lock, prune, renew, write_atomically
from wasmgraph.host import cpu_features, cpu_name

FUEL = 2**63
# WebAssembly features that no graph needs. Disabling them exposes less of the engine to untrusted modules.
_UNUSED = (
    *("memory64", "multi_memory", "tail_call", "function_references", "gc", "exceptions"),
    *("stack_switching", "custom_page_sizes", "wide_arithmetic"),
)
_TABLE_ELEMENTS = 10_000  # a graph calls its kernels directly
_CACHE_BYTES = 4 << 30  # of compiled code; the least recently used is deleted first


@dataclass(frozen=True)
class EngineConfig:
    """One of Wasmtime's compilers and its optimisation level. Compiled code checks neither epochs nor fuel:
    that would halve the speed of inner loops. With ``fuel``, it counts instructions, for
    runtimes/wasmtime_meter.py alone."""

    strategy: Literal["cranelift", "winch"] = "cranelift"
    opt_level: Literal["speed", "none"] = "speed"
    fuel: bool = False

    def __str__(self) -> str:
        level = f", opt {self.opt_level}" if self.strategy == "cranelift" else ""
        return f"{self.strategy}{level}, {'fuel' if self.fuel else 'no fuel'}, no epochs"


_ENGINES: dict[EngineConfig, wasmtime.Engine] = {}


def engine(config: EngineConfig) -> wasmtime.Engine:
    """Return the engine of a configuration. A process has only one of each, because a module cannot be
    instantiated in a store of another engine. Memories reserve 4 GiB, so that code needs no bounds checks.

    Raises
    ------
    MissingDependencyError
        Wasmtime's Python package does not offer that compiler (version 50 has no Winch).
    """
    if config not in _ENGINES:
        _ENGINES.setdefault(config, _new_engine(config))  # if two threads race, both get the same
    return _ENGINES[config]


def _new_engine(config: EngineConfig) -> wasmtime.Engine:
    chosen = wasmtime.Config()
    try:
        chosen.strategy = config.strategy
    except wasmtime.WasmtimeError as error:
        raise MissingDependencyError(
            f"wasmtime {version('wasmtime')} for Python does not offer {config.strategy}: {error}."
        ) from error
    if config.strategy == "cranelift":
        chosen.cranelift_opt_level = config.opt_level
        chosen.shared_memory = True
    else:
        chosen.wasm_threads = False  # Winch compiles no atomics
    for feature in _UNUSED:
        setattr(chosen, f"wasm_{feature}", False)
    chosen.consume_fuel = config.fuel
    return wasmtime.Engine(chosen)


def new_store(config: EngineConfig, memory_bytes: int) -> wasmtime.Store:
    """Return a store for one instance with one memory of at most that size, and with maximal fuel."""
    store = wasmtime.Store(engine(config))
    store.set_limits(
        memory_size=memory_bytes, instances=1, memories=1, tables=1, table_elements=_TABLE_ELEMENTS
    )
    if config.fuel:
        store.set_fuel(FUEL)
    return store


def _compiled_path(sha256: str, config: EngineConfig) -> Path:
    key = "\n".join([sha256, version("wasmtime"), str(config), cpu_name(), *cpu_features()])
    return cache_dir("compiled") / f"{hashlib.sha256(key.encode()).hexdigest()}.cwasm"


def compiled_module(artifact: Artifact, config: EngineConfig) -> wasmtime.Module:
    """Return the compiled module, from the cache if this user's cache holds it.

    Compiled code is native code: it is only read from a directory that no other user can write to.
    Without such a cache the module is compiled each time.

    Raises
    ------
    ArtifactError
        The engine refuses the module; the message says which features it needs.
    """
    if config.fuel:  # used once
        return _compile(artifact, config)
    try:
        path = _compiled_path(artifact.sha256, config)
    except CacheError:
        return _compile(artifact, config)
    if not path.exists():
        with cache_lock(path):
            if not path.exists():
                module = _compile(artifact, config)
                with suppress(OSError):  # a full disk only makes the next load slower
                    write_atomically(path, bytes(module.serialize()))
                    os.utime(path)
                    prune(path.parent, _CACHE_BYTES)
                return module
    try:
        if os.name == "posix" and path.stat().st_uid != os.geteuid():
            return _compile(artifact, config)
        renew(path)
        return wasmtime.Module.deserialize_file(engine(config), str(path))
    except (wasmtime.WasmtimeError, OSError):
        path.unlink(missing_ok=True)
        return _compile(artifact, config)


def _compile(artifact: Artifact, config: EngineConfig) -> wasmtime.Module:
    try:
        module = wasmtime.Module.from_file(engine(config), str(artifact.path))
    except wasmtime.WasmtimeError as error:
        needs = ", ".join(artifact.manifest.features) or "nothing beyond WebAssembly 1.0"
        raise ArtifactError(
            f"{artifact.path}: Wasmtime ({config}) refuses the module, which needs {needs}: {error}",
            check="engine",
        ) from error
    artifact.check_unchanged()  # the code is cached under its digest
    return module
