"""Both revisions compile the same models, and their sessions are measured call beside call."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wasmgraph.analysis.compare import median_interval, process_ratios
from wasmgraph.artifact import Artifact
from wasmgraph.backends import Backend
from wasmgraph.errors import UsageError, WasmgraphError
from wasmgraph.files import sha256_file, write_atomically
from wasmgraph.host import host_id, processors_of_this_process
from wasmgraph.measure.interleaved import pair
from wasmgraph.measure.statistics import describe
from wasmgraph.models import MODELS, fetch
from wasmgraph.models.evaluation import Evaluation, evaluation
from wasmgraph.records import Pairing, Record, RunInfo
from wasmgraph.regress.checkouts import Checkout
from wasmgraph.regress.process import WorkerProcess
from wasmgraph.regress.results_file import benchmark, results_file
from wasmgraph.runtimes import get_runtime, load
from wasmgraph.runtimes.metrics import metrics
from wasmgraph.tensors import Array

Call = Callable[[], float]
Side = Literal["base", "head"]
SIDES: tuple[Side, Side] = ("base", "head")


@dataclass(frozen=True)
class Options:
    """What is measured, and for how long.

    Several pairs of processes measure ``pairs`` of calls each, one pair of processes after the other: a
    process keeps the bias that chance gave it (where its memory lies), which must not look like a
    difference of code. A backend is done when the interval of its ratio is within ``precision`` to both
    sides, after ``least`` to ``most`` pairs of processes. Only the width of the interval decides, never its
    place.
    """

    models: Sequence[str]
    backends: Sequence[Backend]
    pairs: int = 16
    least: int = 10
    most: int = 20
    precision: float = 0.03
    confidence: float = 0.975


@dataclass
class _Side:
    """One revision on one model."""

    checkout: Checkout
    directory: Path
    failed: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    counted: dict[str, dict[str, Any]] = field(default_factory=dict)
    accuracy: dict[str, dict[str, Any]] = field(default_factory=dict)

    def compile(self, model: Path, backends: Sequence[Backend]) -> None:
        """Compile for all targets in a process of its own. A failure counts for the backends that need the
        artifact."""
        self.directory.mkdir()
        with WorkerProcess(self.checkout) as worker:
            for target in dict.fromkeys(backend.target for backend in backends):
                output = self.directory / f"{target}.graph"
                try:
                    worker.ask("compile", model=str(model), target=target, output=str(output))
                    self.artifacts[str(target)] = Artifact.open(output)
                except WasmgraphError as error:
                    self.failed |= {b.name: str(error) for b in backends if b.target == target}

    def load(
        self, worker: WorkerProcess, backends: Sequence[Backend], feeds: Path, processor: int
    ) -> dict[str, Call]:
        """Load every backend that has not failed. Calls run in the worker; those of one thread run on one
        processor, because processors differ by their neighbours."""
        calls: dict[str, Call] = {}
        for backend in backends:
            if backend.name in self.failed:
                continue
            path = str(self.artifacts[str(backend.target)].path)
            processors = [processor] if backend.threads == 1 else processors_of_this_process()
            how = {"runtime": backend.runtime, "threads": backend.threads, "processors": processors}
            try:
                worker.ask("load", name=backend.name, path=path, feeds=str(feeds), **how)
                worker.ask("call", name=backend.name, processors=processors)
            except WasmgraphError as error:
                self.failed[backend.name] = str(error)
                continue
            calls[backend.name] = partial(self._call, worker, backend.name, processors)
        return calls

    def _call(self, worker: WorkerProcess, name: str, processors: list[int]) -> float:
        try:
            seconds: float = worker.ask("call", name=name, processors=processors)
        except WasmgraphError as error:
            self.failed[name] = str(error)
            raise
        return seconds

    def record(self, name: str, path: Path, backend: Backend, judged: Evaluation) -> dict[str, Any]:
        """A backend's record in ``extra_info``."""
        artifact = self.artifacts[str(backend.target)]
        counted = dict(self.counted.get(str(backend.target), {}))
        kernel_work = counted.pop("kernel_work", {})
        runtime = get_runtime(backend.runtime)
        shape = artifact.inputs[0].static_shape if artifact.inputs else ()
        record = Record(
            model=name,
            weights=judged.description.get("weights", "unknown"),
            backend=backend.name,
            target=str(backend.target),
            runtime=backend.runtime,
            threads=backend.threads,
            batch=shape[0] if shape else 1,
            engine=f"{runtime.name} {runtime.version()}",
            engine_config=runtime.config(),
            model_sha256=sha256_file(path),
            **counted,
            **self.accuracy.get(backend.name, {}),
            inputs_sha256=judged.sha256,
            **asdict(describe(self.rounds[backend.name])),
        )
        return record.to_extra_info() | {"kernel_work": kernel_work}


