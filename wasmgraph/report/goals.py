"""The project's goals on ResNet-50 and some other networks, compared with a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wasmgraph.report.summary import Row, Summary, format_bytes

_SIMD, _SCALAR = "wasm32-simd128@wasmtime", "wasm32@wasmtime"
_RELAXED, _THREADS = "wasm32-relaxed-simd@wasmtime", "wasm32-simd128-threads@wasmtime:2"
_SIMD_V8, _RELAXED_V8 = "wasm32-simd128@node", "wasm32-relaxed-simd@node"
_NATIVE, _NATIVE_128 = "native@native", "native-128@native"
_REFERENCE, _ORT_WEB, _TFJS = "onnxruntime", "ort-web", "tfjs-wasm"
_OTHER_NETS = ("light_squeezenet", "light_densenet121", "light_shufflenet", "light_inception_v2")
_SESSION_BYTES = 4_000_000
_AGAINST_ORT_WEB = ("light_squeezenet", "light_densenet121")


@dataclass(frozen=True)
class Goal:
    """``at_most``: smaller is better. ``measured`` is None where the run did not measure it."""

    figure: str
    measured: float | None
    bound: float
    aim: float
    at_most: bool = True
    unit: Literal["ratio", "percent", "bytes"] = "ratio"

    @property
    def reached(self) -> bool | None:
        """Whether the bound holds; None if not measured."""
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def show(self, value: float | None) -> str:
        """A value in the goal's unit."""
        if value is None:
            return "–"
        if self.unit == "bytes":
            return format_bytes(value)
        return f"{value:.0%}" if self.unit == "percent" else f"{value:.2f}"

    @property
    def sign(self) -> str:
        """``≤`` or ``≥``."""
        return "≤" if self.at_most else "≥"


class _Figures:
    """One model's rows, by backend."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row.backend: row for row in rows}

    def latency(self, over: str, under: str) -> float | None:
        """Ratio of median latencies of one run."""
        pair = [self.rows[name].median_s if name in self.rows else None for name in (over, under)]
        return pair[0] / pair[1] if pair[0] and pair[1] else None

    def of(self, backend: str, key: str) -> float | None:
        """A field of a record."""
        value: float | None = self.rows[backend].get(key) if backend in self.rows else None
        return value

    def over(self, key: str, over: str, under: str) -> float | None:
        """Ratio of one field of two records."""
        above, below = self.of(over, key), self.of(under, key)
        return above / below if above is not None and below else None


def goals(summary: Summary, model: str) -> list[Goal]:
    """The goals of a model at batch 1; most models have none."""
    figures = _Figures([row for row in summary.rows if row.model == model])
    if next(iter(figures.rows.values())).get("batch") != 1:
        return []

    def latency(over: str, under: str, bound: float, aim: float, at_most: bool = True) -> Goal:
        return Goal(f"{over} over {under}", figures.latency(over, under), bound, aim, at_most)

    if model in _OTHER_NETS:
        found = [latency(_SIMD, _REFERENCE, 4.5, 4.5)]
        if model in _AGAINST_ORT_WEB:
            found.append(latency(_SIMD, _ORT_WEB, 0.75, 0.75))
        fallbacks = figures.of(_SIMD, "ops_fallback")
        slow = figures.of(_SIMD, "ops_slow")
        return [
            *found,
            Goal("operators that no rule schedules", fallbacks, 0, 0),
            Goal("products by a rule that is not made for them", slow, 0, 0),
        ]
    if model != "resnet50":
        return []
    found = [
        latency(_SIMD, _REFERENCE, 3.8, 2.8),
        latency(_SCALAR, _SIMD, 3.5, 4.2, at_most=False),
        latency(_SIMD, _NATIVE_128, 1.45, 1.15),
        latency(_NATIVE, _REFERENCE, 1.5, 1.0),
        latency(_SIMD, _ORT_WEB, 0.56, 0.42),
        latency(_SIMD_V8, _ORT_WEB, 0.47, 0.36),
        latency(_SIMD, _TFJS, 0.6, 0.45),
        latency(_SIMD_V8, _TFJS, 0.5, 0.38),
        latency(_THREADS, _SIMD, 0.57, 0.53),
        latency(_THREADS, f"{_ORT_WEB}:2", 0.6, 0.45),
        latency(_RELAXED, _SIMD, 1.12, 0.95),
        latency(_RELAXED_V8, _SIMD_V8, 1.0, 0.85),
    ]
    shares = ((_SIMD, 0.69, 0.85), (_SCALAR, 0.55, 0.8), (_NATIVE, 0.6, 0.8), (_NATIVE_128, 0.75, 0.8))
    for backend, bound, aim in shares:
        figure = f"direct convolutions, share of roofline, {backend}"
        share = figures.of(backend, "direct_share")
        found.append(Goal(figure, share, bound, aim, at_most=False, unit="percent"))
    other = figures.of(_SIMD, "other_share")
    found.append(Goal(f"time outside convolutions, {_SIMD}", other, 0.06, 0.06, unit="percent"))
    ready = figures.over("ready_s", _SIMD, _REFERENCE)
    found.append(Goal(f"ready: {_SIMD} over {_REFERENCE}", ready, 0.15, 0.05))
    arena = figures.of(_SIMD, "arena_bytes")
    if arena is not None:
        session = figures.of(_SIMD, "session_bytes")
        figure = f"resident memory of one more session beyond its arena, {_SIMD}"
        extra = None if session is None else session - arena
        found.append(Goal(figure, extra, _SESSION_BYTES, _SESSION_BYTES, unit="bytes"))
    return found
