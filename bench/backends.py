"""What is measured: a backend is a target under a runtime, or a peer by its own name."""

from __future__ import annotations

from dataclasses import dataclass

from bench.peers import PEERS
from wasmgraph.errors import UsageError
from wasmgraph.targets import get_target

REFERENCE = "onnxruntime"


@dataclass(frozen=True)
class Backend:
    """``target`` is None for a peer, which runs the ``.onnx`` file itself; the name of a backend with more
    than one thread ends in their number: ``ort-web:2``."""

    name: str
    runtime: str
    target: str | None
    threads: int = 1

    @property
    def reference(self) -> str:
        """Whom it is compared with: onnxruntime with as many threads."""
        return _named(REFERENCE, self.threads)


DEFAULT = (
    "wasm32@wasmtime",
    "wasm32-simd128@wasmtime",
    "wasm32-relaxed-simd@wasmtime",
    "wasm32-simd128-threads@wasmtime:2",
    "wasm32-simd128@node",
    "wasm32-relaxed-simd@node",
    "native@tvm",
    "native-128@tvm",
    "ort-web",
    "ort-web:2",
    "tfjs-wasm",
    REFERENCE,
    f"{REFERENCE}:2",
)
_RUNTIME_KINDS = {
    "wasmtime": "wasm",
    "wasmtime-unoptimized": "wasm",
    "wasmtime-winch": "wasm",
    "node": "wasm",
    "tvm": "native",
}
_THREADED_PEERS = (REFERENCE, "ort-web")


def _named(name: str, threads: int) -> str:
    return name if threads == 1 else f"{name}:{threads}"


def parse(name: str, threads: int = 1) -> Backend:
    """Read ``target@runtime``, ``onnxruntime`` or a peer's name, all with ``:N`` for N threads.

    ``threads`` is for names that do not say; backends that have but one thread keep to it.

    Raises
    ------
    UsageError, TargetError
        There is no such backend, or it has not so many threads.
    """
    plain, colon, count = name.partition(":")
    if colon and not (count.isdecimal() and int(count)):
        raise UsageError(f"backend {name!r}: what follows the colon is a number of threads.")
    target: str | None
    if plain == REFERENCE or plain in PEERS:
        target, runtime, threaded = None, plain, plain in _THREADED_PEERS
    else:
        target, at, runtime = plain.partition("@")
        if not at or runtime not in _RUNTIME_KINDS:
            raise UsageError(f"unknown backend {name!r}; examples: {', '.join(DEFAULT)}.")
        described = get_target(target)
        if described.kind != _RUNTIME_KINDS[runtime]:
            raise UsageError(f"backend {name!r}: {runtime} runs {_RUNTIME_KINDS[runtime]} targets.")
        threaded = described.threaded
    wanted = int(count) if colon else threads if threaded else 1
    if wanted > 1 and not threaded:
        raise UsageError(f"backend {name!r}: {plain} has one thread.")
    return Backend(_named(plain, wanted), runtime, target, wanted)


def parse_list(names: str, threads: int) -> list[Backend]:
    """Read a comma-separated list, each backend once; ``default`` stands for :data:`DEFAULT`."""
    spelled = [n for name in names.split(",") for n in (DEFAULT if name.strip() == "default" else [name])]
    parsed = [parse(name.strip(), threads) for name in spelled]
    return list({backend.name: backend for backend in parsed}.values())
