"""Plots as SVG, readable on light and on dark backgrounds.

Text and lines have one colour that occurs nowhere else. Inside a page it becomes the page's own
(``currentColor``); in a file by itself it is a grey with contrast on both backgrounds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wasmgraph.analysis.history import Trend
from wasmgraph.report.decomposition import Change
from wasmgraph.report.summary import Row, format_ms
from wasmgraph.report.sweep import Sweep

# Okabe & Ito's colours (2008), distinguishable with colour-blind eyes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS, _LINES = "os^Dv", ("-", "--", ":")
_INK = "#7a7a7a"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wasmgraph",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_UNITS = {"latency_s": "latency, s", "ratio": "over reference", "work_fuel": "work, instructions",
          "module_bytes": "module, bytes", "ready_s": "ready, s", "compile_s": "compile, s"}  # fmt: skip
# Rules by colour and mark, so that colour is never all that tells them apart, and where their names stand,
# in points from their longest kernel; the rest is of the last.
_RULES: dict[str, tuple[str, str, tuple[int, int]]] = {
    "pointwise-conv2d": (_COLOURS[0], "o", (14, -26)),
    "direct-conv2d": (_COLOURS[1], "s", (-24, -40)),
    "winograd-conv2d": (_COLOURS[2], "^", (-62, 12)),
    "other": (_COLOURS[3], "D", (8, -3)),
}


def inline(svg: str) -> str:
    """An SVG for a page: its ink is the page's."""
    return svg.replace(_INK, "currentColor")


def _svg(figure: Figure) -> str:
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def latency_plot(rows: Sequence[Row]) -> str:
    """Every timed call as a mark, the median as a bar from zero, a line a backend."""
    timed = [(row, row.median_s) for row in rows if row.median_s is not None]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 1 + 0.42 * len(timed)))
        axes = figure.subplots()
        for index, (row, median_s) in enumerate(timed):
            colour = _COLOURS[index % len(_COLOURS)]
            axes.barh(index, median_s * 1e3, height=0.55, color=colour, alpha=0.35)
            points = [seconds * 1e3 for seconds in row.rounds_s]
            axes.plot(points, [index] * len(points), "|", color=colour, markersize=11)
            axes.annotate(
                f"{format_ms(median_s)} ms", (max([*points, median_s * 1e3]), index), va="center",
                xytext=(8, 0), textcoords="offset points",
            )  # fmt: skip
        axes.set_yticks(range(len(timed)), [row.backend for row, _ in timed])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set_xlabel("one inference, ms (bar: median; marks: every timed call)")
        return _svg(figure)


def decomposition_plot(changes: Sequence[Change]) -> str:
    """A bar from zero for each backend of the chain, and beside it what the change costs."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 1 + 0.6 * len(changes)))
        axes = figure.subplots()
        for index, change in enumerate(changes):
            milliseconds = change.median_s * 1e3
            axes.barh(index, milliseconds, height=0.5, color=_COLOURS[0], alpha=0.55)
            factor = f"{change.factor:.2f} ×" if change.factor else ""
            words = f"{format_ms(change.median_s)} ms" + (f", {factor}" if factor else "")
            axes.annotate(
                words, (milliseconds, index), va="center", xytext=(6, 0), textcoords="offset points"
            )
        labels = [f"{change.backend}\n{change.what}" for change in changes]
        axes.set_yticks(range(len(changes)), labels, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.margins(x=0.25)
        axes.set_xlabel("median of one inference, ms; × is over the line above")
        return _svg(figure)


def sweep_plot(found: Sweep) -> str:
    """Latency and its ratio to the reference over the values of a dimension: a colour and a mark a backend,
    a style of line for each value of the other dimensions."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.2))
        left, right = figure.subplots(1, 2)
        for number, backend in enumerate((*found.ours, *found.peers)):
            colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
            for style, (name, curve) in zip(cycle(_LINES), found.curves(backend), strict=False):
                look = {
                    "color": colour,
                    "marker": mark,
                    "linestyle": style,
                    "linewidth": 1.3,
                    "markersize": 5,
                }
                at = [value for value, _ in curve]
                milliseconds = [(row.median_s or 0) * 1e3 for _, row in curve]
                left.plot(at, milliseconds, label=name, **look)
                ratios = [(n, r) for n, r in curve if r.get("ratio") and r.get("reference") != backend]
                if ratios:
                    values = [r.get("ratio") for _, r in ratios]
                    spread = [
                        [max(0, v - r.get("ratio_low")) for v, (_, r) in zip(values, ratios, strict=True)],
                        [max(0, r.get("ratio_high") - v) for v, (_, r) in zip(values, ratios, strict=True)],
                    ]
                    right.errorbar([n for n, _ in ratios], values, spread, capsize=2, **look)
        ticks = sorted({point[found.axis] for point in found.points})
        for axes in (left, right):
            axes.set_xscale("symlog", base=2, linthresh=1)  # a dimension may be 0
            axes.set_xticks(ticks)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel(found.dims[found.axis])
        left.set_yscale("log")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.set_ylabel("median of one inference, ms")
        right.set_ylim(bottom=0)
        right.set_ylabel("over the reference (95 % interval)")
        right.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8)
        return _svg(figure)


