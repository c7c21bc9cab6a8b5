"""From native code to scalar WebAssembly, one change at a time: what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wasmgraph.report.summary import Row

_CHAIN = (
    ("native@native", "TVM's code for this processor, full width"),
    ("native-128@native", "128-bit vectors, no fused multiply-add"),
    ("wasm32-simd128@node", "as WebAssembly, in V8"),
    ("wasm32-simd128@wasmtime", "in Wasmtime"),
    ("wasm32@wasmtime", "without vectors"),
)


@dataclass(frozen=True)
class Change:
    """A backend, how it differs from the one before, its median, and the ratio to the median before."""

    backend: str
    what: str
    median_s: float
    factor: float | None


def decomposition(rows: Sequence[Row]) -> list[Change]:
    """The chain for one model, without backends that were not measured. Factors are ratios of medians of
    one interleaved run. Empty if fewer than two were measured."""
    medians = {row.backend: row.median_s for row in rows if row.median_s is not None}
    found: list[Change] = []
    for backend, what in _CHAIN:
        if backend in medians:
            factor = medians[backend] / found[-1].median_s if found else None
            found.append(Change(backend, what, medians[backend], factor))
    return found if len(found) > 1 else []