def measure_pair(
    base: Checkout, head: Checkout, options: Options, output: Path, progress: Callable[[str], None]
) -> tuple[Path, Path]:
    """Measure two revisions in one interleaved run.

    Returns
    -------
    ``base.json`` and ``head.json`` in ``output``: results files whose times may be judged together.

    Raises
    ------
    UsageError
        A backend does not run wasmgraph's artifacts.
    FetchError
        A model cannot be fetched.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output} cannot be made: {error.strerror}.") from error
    strange = [backend.name for backend in options.backends if backend.target is None]
    if strange:
        raise UsageError(
            f"{', '.join(strange)}: only backends that run wasmgraph's artifacts differ between revisions."
        )
    paths = _models(options.models, progress)
    run = uuid.uuid4().hex
    found: dict[Side, list[dict[str, Any]]] = {side: [] for side in SIDES}
    failed: dict[Side, dict[str, str]] = {side: {} for side in SIDES}
    notices: list[str] = []
    if base.python != head.python:
        notices.append(
            "The revisions depend on different packages. Work and machine code are counted with"
            " the Wasmtime of this environment for both."
        )
    for name, path in paths.items():
        with tempfile.TemporaryDirectory(prefix="wasmgraph-regress-") as directory:
            sides = [_Side(c, Path(directory) / s) for s, c in zip(SIDES, (base, head), strict=True)]
            judged = _measure_model(path, name, sides, options, Path(directory), notices.append, progress)
            for side, which in zip(sides, SIDES, strict=True):
                failed[which] |= {f"{name} on {backend}": why for backend, why in side.failed.items()}
                found[which] += [
                    benchmark(side.record(name, path, backend, judged), side.rounds[backend.name])
                    for backend in options.backends
                    if backend.name in side.rounds
                ]
    written = []
    for which, checkout in zip(SIDES, (base, head), strict=True):
        pairing = Pairing(run, which, options.pairs)
        info = RunInfo(tuple(dict.fromkeys(notices)), {}, failed[which], host_id(), pairing)
        written.append(output / f"{which}.json")
        write_atomically(written[-1], results_file(found[which], info, checkout.commit))
    return written[0], written[1]


def _models(asked: Sequence[str], progress: Callable[[str], None]) -> dict[str, Path]:
    """The files of models, by the names that they have in results."""
    paths: dict[str, Path] = {}
    for model in asked:
        path = fetch(model, progress) if model in MODELS else Path(model).resolve()
        name = model if model in MODELS else path.stem
        if not path.is_file():
            raise UsageError(f"{model}: there is no such file; models by name are {', '.join(MODELS)}.")
        if name in paths:
            raise UsageError(
                f"two models would be called {name!r} in the results: measure them one by one."
            )
        paths[name] = path
    return paths


def _measure_model(
    path: Path,
    name: str,
    sides: Sequence[_Side],
    options: Options,
    directory: Path,
    notice: Callable[[str], None],
    progress: Callable[[str], None],
) -> Evaluation:
    progress(f"{name}: compiling both revisions")
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda side: side.compile(path, options.backends), sides))
    artifact = next((a for side in sides for a in side.artifacts.values()), None)
    if artifact is None:
        raise UsageError(f"{name} compiles in neither revision: {next(iter(sides[0].failed.values()))}")
    judged = evaluation(path, artifact.inputs, None, notice)
    first, stacked = directory / "first.npz", directory / "all.npz"
    np.savez(first, allow_pickle=False, **judged.feeds[0])
    everything = {key: np.stack([feeds[key] for feeds in judged.feeds]) for key in judged.feeds[0]}
    np.savez(stacked, allow_pickle=False, **everything)
    _count(sides, judged, options.backends)
    with load(path) as reference:
        expected = [reference.run(feeds) for feeds in judged.feeds]
    left, processors = list(options.backends), processors_of_this_process()
    began = time.monotonic()
    for process in range(options.most):
        left = [b for b in left if not any(b.name in side.failed for side in sides)]
        if process >= options.least:
            left = [b for b in left if _imprecise(b.name, sides, options)]
        if not left:
            break
        spent = (time.monotonic() - began) / max(process, 1)
        ahead = f", at least {spent * max(options.least - process, 1):.0f} s left" if process else ""
        backends = "1 backend" if len(left) == 1 else f"{len(left)} backends"
        progress(f"{name}: measuring {backends}, pair of processes {process + 1}{ahead}")
        with ExitStack() as stack:
            workers = [stack.enter_context(WorkerProcess(side.checkout)) for side in sides]
            calls: dict[int, dict[str, Call]] = {}
            for which in (process % 2, 1 - process % 2):
                processor = processors[process // 2 % len(processors)]
                calls[which] = sides[which].load(workers[which], left, first, processor)
            if process == 0:
                for side, worker, loaded in zip(sides, workers, (calls[0], calls[1]), strict=True):
                    _judge(side, worker, list(loaded), judged, expected, stacked)
            for backend in left:
                if backend.name in calls[0] and backend.name in calls[1]:
                    _add_rounds(
                        backend.name, sides, calls[0][backend.name], calls[1][backend.name], options
                    )
    for unknown in left:
        if _imprecise(unknown.name, sides, options):
            notice(
                f"{name} on {unknown.name}: after {options.most} processes the ratio is not known to"
                f" {options.precision:.0%}; measure on a quieter machine, or allow more."
            )
    return judged


def _imprecise(name: str, sides: Sequence[_Side], options: Options) -> bool:
    """Whether a backend's ratio needs more rounds."""
    base, head = (side.rounds.get(name, []) for side in sides)
    if not base or not head:
        return False
    ratios = process_ratios(base, head, options.pairs)
    low, high = median_interval(ratios, options.confidence)
    return bool(high - low > 2 * options.precision * np.median(ratios))


