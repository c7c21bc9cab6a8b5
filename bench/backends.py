"""Names of what is measured: backends, the peers among them, and models."""

from __future__ import annotations

import re
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
_SHAPED = re.compile(r"(.+)@(\d+(?:x\d+)*)")


def parse(name: str, threads: int = 1) -> Backend:
    """:func:`wasmgraph.backends.parse`, peers included."""
    return backends.parse(name, threads, PEER_THREADS)


def parse_list(names: str, threads: int) -> list[Backend]:
    """:func:`wasmgraph.backends.parse_list`, peers included; ``default`` stands for :data:`DEFAULT`."""
    return backends.parse_list(names, threads, DEFAULT, PEER_THREADS)


def split_shape(model: str) -> tuple[str, tuple[int, ...] | None]:
    """A model's name or file, and the shape of its first input where that follows: ``minilm@1x128``."""
    found = _SHAPED.fullmatch(model)
    if found is None:
        return model, None
    return found[1], tuple(int(size) for size in found[2].split("x"))


def model_name(model: str) -> str:
    """What a model is called in results: its name, or its file's without the ending, with its shape if that
    was asked for."""
    plain, _ = split_shape(model)
    return (Path(plain).stem if plain.endswith(".onnx") else plain) + model[len(plain) :]
