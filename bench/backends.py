"""Names of what is measured: backends, the peers among them, and models."""

from __future__ import annotations

from pathlib import Path

from wasmgraph import backends
from wasmgraph.backends import REFERENCE, Backend

PEER_THREADS = {"ort-web": True, "tfjs-wasm": False}
DEFAULT = (
    "wasm32@wasmtime",
    "wasm32-simd128@wasmtime",
    "wasm32-relaxed-simd@wasmtime",
    "wasm32-simd128-threads@wasmtime:2",
    "wasm32-simd128@node",
    "wasm32-relaxed-simd@node",
    "native@native",
    "native-128@native",
    "ort-web",
    "ort-web:2",
    "tfjs-wasm",
    REFERENCE,
    f"{REFERENCE}:2",
)
FALLBACK_MODEL = {"resnet50": "resnet50-random"}
NOOP = "noop"


def parse(name: str, threads: int = 1) -> Backend:
    """:func:`wasmgraph.backends.parse`, peers included."""
    return backends.parse(name, threads, PEER_THREADS)


def parse_list(names: str, threads: int) -> list[Backend]:
    """:func:`wasmgraph.backends.parse_list`, peers included; ``default`` stands for :data:`DEFAULT`."""
    return backends.parse_list(names, threads, DEFAULT, PEER_THREADS)


def model_name(model: str) -> str:
    """What a model is called in results: its name, or its file's without the ending."""
    return Path(model).stem if model.endswith(".onnx") else model