def roofline_plot(rows: Sequence[Row]) -> str:
    """One panel for each profiled backend: its kernels under the roofline measured with them, log-log."""
    columns = 1 if len(rows) == 1 else 2
    with mpl.rc_context(_STYLE):
        height = -(-len(rows) // columns)
        figure = Figure(figsize=(10, 4 * height))
        panels = figure.subplots(height, columns, squeeze=False).ravel()
        for axes in panels[len(rows) :]:
            axes.set_visible(False)
        for axes, row in zip(panels, rows, strict=False):
            _roofline(axes, row)
        return _svg(figure)


def _roofline(axes: Axes, row: Row) -> None:
    peak, bandwidth = float(row.get("peak_gflops")), float(row.get("read_gb_s"))
    kernels = [k for k in row.profile if k.get("flops") and k["gflops_per_s"] and k.get("traffic_bytes")]
    intensity = np.array([k["flops"] / k["traffic_bytes"] for k in kernels])
    span = np.geomspace(min([0.1, *intensity]) / 1.5, max([100.0, *intensity]) * 3, 200)
    axes.plot(span, np.minimum(peak, bandwidth * span), color=_INK, linewidth=1.2)
    axes.annotate(
        f"{peak:.3g} GFLOP/s", (span[-1], peak), ha="right", va="bottom", fontsize=8,
        xytext=(0, 2), textcoords="offset points",
    )  # fmt: skip
    edge = span[len(span) // 12]
    axes.annotate(
        f"{bandwidth:.3g} GB/s", (edge, bandwidth * edge), ha="left", va="top", fontsize=8,
        xytext=(6, -2), textcoords="offset points",
    )  # fmt: skip
    named: set[str] = set()
    for kernel, at in zip(kernels, intensity, strict=True):
        rule = kernel["rule"] if kernel["rule"] in _RULES else "other"
        colour, mark, place = _RULES[rule]
        size = 12 + 300 * kernel["share"]
        axes.scatter(at, kernel["gflops_per_s"], s=size, color=colour, marker=mark, linewidths=1, alpha=0.8)
        if rule not in named:  # kernels are sorted: this is the one that takes longest
            named.add(rule)
            line = {"arrowstyle": "-", "color": _INK, "linewidth": 0.5} if rule != "other" else None
            axes.annotate(
                rule, (at, kernel["gflops_per_s"]), fontsize=8, xytext=place, textcoords="offset points",
                arrowprops=line,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=peak / 500)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(row.backend, fontsize=10, loc="left")
    axes.set_xlabel("flop per byte of operands", fontsize=9)
    axes.set_ylabel("GFLOP/s", fontsize=9)


def trends_plot(trends: Sequence[Trend]) -> str:
    """One panel for each trend: every run from zero, and the steps with their commits."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 2.1 * len(trends)))
        for axes, trend in zip(figure.subplots(len(trends), 1, squeeze=False).ravel(), trends, strict=True):
            values = [point.value for point in trend.points]
            axes.plot(values, ".-", color=_COLOURS[0], linewidth=0.7, markersize=3)
            for step in trend.steps:
                at = trend.points.index(step.at) - 0.5
                axes.axvline(at, color=_COLOURS[1], linewidth=1)
                words = f" {step.words}\n {step.at.commit}"
                axes.annotate(words, (at, 0.05), xycoords=("data", "axes fraction"), fontsize=8)
            axes.set_ylim(0, max(values) * 1.15 or 1)
            axes.set_title(f"{trend.series}, host {trend.host}", fontsize=9, loc="left")
            axes.set_ylabel(_UNITS.get(trend.metric, trend.metric), fontsize=8)
            axes.set_xlabel("run", fontsize=8)
        return _svg(figure)
