"""A network over the values of its dimensions: latency, ratios, accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from wasmgraph.backends import CLOSED
from wasmgraph.report.summary import (
    Row,
    Summary,
    format_closeness,
    format_count,
    format_difference,
    format_ms,
    format_ratio,
)

Point = tuple[int, ...]  # a value of each dimension
_NUMBER = re.compile(r"[0-9]{1,10}")


def values_of(row: Row) -> Mapping[str, int]:
    """The values of dimensions at which a row was measured, of a network of text at least its batch and the
    length of its texts. Sizes that are no numbers are none."""
    pairs = (each.partition("=") for each in str(row.get("dims") or "").split(","))
    named = {name: int(value) for name, _, value in pairs if _NUMBER.fullmatch(value)}
    if named or row.get("length") is None:
        return named
    return {"batch": int(row.get("batch")), "tokens": int(row.get("length"))}


@dataclass(frozen=True)
class Sweep:
    """One network of a run at several values of its dimensions, and the rows of all of them."""

    network: str
    dims: Sequence[str]
    rows: Sequence[Row]

    @cached_property
    def _places(self) -> dict[tuple[str, Point], Row]:
        return {
            (row.backend, tuple(values_of(row).get(name, 0) for name in self.dims)): row
            for row in self.rows
        }

    @cached_property
    def points(self) -> list[Point]:
        """Where it was measured, in order."""
        return sorted({point for _, point in self._places})

    @cached_property
    def axis(self) -> int:
        """The number of the dimension that has most values, the last of them."""
        many = [len({point[index] for point in self.points}) for index in range(len(self.dims))]
        return max(range(len(many)), key=lambda index: (many[index], index))

    @property
    def title(self) -> str:
        """``minilm over tokens``."""
        return f"{self.network} over {self.dims[self.axis]}"

    @cached_property
    def ours(self) -> list[str]:
        """Backends that run one graph at all values, by name."""
        return sorted({row.backend for row in self.rows if row.get("target") != "onnx"} - set(self.closed))

    @cached_property
    def closed(self) -> list[str]:
        """Backends that run a graph of its own at each value, by name."""
        return sorted({row.backend for row in self.rows if CLOSED in row.backend})

    @cached_property
    def peers(self) -> list[str]:
        """What ours are compared with: closed graphs, and backends that run the ``.onnx`` file."""
        return [*self.closed, *sorted({row.backend for row in self.rows} - {*self.ours, *self.closed})]

    def curves(self, backend: str) -> list[tuple[str, list[tuple[int, Row]]]]:
        """A curve for each value of the other dimensions, with its name: a backend's rows over the values
        of :attr:`axis`, where its latency was measured."""
        found: dict[str, list[tuple[int, Row]]] = {}
        for point in self.points:
            others = [f"{name} {at}" for n, (name, at) in enumerate(self._named(point)) if n != self.axis]
            curve = found.setdefault(", ".join([backend, *others]), [])
            row = self._places.get((backend, point))
            if row is not None and row.median_s is not None:
                curve.append((point[self.axis], row))
        return list(found.items())

    def _named(self, point: Point) -> Iterator[tuple[str, int]]:
        return zip(self.dims, point, strict=True)

    @property
    def columns(self) -> list[str]:
        """Headings of :attr:`cells`."""
        names = [*self.dims, *(f"{backend}, ms" for backend in (*self.ours, *self.peers))]
        for backend in self.ours:
            whose = f"{backend}: " if len(self.ours) > 1 else ""
            names += [f"{whose}over {peer}" for peer in self.peers]
            names += [f"{whose}{name}" for name in self._accuracies]
        return names

    @cached_property
    def _accuracies(self) -> Sequence[str]:
        texts = any(row.get("cosine_min") is not None for row in self.rows)
        return ("1 − least cosine", "same neighbour") if texts else ("agreement", "largest Δ")

    @property
    def cells(self) -> Iterator[list[str]]:
        """A line a point: every backend's median; then for each of ours its ratio to the peers, with an
        interval where that is the reference, and how close its results are to the reference's."""
        for point in self.points:
            rows = {backend: self._places.get((backend, point)) for backend in (*self.ours, *self.peers)}
            line = [*map(str, point), *(format_ms(row and row.median_s) for row in rows.values())]
            for backend in self.ours:
                row = rows[backend]
                line += [_over(row, rows[peer]) for peer in self.peers]
                line += self._accuracy(row) if row else ["–", "–"]
            yield line

    def _accuracy(self, row: Row) -> list[str]:
        if row.get("cosine_min") is not None:
            return [format_closeness(row), format_count(row, "neighbours_agree")]
        return [format_count(row, "agreement"), format_difference(row.get("max_prob_diff"))]


def _over(row: Row | None, peer: Row | None) -> str:
    if row is None or peer is None or not row.median_s or not peer.median_s:
        return "–"
    if row.get("reference") == peer.backend:
        return format_ratio(row)
    return f"{row.median_s / peer.median_s:.2f} ×"


def sweeps(summary: Summary) -> list[Sweep]:
    """Networks that a run measured at two values of their dimensions or more: ``minilm@1x8``,
    ``minilm@1x32``."""
    found: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row in summary.rows:
        if values := values_of(row):
            found.setdefault((row.model.partition("@")[0], tuple(values)), []).append(row)
    several = [Sweep(network, dims, rows) for (network, dims), rows in found.items()]
    return [each for each in several if len(each.points) > 1]
