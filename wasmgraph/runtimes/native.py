"""Native artifacts: the same kernels and entry, compiled by TVM for this processor."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from wasmgraph.artifact import Artifact, Placed
from wasmgraph.errors import ArtifactError, TargetError
from wasmgraph.host import cpu_features
from wasmgraph.runtimes.base import LoadOptions, Runtime, Session
from wasmgraph.runtimes.failures import failure
from wasmgraph.tensors import Array

_ALIGNMENT = 64


class NativeSession(Session):
    """A loaded library with an arena of its own. The library is native code: load only your own."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact.inputs, artifact.outputs)
        manifest = artifact.manifest
        self._where = str(artifact.path)
        missing = sorted(set(manifest.cpu_features) - set(cpu_features()))
        if missing:
            raise TargetError(
                f"{artifact.path} was compiled for a processor with {', '.join(missing)}; this one"
                " has none. Compile the model here, or use a wasm target."
            )
        try:
            library = ctypes.CDLL(str(artifact.path.resolve()))
            self._entry = library.wasmgraph_native_run
            self._step = library.wasmgraph_native_step
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"{artifact.path} cannot be loaded: {error}") from error
        self._entry.argtypes, self._entry.restype = [ctypes.c_void_p], ctypes.c_int32
        self._step.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self._step.restype = ctypes.c_int32
        raw = np.zeros(manifest.arena_bytes + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self._arena = raw[start : start + manifest.arena_bytes]
        self._placed_inputs, self._placed_outputs = manifest.inputs, manifest.outputs
        self._checks = manifest.checks

    def _view(self, tensor: Placed) -> Array:
        raw = self._arena[tensor.offset : tensor.offset + tensor.spec.nbytes]
        return raw.view(tensor.dtype).reshape(tensor.shape)

    def _run(self, arrays: list[Array]) -> list[Array]:
        for tensor, array in zip(self._placed_inputs, arrays, strict=True):
            np.copyto(self._view(tensor), array)
        error = self._entry(self._arena.ctypes.data)
        if error:
            raise failure(self._where, "wasmgraph_native_run", error, self._checks, self._code_at)
        return [self._view(tensor).copy() for tensor in self._placed_outputs]

    def run_step(self, index: int) -> None:
        """Run one call of the plan."""
        self._check_open()
        error = self._step(self._arena.ctypes.data, index)
        if error:
            raise failure(self._where, f"wasmgraph_native_step({index})", error, (), self._code_at)

    def _code_at(self, offset: int) -> int:
        return int(self._arena[offset : offset + 8].view(np.int64)[0])


class NativeRuntime(Runtime):
    """Runs native artifacts: TVM's own code on this processor."""

    name = "tvm"
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
        """Nothing: the library is the engine."""
        return 0

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Check and load the library."""
        artifact = Artifact.open(path)
        options.check(artifact)
        return NativeSession(artifact)
