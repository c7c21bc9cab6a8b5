"""Native artifacts: the same kernels and entry, compiled by TVM for this processor."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from wasmgraph.artifact import Artifact, Placed, check_computed, given, held
from wasmgraph.errors import ArtifactError, CacheError, TargetError
from wasmgraph.files import cache_dir, prune, renew, replacing
from wasmgraph.host import cpu_features
from wasmgraph.runtimes.base import LoadOptions, Runtime, Session
from wasmgraph.runtimes.failures import failure
from wasmgraph.runtimes.views import Views
from wasmgraph.tensors import Array, TensorSpec

_ALIGNMENT = 64
_CACHE_BYTES = 4 << 30  # of copies; the least recently used is deleted first


class _Library:
    """A native artifact's code and parameters, loaded from a private copy, so that changes to the file have
    no effect. The library is unloaded when no session refers to it any more."""

    def __init__(self, artifact: Artifact) -> None:
        try:
            library = _from_cache(artifact) or _from_memory(artifact)
            unload = weakref.finalize(self, _ctypes.dlclose, library._handle)
            unload.atexit = False  # a thread may still run in it
            self.run, self.step = library.wasmgraph_native_run, library.wasmgraph_native_step
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"{artifact.path} cannot be loaded: {error}") from error
        self.run.argtypes, self.run.restype = [ctypes.c_void_p], ctypes.c_int32
        self.step.argtypes, self.step.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_int32


# The dynamic loader identifies libraries by path: for a path that it knows, it returns the library that is
# already loaded. The paths used here therefore contain a digest of the content.


def _from_cache(artifact: Artifact) -> ctypes.CDLL | None:
    """Load from the user's cache, where every process finds the same copy; None without a usable cache."""
    with suppress(CacheError, OSError):
        path = cache_dir("native") / artifact.sha256
        if not path.exists():
            with replacing(path) as copy:
                artifact.copy_to(copy)
            prune(path.parent, _CACHE_BYTES)
        renew(path)
        return ctypes.CDLL(str(path))
    return None


def _from_memory(artifact: Artifact) -> ctypes.CDLL:
    """Load from a copy that is deleted with the library. Where the system supports it, the copy is a file
    in memory, because the folder for temporary files may forbid execution."""
    with tempfile.TemporaryDirectory(prefix="wasmgraph-") as place:
        path = Path(place) / artifact.sha256
        if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
            memory = os.memfd_create("wasmgraph-native")
            path.symlink_to(f"/proc/self/fd/{memory}")
            copy = os.fdopen(memory, "wb")
        else:
            copy = path.open("wb")
        with copy:
            artifact.copy_to(copy)
            return ctypes.CDLL(str(path))


_LIBRARIES: weakref.WeakValueDictionary[str, _Library] = weakref.WeakValueDictionary()  # by digest


def _library(artifact: Artifact) -> _Library:
    """Return the library with an artifact's content, loaded once per process."""
    return _LIBRARIES.get(artifact.sha256) or _LIBRARIES.setdefault(artifact.sha256, _Library(artifact))


class NativeSession(Session):
    """A loaded library with an arena of its own. The library is native code that nothing confines: load
    only artifacts that you compiled yourself."""

    survives_fork = True

    def __init__(self, artifact: Artifact, library: _Library) -> None:
        super().__init__(artifact.inputs, artifact.outputs, given(artifact.manifest.dims))
        manifest = artifact.manifest
        self._artifact, self._library = artifact, library
        raw = np.zeros(manifest.arena_bytes + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self._arena = raw[start : start + manifest.arena_bytes]
        self._input_views = Views(manifest.inputs)
        self._output_views = Views(manifest.outputs)
        self._checks = manifest.checks
        self._dims = manifest.dims
        self.values = {dim.name: dim.most for dim in manifest.dims}
        self._dim_views = {
            dim.name: self._arena[dim.offset : dim.offset + 4].view(np.int32) for dim in manifest.dims
        }
        self._address = self._arena.ctypes.data

    def _view(self, tensor: Placed, spec: TensorSpec) -> Array:
        raw = self._arena[tensor.offset : tensor.offset + spec.nbytes]
        return raw.view(tensor.dtype).reshape(spec.static_shape)

    def _found(self) -> dict[str, int]:
        """The values that the graph has computed."""
        return {dim.name: int(self._dim_views[dim.name][0]) for dim in self._dims if dim.computed}

    def _run_at(self, arrays: list[Array], values: Mapping[str, int]) -> list[Array]:
        self.values |= values
        for name, value in values.items():
            self._dim_views[name][0] = value
        return self._run(arrays)

    def _run(self, arrays: list[Array]) -> list[Array]:
        for view, array in zip(self._input_views.at(self.values, self._view), arrays, strict=True):
            np.copyto(view, array)
        error = self._library.run(self._address)
        if error:
            self.values |= held(self._dims, self._found())
            raise failure(
                str(self._artifact.path),
                "wasmgraph_native_run",
                error,
                [check.at(self.values) for check in self._checks],
                self._code_at,
                self._dims,
            )
        self.values |= check_computed(self._dims, self._found())
        return [view.copy() for view in self._output_views.at(self.values, self._view)]

    def _run_step(self, index: int) -> None:
        error = self._library.step(self._address, index)
        if error:
            raise failure(
                *(str(self._artifact.path), f"wasmgraph_native_step({index})", error, (), self._code_at),
                dims=self._dims,
            )

    def _code_at(self, offset: int) -> int:
        return int(self._arena[offset : offset + 8].view(np.int64)[0])

    def _clone(self) -> Session:
        return NativeSession(self._artifact, self._library)

    def _release(self) -> None:
        del self._library, self._arena, self._input_views, self._output_views, self._dim_views


class NativeRuntime(Runtime):
    """Runs native artifacts: TVM's own code on this processor."""

    name = "native"
    accepts = "native"

    def version(self) -> str:
        """TVM's version, where it is installed; a native artifact does not need it to run."""
        try:
            return version("apache-tvm")
        except PackageNotFoundError:
            return "not installed"

    def config(self) -> str:
        """How the code is called."""
        return "raw-pointer kernels, no TVM runtime"

    def engine_bytes(self) -> int:
        """0: the artifact is a library that needs no engine."""
        return 0

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Check and load the library."""
        artifact = Artifact.open(path)
        options.check(artifact)
        missing = sorted(set(artifact.manifest.cpu_features) - set(cpu_features()))
        if missing:
            raise TargetError(
                f"{artifact.path} was compiled for a processor with {', '.join(missing)}; this one"
                " has none. Compile the model here, or use a wasm target."
            )
        return NativeSession(artifact, _library(artifact))
