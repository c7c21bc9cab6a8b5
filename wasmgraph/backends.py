"""Backends by name: a target under a runtime, or an engine that runs the ``.onnx`` file itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wasmgraph.errors import UsageError
from wasmgraph.targets import get_target

REFERENCE = "onnxruntime"
CLOSED = "+closed"
# What the runtime "native" was called: it needs nothing of TVM.
OLD_NATIVE = "tvm"
OLD_NATIVE_WARNING = "the runtime 'tvm' is called 'native'; the old name goes with the next release."
OURS = (
    "wasm32@wasmtime",
    "wasm32-simd128@wasmtime",
    "wasm32-simd128-threads@wasmtime:2",
    "native@native",
)
_RUNTIME_KINDS = {
    "wasmtime": "wasm",
    "wasmtime-unoptimized": "wasm",
    "wasmtime-winch": "wasm",
    "node": "wasm",
    "native": "native",
}


@dataclass(frozen=True)
class Backend:
    """``target`` is None for an engine that runs the ``.onnx`` file; the name of a backend with more than
    one thread ends in their number: ``onnxruntime:2``. A ``closed`` backend compiles a model of open
    dimensions for the very values at which it runs it."""

    name: str
    runtime: str
    target: str | None
    threads: int = 1
    closed: bool = False

    @property
    def reference(self) -> str:
        """The backend that this one is compared with: onnxruntime with as many threads."""
        return _named(REFERENCE, self.threads)


def _named(name: str, threads: int) -> str:
    return name if threads == 1 else f"{name}:{threads}"


def parse(name: str, threads: int = 1, peers: Mapping[str, bool] | None = None) -> Backend:
    """Read ``target@runtime``, ``target@runtime+closed`` or an engine's name, all with ``:N`` for N
    threads.

    Parameters
    ----------
    threads : for names without ``:N``; backends that can only use one thread ignore it
    peers : engines beside onnxruntime that run ``.onnx`` files, and whether they have threads

    Raises
    ------
    UsageError, TargetError
        There is no such backend, or it cannot use as many threads.
    """
    engines = {REFERENCE: True, **(peers or {})}
    plain, colon, count = name.partition(":")
    if colon and not (count.isdecimal() and int(count)):
        raise UsageError(f"backend {name!r}: what follows the colon is a number of threads.")
    target: str | None
    closed = False
    if plain in engines:
        target, runtime, threaded = None, plain, engines[plain]
    else:
        target, at, runtime = plain.partition("@")
        runtime, plus, how = runtime.partition("+")
        closed = bool(plus)
        if closed and f"+{how}" != CLOSED:
            raise UsageError(f"backend {name!r}: what follows the plus is 'closed'.")
        if runtime == OLD_NATIVE:
            warnings.warn(OLD_NATIVE_WARNING, FutureWarning, stacklevel=2)
            runtime = "native"
            plain = f"{target}@{runtime}{CLOSED if closed else ''}"
        if not at or runtime not in _RUNTIME_KINDS:
            examples = ", ".join([*OURS, *engines])
            raise UsageError(f"unknown backend {name!r}; examples: {examples}.")
        described = get_target(target)
        if described.kind != _RUNTIME_KINDS[runtime]:
            raise UsageError(f"backend {name!r}: {runtime} runs {_RUNTIME_KINDS[runtime]} targets.")
        threaded = described.threaded
    wanted = int(count) if colon else threads if threaded else 1
    if wanted > 1 and not threaded:
        raise UsageError(f"backend {name!r}: {plain} has one thread.")
    return Backend(_named(plain, wanted), runtime, target, wanted, closed)


def parse_list(
    names: str, threads: int, default: Sequence[str], peers: Mapping[str, bool] | None = None
) -> list[Backend]:
    """Read a comma-separated list, each backend once; the word ``default`` stands for ``default``."""
    spelled = [n for name in names.split(",") for n in (default if name.strip() == "default" else [name])]
    parsed = [parse(name.strip(), threads, peers) for name in spelled]
    return list({backend.name: backend for backend in parsed}.values())
