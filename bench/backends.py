"""Names of what is measured: backends, the peers among them, and models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from wasmgraph import backends
from wasmgraph.backends import REFERENCE, Backend
from wasmgraph.errors import UsageError

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
NOOP, NOOP_OPEN = "noop", "noop-open"
Values = tuple[tuple[str, int], ...]  # of dimensions, by name
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


def values_name(values: Mapping[str, int]) -> str:
    """How a model's name in results ends at these values of its dimensions: ``@batch=1,seq=8``."""
    return "@" + ",".join(f"{name}={value}" for name, value in values.items()) if values else ""


def values_of(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The values of ``--dim seq=8,32,128`` in order, by dimension.

    Raises
    ------
    UsageError
        An option is written in another way, or names a dimension again.
    """
    found: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, equals, values = option.partition("=")
        name = name.strip()
        if not name or not equals or not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", values):
            raise UsageError(
                f"--dim {option!r}: expected a dimension and the values to measure, seq=8,32,128."
            )
        if name in found:
            raise UsageError(f"--dim {option!r}: {name} has values already.")
        found[name] = tuple(sorted({int(value) for value in values.split(",")}))
    return found


def points(values: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Every combination of the dimensions' values; one without any where there are no dimensions."""
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]
