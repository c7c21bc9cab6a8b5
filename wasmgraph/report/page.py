"""The HTML report: one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from wasmgraph.errors import MissingDependencyError, UsageError
from wasmgraph.files import write_atomically
from wasmgraph.report import summary as s
from wasmgraph.report.decomposition import decomposition
from wasmgraph.report.goals import goals


def build_report(paths: Sequence[str | Path], directory: str | Path) -> Path:
    """Write ``report.html`` (and a ``latency-MODEL.svg`` a model) into ``directory``.

    Returns
    -------
    The path of the HTML file.

    Raises
    ------
    RecordError
        A file is not a results file.
    UsageError
        The directory cannot be written.
    """
    try:
        import jinja2
        from markupsafe import Markup

        from wasmgraph.report.plots import latency_plot
    except ImportError as error:
        raise MissingDependencyError(
            f"reports need {error.name}: pip install 'wasmgraph[report]'."
        ) from error
    summaries = [s.summarize(path) for path in paths]
    out = Path(directory)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wasmgraph", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    plots = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, summary in enumerate(summaries):
            for model in summary.models:
                svg = latency_plot([row for row in summary.rows if row.model == model])
                plots[number, model] = Markup(svg)  # noqa: S704 (matplotlib escapes the names in it)
                write_atomically(out / f"latency-{Path(model).name}.svg", svg.encode())
        html = environment.get_template("page.html").render(
            summaries=summaries,
            plots=plots,
            f=s,
            goals=goals,
            decomposition=decomposition,
            engines=s.engines,
            wasmgraph_version=version("wasmgraph"),
        )
        path = out / "report.html"
        write_atomically(path, html.encode())
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error
    return path
