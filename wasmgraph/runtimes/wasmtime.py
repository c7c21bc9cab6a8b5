"""Wasmtime: compiled code from the user's cache, tensors straight into linear memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import wasmtime

from wasmgraph.artifact import Artifact, Placed
from wasmgraph.errors import ArtifactError, CacheError, ExecutionError, UsageError
from wasmgraph.files import cache_dir, cache_lock, prune, write_atomically
from wasmgraph.host import cpu_features, cpu_name
from wasmgraph.runtimes.base import LoadOptions, Runtime, Session
from wasmgraph.tensors import Array

_CACHE_BYTES = 4 << 30  # of compiled code; the longest unused goes first
_CONFIG = "cranelift, opt speed, no fuel, no epochs"


@cache
def _engine() -> wasmtime.Engine:
    # Wasmtime's defaults: Cranelift at its best, a 4 GiB reservation so that bounds checks vanish.
    # Fuel or epoch checks would halve the speed of inner loops.
    return wasmtime.Engine(wasmtime.Config())


def _compiled_path(sha256: str) -> Path:
    key = "\n".join([sha256, version("wasmtime"), _CONFIG, cpu_name(), *cpu_features()])
    return cache_dir("compiled") / f"{hashlib.sha256(key.encode()).hexdigest()}.cwasm"


def compiled_module(artifact: Artifact) -> wasmtime.Module:
    """Return the compiled module, from the cache if this user's cache holds it.

    Compiled code is native code: it is only ever read from a directory that this user alone can
    write. Without such a cache the module is compiled anew.
    """
    try:
        path = _compiled_path(artifact.sha256)
    except CacheError:
        return _compile(artifact)
    if not path.exists():
        with cache_lock(path):
            if not path.exists():
                module = _compile(artifact)
                with suppress(OSError):  # a full disk costs the next load time, nothing else
                    write_atomically(path, bytes(module.serialize()))
                    os.utime(path)
                    prune(path.parent, _CACHE_BYTES)
                return module
    try:
        if os.name == "posix" and path.stat().st_uid != os.geteuid():
            return _compile(artifact)
        return wasmtime.Module.deserialize_file(_engine(), str(path))
    except (wasmtime.WasmtimeError, OSError):
        path.unlink(missing_ok=True)
        return _compile(artifact)


def _compile(artifact: Artifact) -> wasmtime.Module:
    try:
        return wasmtime.Module.from_file(_engine(), str(artifact.path))
    except wasmtime.WasmtimeError as error:
        raise ArtifactError(f"{artifact.path}: Wasmtime refuses the module: {error}") from error


class WasmtimeSession(Session):
    """One store, one instance. Every access to linear memory is bounded by its size at that moment."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact.inputs, artifact.outputs)
        manifest = artifact.manifest
        self._where = str(artifact.path)
        self._placed_inputs, self._placed_outputs = manifest.inputs, manifest.outputs
        if artifact.module is None or artifact.module.imports:
            raise ArtifactError(f"{artifact.path} imports functions; only self-contained modules are run.")
        module = compiled_module(artifact)
        self._store: wasmtime.Store | None = wasmtime.Store(_engine())
        try:
            exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise ArtifactError(f"{artifact.path} cannot be instantiated: {error}") from error
        memory, run = exports.get("memory"), exports.get("wasmgraph_run")
        if not isinstance(memory, wasmtime.Memory) or not isinstance(run, wasmtime.Func):
            raise ArtifactError(f"{artifact.path} does not export memory and wasmgraph_run.")
        self._memory, self._entry = memory, run
        self._step = exports.get("wasmgraph_step")
        self._extent = (0, 0)
        self._views: tuple[list[Array], list[Array]] = ([], [])
        self._look()

    def _look(self) -> None:
        """Make the views of inputs and outputs anew if the memory has moved or changed its size."""
        size = self._memory.data_len(self._store)
        base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
        if (base, size) != self._extent:
            inputs = [self._view(tensor, base, size) for tensor in self._placed_inputs]
            outputs = [self._view(tensor, base, size) for tensor in self._placed_outputs]
            self._views, self._extent = (inputs, outputs), (base, size)

    def _view(self, tensor: Placed, base: int, size: int) -> Array:
        nbytes = tensor.spec.nbytes
        if tensor.offset < 0 or tensor.offset % 8 or tensor.offset + nbytes > size:
            raise ArtifactError(
                f"{self._where}: {tensor.spec} at {tensor.offset} lies outside the memory of {size} bytes."
            )
        raw = (ctypes.c_ubyte * nbytes).from_address(base + tensor.offset)
        return np.frombuffer(memoryview(raw), dtype=tensor.dtype).reshape(tensor.shape)

    def _run(self, arrays: list[Array]) -> list[Array]:
        self._look()
        for view, array in zip(self._views[0], arrays, strict=True):
            np.copyto(view, array)
        self._call(self._entry, "wasmgraph_run")
        self._look()
        return [view.copy() for view in self._views[1]]

    def _call(self, function: wasmtime.Func, name: str, *arguments: int) -> None:
        try:
            error = function(self._store, *arguments)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as trap:
            first = str(trap).strip().splitlines()[0]
            raise ExecutionError(f"{self._where} trapped: {first}") from trap
        if error:
            raise ExecutionError(f"{self._where}: {name} returned {error}.")

    def run_step(self, index: int) -> None:
        """Run one call of the plan."""
        self._check_open()
        if not isinstance(self._step, wasmtime.Func):
            raise UsageError(f"{self._where} does not export wasmgraph_step.")
        self._call(self._step, f"wasmgraph_step({index})", index)

    def close(self) -> None:
        """Release store and memory."""
        super().close()
        self._views, self._extent = ([], []), (0, 0)
        if self._store is not None:
            self._store.close()
            self._store = None


class WasmtimeRuntime(Runtime):
    """Runs wasm artifacts in Wasmtime."""

    name = "wasmtime"
    accepts = "wasm"

    def version(self) -> str:
        """Wasmtime's version."""
        return version("wasmtime")

    def config(self) -> str:
        """Compiler and checks."""
        return _CONFIG

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Check, compile or take from the cache, instantiate."""
        options.require_one_thread(path)
        return WasmtimeSession(Artifact.open(path))