def _add_rounds(name: str, sides: Sequence[_Side], base: Call, head: Call, options: Options) -> None:
    """The rounds of one pair of processes: all of them, or none if one side fails."""
    try:
        found = pair(base, head, options.pairs)
    except WasmgraphError:  # the side that failed has said so
        return
    for side, rounds in zip(sides, found, strict=True):
        side.rounds.setdefault(name, []).extend(rounds)


def _count(sides: Sequence[_Side], judged: Evaluation, backends: Sequence[Backend]) -> None:
    """Deterministic metrics; artifacts that are equal to the bit are counted once."""
    known: dict[str, dict[str, Any]] = {}
    for side in sides:
        for target, artifact in side.artifacts.items():
            try:
                if artifact.sha256 not in known:
                    known[artifact.sha256] = metrics(artifact, judged.feeds[0])
                side.counted[target] = known[artifact.sha256]
            except WasmgraphError as error:
                side.failed |= {b.name: str(error) for b in backends if b.target == target}


def _judge(
    side: _Side,
    worker: WorkerProcess,
    backends: Sequence[str],
    judged: Evaluation,
    expected: Sequence[dict[str, Array]],
    stacked: Path,
) -> None:
    """Accuracy of the backends of a revision."""
    specs = next(iter(side.artifacts.values())).outputs
    output = side.directory / "outputs.npz"
    for backend in backends:
        try:
            worker.ask("outputs", name=backend, feeds=str(stacked), output=str(output))
            with np.load(output) as stored:
                arrays = {key: stored[key] for key in stored.files}
            outputs = [{key: array[i] for key, array in arrays.items()} for i in range(len(expected))]
            side.accuracy[backend] = asdict(judged.accuracy(outputs, expected, specs))
        except (WasmgraphError, KeyError, ValueError) as error:  # outputs of other names or shapes
            side.failed[backend] = f"its outputs cannot be judged: {error}"
