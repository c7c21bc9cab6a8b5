"""The project's goals on ResNet-50, networks of text and some others, compared with a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from wasmgraph.backends import CLOSED
from wasmgraph.report.summary import Row, Summary, format_bytes, format_difference, format_figure

_SIMD, _SCALAR = "wasm32-simd128@wasmtime", "wasm32@wasmtime"
_RELAXED, _THREADS = "wasm32-relaxed-simd@wasmtime", "wasm32-simd128-threads@wasmtime:2"
_SIMD_V8, _RELAXED_V8 = "wasm32-simd128@node", "wasm32-relaxed-simd@node"
_NATIVE, _NATIVE_128 = "native@native", "native-128@native"
_REFERENCE, _ORT_WEB, _TFJS = "onnxruntime", "ort-web", "tfjs-wasm"
_OTHER_NETS = ("light_squeezenet", "light_densenet121", "light_shufflenet", "light_inception_v2")
_PACKAGED = ("romanizer_encoder", "ddddocr")
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
    unit: Literal["ratio", "percent", "bytes", "seconds", "difference"] = "ratio"

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
        if self.unit == "difference":
            return format_difference(value)
        if self.unit == "seconds":
            return f"{format_figure(value)} s" if abs(value) >= 1e-3 else f"{value * 1e6:.0f} µs"
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
    """The goals of a model; most models have none, and of ResNet-50 and its like only batch 1 has."""
    figures = _Figures([row for row in summary.rows if row.model == model])
    if "=" in model:
        return _open_goals(summary, model, figures)
    found = _text_goals(summary, model, figures)
    if found or next(iter(figures.rows.values())).get("batch") != 1:
        return found

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


def _open_goals(summary: Summary, model: str, figures: _Figures) -> list[Goal]:
    """The goals of a graph of open dimensions, at some values of these: beside a graph compiled for these
    very values, which has the goals of a closed one, and beside onnxruntime-web."""
    network, closed = model.partition("@")[0], f"{_SIMD}{CLOSED}"
    over_closed = figures.latency(_SIMD, closed)
    if network == "resnet50":
        return [Goal("open over closed", over_closed, 1.05, 1.01)] if model.endswith("@batch=1") else []
    if network != "minilm":
        return []
    found = [Goal("open over closed", over_closed, 1.1, 1.03)]
    first = next(iter(figures.rows.values()))
    if (first.get("length") or 0) >= 32:
        found.append(Goal(f"{_SIMD} over {_ORT_WEB}", figures.latency(_SIMD, _ORT_WEB), 0.85, 0.7))
    rows = figures.rows.get(_SIMD), figures.rows.get(closed)
    seconds = [row.compile_s if row else None for row in rows]
    found.append(Goal("compile time, open over closed", _over(*seconds), 1.5, 1.0))
    code = figures.of(_SIMD, "module_bytes")
    found.append(Goal("module without parameters", code, 300e3, 150e3, unit="bytes"))
    whole = [row for row in summary.rows if row.model.partition("@")[0] == network]
    if _tokens(first) == max(map(_tokens, whole)):
        arena = figures.over("arena_bytes", _SIMD, closed)
        found.append(Goal("arena at the greatest size, open over closed", arena, 1.05, 1.0))
    change = summary.change_s.get(_SIMD)
    found.append(Goal("another size than in the call before costs", change, 20e-6, 5e-6, unit="seconds"))
    return [*found, *_minilm_goals(_Part(figures, closed))]


def _tokens(row: Row) -> int:
    return int((row.get("batch") or 1) * (row.get("length") or 1))


@dataclass(frozen=True)
class _Part:
    """A network of text, or a part of one: the figures of our backend, as goals."""

    figures: _Figures
    backend: str = _SIMD

    def latency(self, under: str, bound: float, aim: float) -> Goal:
        return Goal(f"{self.backend} over {under}", self.figures.latency(self.backend, under), bound, aim)

    def share(self, figure: str, key: str, bound: float, aim: float, at_most: bool = False) -> Goal:
        return Goal(figure, self.figures.of(self.backend, key), bound, aim, at_most, "percent")


def _text_goals(summary: Summary, model: str, figures: _Figures) -> list[Goal]:
    """The goals of a network of text, or of its parts."""
    part, network = _Part(figures), model.partition("@")[0]
    if network == "minilm":
        return list(_minilm_goals(part))
    if network == "byte_classifier":
        return [part.latency(_ORT_WEB, 0.9, 0.6)]
    if network in _PACKAGED:
        return [part.latency(_REFERENCE, 3.5, 2.0)]
    if network == "matrix_vector":
        return [part.share("matrix × vector, share of read bandwidth", "products_read_share", 0.7, 0.9)]
    if network in ("attention_32", "attention_64"):
        return [part.share("attention, share of roofline", "attention_share", 0.6, 0.8)]
    if network in ("lstm_64", "gru_64"):
        return [part.latency(_ORT_WEB, 0.8, 0.5)]
    if network in ("lstm_512", "gru_512"):
        few = _Figures([row for row in summary.rows if row.model == network.replace("512", "16")])
        rows = figures.rows.get(_SIMD), few.rows.get(_SIMD)
        seconds = [row.compile_s if row else None for row in rows]
        sizes = [row.get("module_bytes") if row else None for row in rows]
        return [
            part.latency(_ORT_WEB, 0.8, 0.5),
            Goal("compile time, 512 steps over 16", _over(*seconds), 1.1, 1.0),
            Goal("module without parameters, 512 steps over 16", _over(*sizes), 1.1, 1.0),
        ]
    return []


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _minilm_goals(part: _Part) -> Iterator[Goal]:
    first = next(iter(part.figures.rows.values()))
    batch, length = first.get("batch") or 1, first.get("length") or 1
    if batch * length >= 32:
        yield part.latency(_ORT_WEB, 0.8, 0.68)
        yield part.latency(_REFERENCE, 3.3, 2.6)
        figure = "time outside products and attention"
        yield part.share(figure, "outside_products_share", 0.08, 0.04, at_most=True)
    else:
        yield part.latency(_ORT_WEB, 0.6, 0.35)
    cosine = part.figures.of(part.backend, "cosine_min")
    distance = None if cosine is None else max(0.0, 1 - cosine)
    yield Goal("1 − least cosine", distance, 1e-5, 1e-5, unit="difference")
    if batch * length >= 16:
        yield part.share("products with known weights, share of roofline", "products_share", 0.8, 0.92)
    if length >= 64:
        yield part.share("attention, share of roofline", "attention_share", 0.6, 0.8)
    row = part.figures.rows.get(part.backend)
    yield Goal("compile time", row.compile_s if row else None, 6.0, 3.0, unit="seconds")
