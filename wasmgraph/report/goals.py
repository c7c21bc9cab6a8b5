"""What the project sets out to reach on ResNet-50 and some other nets, beside what a run measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wasmgraph.report.summary import Row, Summary

_SIMD, _SCALAR = "wasm32-simd128@wasmtime", "wasm32@wasmtime"
_NATIVE, _NATIVE_128 = "native@tvm", "native-128@tvm"
_REFERENCE = "onnxruntime"
_OTHER_NETS = ("light_squeezenet", "light_densenet121", "light_shufflenet", "light_inception_v2")


@dataclass(frozen=True)
class Goal:
    """``at_most``: smaller is better. ``measured`` is None where the run did not measure it."""

    figure: str
    measured: float | None
    bound: float
    aim: float
    at_most: bool
    percent: bool = False

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
        return f"{value:.0%}" if self.percent else f"{value:.2f}"

    @property
    def sign(self) -> str:
        """``≤`` or ``≥``."""
        return "≤" if self.at_most else "≥"


def goals(summary: Summary, model: str) -> list[Goal]:
    """The goals of a model at batch 1 and one thread; most models have none."""
    rows = {row.backend: row for row in summary.rows if row.model == model}
    first = next(iter(rows.values()))
    if (first.get("threads"), first.get("batch")) != (1, 1):
        return []

    def ratio(over: str, under: str) -> float | None:
        if not {over, under} <= rows.keys():
            return None
        above, below = rows[over].median_s, rows[under].median_s
        return above / below if above and below else None

    def field(backend: str, read: Callable[[Row], float | None]) -> float | None:
        return read(rows[backend]) if backend in rows else None

    if model in _OTHER_NETS:
        fallbacks = field(_SIMD, lambda row: row.get("ops_fallback"))
        return [
            Goal(f"{_SIMD} over {_REFERENCE}", ratio(_SIMD, _REFERENCE), 4.5, 4.5, True),
            Goal("operators that no rule schedules", fallbacks, 0, 0, True),
        ]
    if model != "resnet50":
        return []
    found = [
        Goal(f"{_SIMD} over {_REFERENCE}", ratio(_SIMD, _REFERENCE), 3.8, 2.8, True),
        Goal(f"{_SCALAR} over {_SIMD}", ratio(_SCALAR, _SIMD), 3.5, 4.2, False),
        Goal(f"{_SIMD} over {_NATIVE_128}", ratio(_SIMD, _NATIVE_128), 1.45, 1.15, True),
        Goal(f"{_NATIVE} over {_REFERENCE}", ratio(_NATIVE, _REFERENCE), 1.5, 1.0, True),
    ]
    shares = ((_SIMD, 0.69, 0.85), (_SCALAR, 0.55, 0.8), (_NATIVE, 0.6, 0.8), (_NATIVE_128, 0.75, 0.8))
    for backend, bound, aim in shares:
        share = field(backend, lambda row: row.get("direct_share"))
        figure = f"direct convolutions, share of roofline, {backend}"
        found.append(Goal(figure, share, bound, aim, False, percent=True))
    other = field(_SIMD, lambda row: row.get("other_share"))
    found.append(Goal(f"time outside convolutions, {_SIMD}", other, 0.06, 0.06, True, percent=True))
    return found
