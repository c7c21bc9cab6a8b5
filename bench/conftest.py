"""Options of the bench, the shared lab, and what a run says at its end.

pytest answers Ctrl-C only once this file is imported: what takes long to import comes in ``Run``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import wasmgraph as wg
from bench.backends import (
    DEFAULT,
    FALLBACK_MODEL,
    NOOP,
    NOOP_OPEN,
    PEER_THREADS,
    parse_list,
    points,
    split_shape,
    values_of,
)
from wasmgraph.backends import Backend
from wasmgraph.cli.graphs import shapes_of
from wasmgraph.errors import (
    FetchError,
    MissingDependencyError,
    UnsupportedOperatorError,
    UsageError,
    WasmgraphError,
)
from wasmgraph.host import cpu_count, host_id
from wasmgraph.models import MODELS
from wasmgraph.records import RunInfo, photographs_of

if TYPE_CHECKING:
    from bench.lab import Bench, Network


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("wasmgraph")
    group.addoption(
        "--models",
        help=f"comma-separated: {', '.join(MODELS)}, or paths of .onnx files; @1x128 after one is its first"
        " input's shape; 'all' is every network (default: resnet50)",
    )
    group.addoption(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1,3,224,224",
        help="bind an input's shape, in every model that has one of that name; repeatable",
    )
    group.addoption(
        "--dim",
        action="append",
        default=[],
        metavar="NAME=8,32,128",
        help="leave a dimension open, and measure at these values, in every model that has it; repeatable",
    )
    group.addoption(
        "--backends", default="default", help=f"comma-separated; 'default' is {','.join(DEFAULT)}"
    )
    group.addoption("--rounds", type=int, default=12, help="interleaved blocks of two timed calls")
    group.addoption("--threads", type=int, default=1, help="threads of one inference, where not said")
    group.addoption("--sessions", type=int, default=2, help="sessions at the same time (default: 2)")
    group.addoption("--images", type=Path, help="an ImageNet validation folder: one subfolder a class")
    group.addoption("--augment", type=int, default=0, help="accuracy also over so many varied inputs")


def _say(text: str) -> None:
    sys.stderr.write(f"{text} …\n")


class Run:
    """The models and backends of this run, and what is to be said of it."""

    def __init__(self, config: pytest.Config) -> None:
        from bench.lab import Bench
        from wasmgraph.measure.interleaved import Schedule

        self.notices: list[str] = []
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        try:
            self.backends = parse_list(config.getoption("--backends"), config.getoption("--threads"))
            self.models = self._models(config.getoption("--models"))
            self.networks = self._networks(
                shapes_of(config.getoption("--shape")), values_of(config.getoption("--dim"))
            )
        except WasmgraphError as error:
            raise pytest.UsageError(str(error)) from error
        most = max((backend.threads for backend in self.backends), default=1)
        if most > cpu_count():
            self.notice(f"{most} threads on {cpu_count()} processors: they wait for each other.")
        every = [
            Bench(
                network,
                self.backends,
                Schedule(blocks=config.getoption("--rounds")),
                config.getoption("--sessions"),
                config.getoption("--images"),
                config.getoption("--augment"),
                self.notice,
                values,
            )
            for network in self.networks
            for values in points(network.values)
        ]
        self.benches = {bench.name: bench for bench in every}

    def _networks(
        self, shapes: Mapping[str, Sequence[int | str]], values: Mapping[str, Sequence[int]]
    ) -> list[Network]:
        """The models of this run, each with those of the dimensions that it has, and the harness's own. A
        file of a user's is read and bound before anything is measured."""
        from bench.lab import Network

        found = [Network(name, shapes) for name in self.models]
        for network in found:
            network.values = {dim: values[dim] for dim in values if dim in network.dimensions}
        had = {dim for network in found for dim in network.values}
        for dim in values:
            if dim not in had:
                there = ", ".join(sorted({d for network in found for d in network.dimensions})) or "none"
                raise UsageError(
                    f"--dim {dim}: no model of this run has such a dimension; theirs are {there}. Name one"
                    f" in a shape: --shape x=1,{dim}."
                )
        for network in found:
            if network.name not in MODELS or network.values:
                network.onnx_path  # noqa: B018 - read and bound, before anything is measured
        return [*found, Network(NOOP), Network(NOOP_OPEN, values={"n": (1, 2)})]

    def notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)

    def _models(self, asked: str | None) -> list[str]:
        if asked:
            every = [name for name in MODELS if not name.endswith("-random")]
            names = every if asked == "all" else [name.strip() for name in asked.split(",")]
            for name in names:
                if split_shape(name)[0] in MODELS:
                    wg.fetch(split_shape(name)[0], _say)
            return names
        try:
            wg.fetch("resnet50", _say)
            return ["resnet50"]
        except FetchError as error:
            fallback = FALLBACK_MODEL["resnet50"]
            self.notice(
                f"FALLBACK: the trained ResNet-50 could not be fetched ({error}) Measured instead:"
                f" {fallback}, the same architecture with RANDOM weights. Latency compares;"
                " accuracy means nothing but agreement."
            )
            wg.fetch(fallback, _say)
            return [fallback]


