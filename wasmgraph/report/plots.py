"""Plots as inline SVG, drawn so that they read on light and on dark ground."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from wasmgraph.report.summary import Row, format_ms

# Okabe & Ito's colours (2008), distinguishable with colour-blind eyes; ink is mid grey, which has
# enough contrast on white and on near-black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#7a7a7a"


def latency_plot(rows: Sequence[Row]) -> str:
    """Every timed call as a dot, the median as a bar from zero, a line a backend; returns SVG."""
    style: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "wasmgraph",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(8, 0.8 + 0.55 * len(rows)))
        axes = figure.subplots()
        timed = [(row, row.median_s) for row in rows if row.median_s is not None]
        for index, (row, median_s) in enumerate(timed):
            colour = _COLOURS[index % len(_COLOURS)]
            axes.barh(index, median_s * 1e3, height=0.5, color=colour, alpha=0.35)
            points = [seconds * 1e3 for seconds in row.rounds_s]
            axes.plot(points, [index] * len(points), "|", color=colour, markersize=11)
            label = f" {format_ms(median_s)} ms"
            axes.annotate(label, (max([*points, median_s * 1e3]), index), va="center", color=colour)
        axes.set_yticks(range(len(timed)), [row.backend for row, _ in timed])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set_xlabel("one inference, ms (bar: median; marks: every timed call)")
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
