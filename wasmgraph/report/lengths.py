"""A network of text over the length of what it reads: latency, ratios, accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from wasmgraph.report.summary import (
    Row,
    Summary,
    format_closeness,
    format_count,
    format_ms,
    format_ratio,
)


@dataclass(frozen=True)
class Lengths:
    """One network of a run in several shapes, and the rows of all of them."""

    network: str
    rows: Sequence[Row]

    @cached_property
    def _places(self) -> dict[tuple[str, int, int], Row]:
        return {(row.backend, int(row.get("batch")), int(row.get("length"))): row for row in self.rows}

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Batches and lengths that were measured, in order."""
        return sorted({(batch, length) for _, batch, length in self._places})

    @cached_property
    def ours(self) -> list[str]:
        """Backends that run compiled graphs, by name."""
        return sorted({row.backend for row in self.rows if row.get("target") != "onnx"})

    @cached_property
    def peers(self) -> list[str]:
        """Backends that run the ``.onnx`` file, by name."""
        return sorted({row.backend for row in self.rows} - set(self.ours))

    def curve(self, backend: str, batch: int) -> list[tuple[int, Row]]:
        """Lengths in order, each with the backend's row, where its latency was measured."""
        rows = [(length, self._places.get((backend, b, length))) for b, length in self.shapes if b == batch]
        return [(length, row) for length, row in rows if row is not None and row.median_s is not None]

    @property
    def columns(self) -> list[str]:
        """Headings of :attr:`cells`."""
        names = ["batch", "tokens", *(f"{backend}, ms" for backend in (*self.ours, *self.peers))]
        for backend in self.ours:
            whose = f"{backend}: " if len(self.ours) > 1 else ""
            names += [f"{whose}over {peer}" for peer in self.peers]
            names += [f"{whose}1 − least cosine", f"{whose}same neighbour"]
        return names

    @property
    def cells(self) -> Iterator[list[str]]:
        """A line a shape: every backend's median; then for each of ours its ratio to the peers, with an
        interval where that is the reference, and how close its vectors are to the reference's."""
        for shape in self.shapes:
            rows = {backend: self._places.get((backend, *shape)) for backend in (*self.ours, *self.peers)}
            line = [*map(str, shape), *(format_ms(row and row.median_s) for row in rows.values())]
            for backend in self.ours:
                row = rows[backend]
                line += [_over(row, rows[peer]) for peer in self.peers]
                line += (
                    [format_closeness(row), format_count(row, "neighbours_agree")] if row else ["–", "–"]
                )
            yield line


def _over(row: Row | None, peer: Row | None) -> str:
    if row is None or peer is None or not row.median_s or not peer.median_s:
        return "–"
    if row.get("reference") == peer.backend:
        return format_ratio(row)
    return f"{row.median_s / peer.median_s:.2f} ×"


def lengths(summary: Summary) -> list[Lengths]:
    """Networks of text that a run measured in two shapes or more: ``minilm@1x8``, ``minilm@1x32``."""
    found: dict[str, list[Row]] = {}
    for row in summary.rows:
        if row.get("length") is not None:
            found.setdefault(row.model.partition("@")[0], []).append(row)
    several = [Lengths(network, rows) for network, rows in found.items()]
    return [each for each in several if len(each.shapes) > 1]