_RUN = pytest.StashKey[Run]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RUN] = Run(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    for bench in run.benches.values() if run else ():
        bench.close()
        bench.network.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = metafunc.config.stash[_RUN]
    if "backend" not in metafunc.fixturenames:
        return
    test = metafunc.function.__name__
    own = {"test_noop": NOOP, "test_change": NOOP_OPEN}
    network = own.get(test)
    models = [
        name
        for name, bench in run.benches.items()
        if (bench.network.name == network if network else bench.network.name not in own.values())
    ][: 1 if network else None]
    compiled_only = test in ("test_compile", "test_work", "test_profile", "test_change")
    cases = [(m, b) for m in models for b in run.backends if b.target or not compiled_only]
    if test in own:
        cases = [(m, b) for m, b in cases if not b.closed]
    metafunc.parametrize(("model", "backend"), cases, ids=[f"{m}-{b.name}" for m, b in cases])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One model after the other, at one value after the other: the sessions of all at once would not fit
    into memory."""
    order = {name: number for number, name in enumerate(config.stash[_RUN].benches)}
    # An empty parameter set (no backend is compiled: nothing to profile) has a token for a model.
    config.hook.pytest_deselected(items=[item for item in items if _model_of(item) not in order])
    items[:] = sorted(
        (item for item in items if _model_of(item) in order), key=lambda item: order[_model_of(item)]
    )


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    benches = item.config.stash[_RUN].benches
    bench = benches[_model_of(item)]
    following = None if nextitem is None else benches[_model_of(nextitem)]
    if following is not bench:
        bench.close()
    if following is None or following.network is not bench.network:
        bench.network.close()


def _model_of(item: pytest.Item) -> str:
    return str(item.callspec.params["model"])  # type: ignore[attr-defined]


@pytest.fixture
def bench(request: pytest.FixtureRequest, model: str, backend: Backend) -> Iterator[Bench]:
    """The model's bench; a backend that cannot run is a skip or a failure with its reason."""
    run = request.config.stash[_RUN]
    case = f"{model} on {backend.name}"
    try:
        run.benches[model].session(backend)
    except WasmgraphError as error:
        peer_cannot = backend.runtime in PEER_THREADS and isinstance(error, UnsupportedOperatorError)
        if isinstance(error, MissingDependencyError) or peer_cannot:
            run.skipped[case] = str(error)
            pytest.skip(str(error))
        run.failed[case] = str(error)
        pytest.fail(str(error), pytrace=False)
    yield run.benches[model]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and not isinstance(getattr(call.excinfo, "value", None), pytest.fail.Exception):
        item.config.stash[_RUN].failed[item.name] = str(report.longrepr).strip().splitlines()[-1]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Results are whole or absent: pytest-benchmark writes into the file itself."""
    saving = session.config._benchmarksession  # type: ignore[attr-defined]
    path = saving.json
    if path is None:
        return (yield)
    saving.json = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        done = yield
        if saving.json.exists():
            saving.json.replace(path)
        return done
    finally:
        saving.json.unlink(missing_ok=True)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    run = config.stash[_RUN]
    info = RunInfo(tuple(run.notices), run.skipped, run.failed, host_id())
    output_json["wasmgraph"] = asdict(info)
    if config.getoption("benchmark_json"):
        _keep_photographs(run, Path(config.getoption("benchmark_json")))


def _keep_photographs(run: Run, results: Path) -> None:
    """Small pictures of what backends doubt, beside the results: they may not be anybody's to publish."""
    from wasmgraph.models.photos import thumbnail

    directory = photographs_of(results)
    shutil.rmtree(directory, ignore_errors=True)
    photos = {name: photo for bench in run.benches.values() for name, photo in bench.shown.items()}
    for name, photo in photos.items():
        directory.mkdir(exist_ok=True)
        (directory / f"{Path(name).stem}.jpg").write_bytes(thumbnail(photo))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    run = config.stash[_RUN]
    for notice in run.notices:
        terminalreporter.write_line(notice, yellow=True, bold=True)
    for title, cases in (("skipped", run.skipped), ("failed", run.failed)):
        for case, reason in cases.items():
            terminalreporter.write_line(f"{title}: {case}: {reason}")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # a host's name is nobody's business but its owner's
