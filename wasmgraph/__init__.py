"""wasmgraph compiles trained neural networks, weights included, into single WebAssembly modules.

>>> import wasmgraph as wg
>>> artifact = wg.compile(wg.fetch("resnet50"), target="wasm32-simd128")   # doctest: +SKIP
>>> session = wg.load(artifact)                                            # doctest: +SKIP

Names are imported when they are first used: running needs no compiler, reporting no engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wasmgraph.artifact import Artifact as Artifact
    from wasmgraph.compiler import compile as compile
    from wasmgraph.errors import WasmgraphError as WasmgraphError
    from wasmgraph.limits import Limits as Limits
    from wasmgraph.models import fetch as fetch
    from wasmgraph.records import results as results
    from wasmgraph.runtimes import Session as Session
    from wasmgraph.runtimes import load as load
    from wasmgraph.runtimes.session_pool import SessionPool as SessionPool
    from wasmgraph.targets import target_names as target_names
    from wasmgraph.tensors import TensorSpec as TensorSpec

_HOMES = {
    "Artifact": "artifact",
    "Session": "runtimes",
    "SessionPool": "runtimes.session_pool",
    "Limits": "limits",
    "TensorSpec": "tensors",
    "WasmgraphError": "errors",
    "compile": "compiler",
    "fetch": "models",
    "load": "runtimes",
    "results": "records",
    "target_names": "targets",
}

__all__ = [
    "Artifact",
    "Limits",
    "Session",
    "SessionPool",
    "TensorSpec",
    "WasmgraphError",
    "compile",
    "fetch",
    "load",
    "results",
    "target_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wasmgraph' has no attribute {name!r}")
    return getattr(import_module(f"wasmgraph.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
