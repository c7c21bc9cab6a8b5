"""Running: load an artifact file into a session."""

from __future__ import annotations

import warnings
from pathlib import Path

from wasmgraph.artifact import Artifact, kind_of
from wasmgraph.backends import OLD_NATIVE, OLD_NATIVE_WARNING
from wasmgraph.errors import UsageError
from wasmgraph.files import expand
from wasmgraph.limits import Limits, check_platform
from wasmgraph.runtimes.base import LoadOptions, Runtime, Session
from wasmgraph.runtimes.native import NativeRuntime
from wasmgraph.runtimes.node import NodeRuntime
from wasmgraph.runtimes.onnxruntime import OnnxRuntime
from wasmgraph.runtimes.wasmtime import WasmtimeRuntime
from wasmgraph.runtimes.wasmtime_engine import EngineConfig

# For each kind of file, the preferred runtime comes first.
_RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        WasmtimeRuntime(),
        WasmtimeRuntime("wasmtime-unoptimized", EngineConfig(opt_level="none")),
        WasmtimeRuntime("wasmtime-winch", EngineConfig("winch")),
        NodeRuntime(),
        NativeRuntime(),
        OnnxRuntime(),
    )
}


def get_runtime(name: str) -> Runtime:
    """Return the runtime with that name.

    Raises
    ------
    UsageError
        There is no such runtime; the message lists those that exist.
    """
    if name == OLD_NATIVE:
        warnings.warn(OLD_NATIVE_WARNING, FutureWarning, stacklevel=3)
        name = "native"
    if name not in _RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}; there are {', '.join(_RUNTIMES)}.")
    return _RUNTIMES[name]


def load(
    source: str | Path | Artifact,
    *,
    runtime: str | None = None,
    threads: int = 1,
    sha256: str | None = None,
    untrusted: bool = False,
    limits: Limits | None = None,
    params_folder: str | Path | None = None,
) -> Session:
    """Load a graph, ready to run.

    Parameters
    ----------
    source : an artifact, or the path of an artifact or an ``.onnx`` file
    runtime : ``wasmtime``, ``wasmtime-unoptimized``, ``wasmtime-winch`` or ``node`` (wasm artifacts),
        ``native`` (native artifacts) or ``onnxruntime`` (``.onnx`` files); by default the first that runs
        this kind of file, which is read from the file itself
    threads : how many threads one inference may use; more than 1 for ``.onnx`` files and artifacts of the
        target ``wasm32-simd128-threads``
    sha256 : the digest that the file must have: for an artifact the one that ``wasmgraph inspect`` prints,
        for an ``.onnx`` file that of the whole file; get it from the file's author over a channel you trust
    untrusted : run a wasm artifact in a child process, which is killed if it exceeds ``limits``;
        SECURITY.md says what each level promises. Needs Linux and Wasmtime
    limits : limits for an untrusted graph; by default 4 GiB, 60 s of processor time and 60 s for loading
        and for each call
    params_folder : the folder of a parameter file, for modules compiled with ``params="wasi"``; by default
        ``wasmgraph-params`` beside the module

    Raises
    ------
    ArtifactError
        The file is truncated, altered, not a wasmgraph artifact, or does not match ``sha256``.
    UsageError
        The runtime does not exist, does not run this kind of file, or does not support limits.
    LimitError
        An untrusted graph exceeded a limit while it was loaded.
    """
    path = source.path if isinstance(source, Artifact) else expand(source)
    kind = kind_of(path)
    if threads < 1:
        raise UsageError(f"threads={threads}: an inference needs at least one thread.")
    if runtime is None:
        chosen = next(r for r in _RUNTIMES.values() if r.accepts == kind)
    else:
        chosen = get_runtime(runtime)
        if chosen.accepts != kind:
            raise UsageError(f"{path} is a {kind} file; {runtime} runs {chosen.accepts} files.")
    folder = None if params_folder is None else str(expand(params_folder).resolve())
    options = LoadOptions(threads, sha256, folder)
    if not untrusted:
        if limits is not None:
            raise UsageError("limits are kept for untrusted graphs only: load with untrusted=True.")
        session = chosen.load(path, options)
        session._source = source
        return session
    check_platform(f"{path} as an untrusted graph")
    if chosen.name != "wasmtime":
        raise UsageError(
            f"{path}: untrusted graphs are wasm artifacts, in Wasmtime; this is a {kind} file"
            f" in {chosen.name}."
        )
    from wasmgraph.runtimes.untrusted import UntrustedSession

    session = UntrustedSession(path, options, limits or Limits())
    session._source = source
    return session


__all__ = ["Limits", "LoadOptions", "Runtime", "Session", "get_runtime", "load"]
