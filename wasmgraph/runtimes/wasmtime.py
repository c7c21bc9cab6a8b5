"""Wasmtime: copies tensors directly into and out of linear memory."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import wasmtime

from wasmgraph.abi import LOAD
from wasmgraph.artifact import Artifact, Placed, check_computed, given, held
from wasmgraph.errors import ArtifactError, ExecutionError, UsageError
from wasmgraph.runtimes.base import LoadOptions, Runtime, Session, distribution_bytes
from wasmgraph.runtimes.checks import check
from wasmgraph.runtimes.failures import failure
from wasmgraph.runtimes.parameters import params_file, refusal
from wasmgraph.runtimes.views import Views
from wasmgraph.runtimes.wasmtime_engine import EngineConfig, compiled_module, new_store
from wasmgraph.runtimes.wasmtime_pool import Pool, Thread, cause
from wasmgraph.runtimes.wasmtime_wasi import instantiate
from wasmgraph.tensors import Array, TensorSpec
from wasmgraph.wasm.wasmfile import PAGE_BYTES


class WasmtimeSession(Session):
    """One instance, or several that share a memory. Every access to linear memory is checked against its
    current size. ``module`` is the artifact's compiled module, if another session already has it."""

    def __init__(
        self,
        artifact: Artifact,
        config: EngineConfig,
        threads: int,
        params_folder: Path | None = None,
        module: wasmtime.Module | None = None,
    ) -> None:
        super().__init__(artifact.inputs, artifact.outputs, given(artifact.manifest.dims))
        manifest, self._shape = artifact.manifest, check(artifact)
        self._artifact, self._config, self._threads = artifact, config, threads
        self._params_folder = params_folder
        self._where = str(artifact.path)
        self._input_views = Views(manifest.inputs)
        self._output_views = Views(manifest.outputs)
        self._checks = manifest.checks
        self._dims = manifest.dims
        self._computed = any(dim.computed for dim in manifest.dims)
        self.values = {dim.name: dim.most for dim in manifest.dims}
        self._module = module or compiled_module(artifact, config)
        self._params = params_file(artifact, params_folder)
        self._pool: Pool | None = None
        self._memory: wasmtime.Memory | wasmtime.SharedMemory
        self._extent = (0, 0)
        self._dim_views: dict[str, Array] = {}
        try:
            self._instantiate()
            if self._params is not None and (code := self._main.call(LOAD)):
                self.close()
                raise refusal(artifact, self._params, code)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise ArtifactError(
                f"{artifact.path} cannot be instantiated: {cause(error)}", check="instance"
            ) from error
        self._look()
        self.survives_fork = self._pool is None and sys.platform == "linux"

    def _instantiate(self) -> None:
        folder = self._params.parent if self._params else None
        if self._shape.memory_shared:
            self._pool = Pool(self._config, self._module, self._shape, self._threads, self._where, folder)
            self._main, self._memory = self._pool.main, self._pool.memory
            self._finalizer = weakref.finalize(self, self._pool.close)
            return
        store = new_store(self._config, (self._shape.memory_max or 0) * PAGE_BYTES)
        if folder is None:
            exports = wasmtime.Instance(store, self._module, []).exports(store)
        else:
            exports = instantiate(store, self._module, self._config, folder)
        self._main, self._memory = Thread(store, exports, 0), exports["memory"]

    def _look(self) -> None:
        """Renew the views of inputs and outputs if the memory has moved or changed its size."""
        if isinstance(self._memory, wasmtime.Memory):
            size = self._memory.data_len(self._main.store)
            pointer = self._memory.data_ptr(self._main.store)
        else:
            size, pointer = self._memory.data_len(), self._memory.data_ptr()
        base = ctypes.addressof(pointer.contents)
        if (base, size) != self._extent:
            self._extent = (base, size)
            self._input_views.forget()
            self._output_views.forget()
            placed = [Placed(dim.name, (), "int32", dim.offset) for dim in self._dims]
            self._dim_views = {dim.name: self._view(dim, dim.spec) for dim in placed}

    def _view(self, tensor: Placed, spec: TensorSpec) -> Array:
        base, size = self._extent
        nbytes = spec.nbytes
        if tensor.offset < 0 or tensor.offset % 4 or tensor.offset + nbytes > size:
            raise ArtifactError(
                f"{self._where}: {tensor.spec} at {tensor.offset} lies outside the memory of {size} bytes."
            )
        raw = (ctypes.c_ubyte * nbytes).from_address(base + tensor.offset)
        return np.frombuffer(memoryview(raw), dtype=tensor.dtype).reshape(spec.static_shape)

    def _found(self) -> dict[str, int]:
        """The values that the graph has computed."""
        return {dim.name: int(self._dim_views[dim.name]) for dim in self._dims if dim.computed}

    def _run_at(self, arrays: list[Array], values: Mapping[str, int]) -> list[Array]:
        self.values |= values
        for name, value in values.items():
            self._dim_views[name][...] = value
        return self._run(arrays)

    def _run(self, arrays: list[Array]) -> list[Array]:
        for view, array in zip(self._input_views.at(self.values, self._view), arrays, strict=True):
            np.copyto(view, array)
        self._call("wasmgraph_run")
        if self._computed:
            self.values |= check_computed(self._dims, self._found())
        return [view.copy() for view in self._output_views.at(self.values, self._view)]

    def _call(self, name: str, *arguments: int) -> None:
        try:
            error = (self._pool or self._main).call(name, *arguments)
        except (wasmtime.WasmtimeError, wasmtime.Trap, ExecutionError) as trap:
            if self._pool is None:  # the trap did not reset the module's stack pointer
                trapped = self._main.store
                self._instantiate()
                trapped.close()
            raise ExecutionError(f"{self._where} trapped: {cause(trap)}") from trap
        finally:
            self._look()  # only the module's own code can have made its memory grow
        if error:
            values = {**self.values, **held(self._dims, self._found())}
            checks = [check.at(values) for check in self._checks]
            raise failure(self._where, name, error, checks, self._code_at, self._dims)

    def _code_at(self, offset: int) -> int:
        placed = Placed("a check", (), "int64", offset)
        return int(self._view(placed, placed.spec))

    @property
    def fuel(self) -> int:
        """The fuel that is left of :data:`FUEL`, under a configuration that counts it."""
        left: int = self._main.store.get_fuel()
        return left

    @property
    def memory_bytes(self) -> int:
        """Current size of the linear memory."""
        return self._extent[1]

    def _run_step(self, index: int) -> None:
        if self._main.exports.get("wasmgraph_step") is None:
            raise UsageError(f"{self._where} does not export wasmgraph_step.")
        self._call("wasmgraph_step", index)

    def _clone(self) -> Session:
        return WasmtimeSession(
            self._artifact, self._config, self._threads, self._params_folder, self._module
        )

    def _release(self) -> None:
        self._input_views.forget()
        self._output_views.forget()
        self._dim_views, self._extent = {}, (0, 0)
        if self._pool is None:
            self._main.store.close()
        else:
            self._finalizer()
        del self._module


class WasmtimeRuntime(Runtime):
    """Runs wasm artifacts in Wasmtime; without ``config``, in the configuration that users get."""

    accepts = "wasm"

    def __init__(self, name: str = "wasmtime", config: EngineConfig | None = None) -> None:
        self.name = name
        self._config = config or EngineConfig()

    def version(self) -> str:
        """Wasmtime's version."""
        return version("wasmtime")

    def config(self) -> str:
        """Compiler and checks."""
        return str(self._config)

    def engine_bytes(self) -> int:
        """Size of the Python package, which contains Wasmtime."""
        return distribution_bytes("wasmtime")

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Check the artifact, compile it or take it from the cache, instantiate it, start its threads."""
        artifact = Artifact.open(path)
        options.check(artifact)
        return WasmtimeSession(artifact, self._config, options.threads, options.params_folder)
