"""The HTML report: one self-contained file, an index and a page a model of a run."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmgraph.analysis.conformance import read_conformance
from wasmgraph.errors import UsageError, needing
from wasmgraph.files import write_atomically
from wasmgraph.records import photographs_of
from wasmgraph.report import summary as s
from wasmgraph.report.decomposition import Change, decomposition
from wasmgraph.report.goals import Goal, goals
from wasmgraph.report.sweep import sweeps

if TYPE_CHECKING:
    from markupsafe import Markup

_ROOFED = (
    "wasmtime",
    "native",
)  # runtimes whose rooflines are drawn; V8's differ little and are in the tables
# Sections of a page, in their order; those without content are left out.
_SECTIONS = {
    "goals": "Goals",
    "latency": "Latency",
    "decomposition": "From native to scalar WebAssembly",
    "profile": "Where the time goes",
    "accuracy": "Accuracy",
    "start": "Cold start, memory, size",
    "deployed": "Threads and sessions",
}


@dataclass(frozen=True)
class Opinions:
    """The answers of all backends for a photograph that at least one misclassified: classes with
    probabilities, and the backends that gave them."""

    photo: str
    label: str
    picture: str | None
    opinions: Sequence[tuple[Sequence[tuple[str, float]], Sequence[str]]]


@dataclass(frozen=True)
class Page:
    """A model of a run; ``id`` is where links lead."""

    id: str
    title: str
    model: str
    rows: Sequence[s.Row]
    goals: Sequence[Goal]
    changes: Sequence[Change]
    doubts: Sequence[Opinions]
    latency_plot: Markup | None
    decomposition_plot: Markup | None
    roofline_plot: Markup | None

    @property
    def profiled(self) -> list[s.Row]:
        """Rows with a profile."""
        return [row for row in self.rows if row.profile]

    @property
    def deployed(self) -> list[s.Row]:
        """Rows of several sessions at once."""
        return [row for row in self.rows if row.get("sessions") is not None]

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Ids and titles of what the page holds."""
        absent = {
            "goals": not self.goals,
            "decomposition": not self.changes,
            "profile": not self.profiled,
            "deployed": not self.deployed,
        }
        return [(id, title) for id, title in _SECTIONS.items() if not absent.get(id)]


def build_report(
    paths: Sequence[str | Path],
    directory: str | Path,
    history: str | Path | None = None,
    conformance: str | Path | None = None,
) -> Path:
    """Write ``report.html`` into ``directory``, and its plots: a ``latency-MODEL.svg`` a model, a
    ``sweep-MODEL.svg`` a network at several values of its dimensions.

    Parameters
    ----------
    paths : results files
    history : a history file, whose trends of these models are drawn as well
    conformance : what ``make conformance`` wrote, which gets a section of its own

    Returns
    -------
    The path of the HTML file.

    Raises
    ------
    RecordError
        A file is not a results file, not a history, or no record of conformance.
    UsageError
        The directory cannot be written.
    """
    with needing("a report", "report"):
        import jinja2
        from markupsafe import Markup

        from wasmgraph.report import plots
    summaries = [s.summarize(path) for path in paths]
    pages = [
        _page(summary, model, f"page-{number}-{place}", len(summaries) > 1)
        for number, summary in enumerate(summaries)
        for place, model in enumerate(summary.models)
    ]
    swept = [found for summary in summaries for found in sweeps(summary)]
    curves = [plots.sweep_plot(found) for found in swept]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wasmgraph.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    parts = resources.files("wasmgraph.report").joinpath("templates")
    html = environment.get_template("page.html").render(
        pages=pages,
        swept=list(zip(swept, (Markup(plots.inline(svg)) for svg in curves), strict=True)),  # noqa: S704
        summaries=summaries,
        notices=list(dict.fromkeys(n for summary in summaries for n in summary.info.notices)),
        troubled=list(_troubled(summaries)),
        trends=_trends(history, pages),
        conformance=read_conformance(conformance) if conformance is not None else None,
        f=s,
        style=Markup(parts.joinpath("style.css").read_text()),  # noqa: S704
        script=Markup(parts.joinpath("table.js").read_text()),  # noqa: S704
        wasmgraph_version=version("wasmgraph"),
    )
    out = Path(directory)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for page in pages:
            svg = plots.latency_plot(page.rows)
            write_atomically(out / f"latency-{Path(page.model).name}.svg", svg.encode())
        for found, svg in zip(swept, curves, strict=True):
            write_atomically(out / f"sweep-{Path(found.network).name}.svg", svg.encode())
        path = out / "report.html"
        write_atomically(path, html.encode())
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error
    return path


