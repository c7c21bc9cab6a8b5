"""What is measured: a backend is a target under a runtime, or a peer by its own name."""

from __future__ import annotations

from dataclasses import dataclass

from bench.peers import PEERS
from wasmgraph.errors import UsageError
from wasmgraph.targets import get_target

REFERENCE = "onnxruntime"


@dataclass(frozen=True)
class Backend:
    """``target`` is None for a peer, which runs the ``.onnx`` file itself."""

    name: str
    runtime: str
    target: str | None


DEFAULT = (
    "wasm32@wasmtime",
    "wasm32-simd128@wasmtime",
    "wasm32-simd128@node",
    "native@tvm",
    "native-128@tvm",
    "ort-web",
    "tfjs-wasm",
    REFERENCE,
)
_RUNTIME_KINDS = {"wasmtime": "wasm", "node": "wasm", "tvm": "native"}


def parse(name: str) -> Backend:
    """Read ``target@runtime``, ``onnxruntime`` or a peer's name."""
    if name == REFERENCE or name in PEERS:
        return Backend(name, name, None)
    target, at, runtime = name.partition("@")
    if not at or runtime not in _RUNTIME_KINDS:
        raise UsageError(f"unknown backend {name!r}; examples: {', '.join(DEFAULT)}.")
    if get_target(target).kind != _RUNTIME_KINDS[runtime]:
        raise UsageError(f"backend {name!r}: {runtime} runs {_RUNTIME_KINDS[runtime]} targets.")
    return Backend(name, runtime, target)