def _breakable(name: str) -> Markup:
    """A name that may be broken across lines after a punctuation mark."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[-_@:])", name))


def _page(summary: s.Summary, model: str, id: str, several: bool) -> Page:
    from markupsafe import Markup

    from wasmgraph.report import plots

    def drawn(svg: str) -> Markup:
        return Markup(plots.inline(svg))  # noqa: S704 (matplotlib escapes the names in it)

    rows = [row for row in summary.rows if row.model == model]
    changes = decomposition(rows)
    roofed = [
        row
        for row in rows
        if row.get("runtime") in _ROOFED
        and row.get("peak_gflops")
        and any(k.get("flops") for k in row.profile)
    ]
    timed = any(row.median_s is not None for row in rows)
    return Page(
        id,
        f"{model} ({summary.path.name})" if several else model,
        model,
        rows,
        goals(summary, model),
        changes,
        list(_opinions(rows, photographs_of(summary.path))),
        drawn(plots.latency_plot(rows)) if timed else None,
        drawn(plots.decomposition_plot(changes)) if changes else None,
        drawn(plots.roofline_plot(roofed)) if roofed else None,
    )


def _opinions(rows: Sequence[s.Row], pictures: Path) -> Iterator[Opinions]:
    """By photograph. Backends with the same answer are grouped; a backend without a recorded answer gave
    the reference's."""
    photos: dict[str, list[tuple[s.Row, Mapping[str, Any]]]] = {}
    for row in rows:
        for doubt in row.doubts:
            photos.setdefault(doubt["photo"], []).append((row, doubt))
    for photo, doubts in photos.items():
        shared: dict[tuple[str, ...], tuple[list[tuple[str, float]], list[str]]] = {}
        for row, doubt in doubts:
            names = tuple(str(name) for name, _ in doubt["top"])
            shared.setdefault(names, (doubt["top"], []))[1].append(row.backend)
        silent = [row.backend for row in rows if row.get("inputs") and row not in [r for r, _ in doubts]]
        if silent:
            names = tuple(str(name) for name, _ in doubts[0][1]["reference_top"])
            shared.setdefault(names, (doubts[0][1]["reference_top"], []))[1].extend(silent)
        judged = [row for row in rows if row.get("inputs")]
        opinions = [
            (top, ["every backend"] if len(backends) == len(judged) > 1 else backends)
            for top, backends in shared.values()
        ]
        yield Opinions(photo, doubts[0][1]["label"], _picture(pictures, photo), opinions)


def _picture(directory: Path, photo: str) -> str | None:
    try:
        content = (directory / f"{Path(photo).stem}.jpg").read_bytes()
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _troubled(summaries: Sequence[s.Summary]) -> Iterator[tuple[str, str, str]]:
    for summary in summaries:
        for case, reason in summary.info.skipped.items():
            yield "skipped", case, reason
        for case, reason in summary.info.failed.items():
            yield "failed", case, reason


def _trends(history: str | Path | None, pages: Sequence[Page]) -> Markup | None:
    if history is None:
        return None
    from markupsafe import Markup

    from wasmgraph.analysis.history import read_history
    from wasmgraph.report.plots import inline
    from wasmgraph.report.trends import MOST_PLOTTED, trend_svg

    models = {page.model for page in pages}
    found = read_history(Path(history), ["ratio", "work_fuel"])
    ours = [t for t in found.trends if len(t.points) > 1 and any(t.series.startswith(m) for m in models)]
    return Markup(inline(trend_svg(ours[:MOST_PLOTTED]))) if ours else None  # noqa: S704
