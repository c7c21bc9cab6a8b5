"""Everything the benchmarks share: models, artifacts and sessions, made once, and the interleaved
rounds from which every latency test takes its own.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx

import wasmgraph as wg
from bench.backends import NOOP, model_name, split_shape
from bench.memory import session_bytes
from bench.peers import engine
from wasmgraph.artifact import Artifact
from wasmgraph.backends import REFERENCE, Backend
from wasmgraph.compiler import CompileLog
from wasmgraph.compiler.importing import bind_shapes
from wasmgraph.compiler.importing.binding import fed_inputs
from wasmgraph.errors import ModelError, ProcessError, WasmgraphError
from wasmgraph.files import sha256_file
from wasmgraph.measure.accuracy import Doubt
from wasmgraph.measure.interleaved import Block, Schedule, block_of, interleave, ratio_of_medians
from wasmgraph.measure.statistics import describe
from wasmgraph.models import MODELS
from wasmgraph.models.evaluation import Evaluation, evaluation
from wasmgraph.models.photos import Photo
from wasmgraph.records import Record
from wasmgraph.runtimes import LoadOptions, Session
from wasmgraph.runtimes.metrics import metrics
from wasmgraph.tensors import Array

_PATIENCE_S = 600.0  # for a process that loads and runs one session


class ReplayClock:
    """A timer for pytest-benchmark that tells recorded durations instead of the time.

    pytest-benchmark reads it before and after each call of ``advance``, so every recorded round
    becomes one of its rounds, unchanged.
    """

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._now = 0.0

    def now(self) -> float:
        """The clock's reading, in seconds; it moves a little by itself, as every clock does."""
        if not self._durations:
            self._now += 1e-9
        return self._now

    def advance(self) -> None:
        """Let the next recorded round pass."""
        if self._durations:
            self._now += self._durations.pop(0)

    def replay(self, benchmark: Any, durations: Sequence[float]) -> None:
        """Give ``durations`` to a ``benchmark`` fixture as its rounds."""
        self._durations = list(durations)
        benchmark.pedantic(self.advance, rounds=len(durations), iterations=1)
        self._durations = []


CLOCK = ReplayClock()


@dataclass
class Bench:
    """One model, in one shape, on all selected backends."""

    name: str
    backends: Sequence[Backend]
    schedule: Schedule
    sessions: int
    images: Path | None
    augment: int
    notice: Callable[[str], None]
    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="wasmgraph-bench-")))
    logs: dict[str, CompileLog] = field(default_factory=dict)
    shown: dict[str, Photo] = field(default_factory=dict)
    kernel_work: dict[str, dict[str, int]] = field(default_factory=dict)
    _artifacts: dict[str, Artifact] = field(default_factory=dict)
    _metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _failures: dict[str, WasmgraphError] = field(default_factory=dict)

    @cached_property
    def onnx_path(self) -> Path:
        """The model's file."""
        if self.name == NOOP:
            return _noop_model(self.directory / "noop.onnx")
        name, shape = split_shape(self.name)
        path = wg.fetch(name) if name in MODELS else Path(name)
        return _bound(path, self.shapes, self.directory, shape)

    @cached_property
    def evaluation(self) -> Evaluation:
        """What every backend is fed, the same for all, and what is known of it."""
        session = self.session(next(b for b in self.backends if b.name not in self._failures))
        return evaluation(self.onnx_path, session.inputs, self.images, self.notice)

    @property
    def inputs(self) -> Sequence[dict[str, Array]]:
        """The feeds of the evaluation."""
        return self.evaluation.feeds

    def artifact(self, target: str) -> Artifact:
        """The compiled model, compiled once a run."""
        if target not in self._artifacts:
            log = CompileLog()
            artifact = wg.compile(self.onnx_path, target=target, log=log)
            self._artifacts[target], self.logs[target] = artifact, log
        return self._artifacts[target]

    def metrics(self, target: str) -> dict[str, Any]:
        """What can be counted of the compiled model, in a run of its own that nobody times."""
        if target not in self._metrics:
            counted = metrics(self.artifact(target), self.inputs[0])
            self.kernel_work[target] = counted.pop("kernel_work", {})
            self._metrics[target] = counted
        return self._metrics[target]

    def load(self, backend: Backend) -> Session:
        """A fresh session."""
        return engine(backend.runtime).load(self.source(backend), LoadOptions(backend.threads))

    def source(self, backend: Backend) -> Path:
        """The file that a backend loads."""
        return self.onnx_path if backend.target is None else self.artifact(backend.target).path

    def memory(self, backend: Backend) -> int:
        """Bytes of one more session, found in a process of its own."""
        question = (backend.runtime, self.source(backend), backend.threads, self.inputs[0])
        with multiprocessing.get_context("spawn").Pool(1) as fresh:  # ends its process, whatever it does
            try:
                return fresh.apply_async(session_bytes, question).get(_PATIENCE_S)
            except multiprocessing.TimeoutError as error:
                raise ProcessError(
                    f"{backend.name}: measuring a session's memory took longer than {_PATIENCE_S:g} s."
                ) from error

    def session(self, backend: Backend) -> Session:
        """The session that all tests share; a failure is remembered and raised every time."""
        if backend.name in self._failures:
            raise self._failures[backend.name]
        if backend.name not in self._sessions:
            try:
                self._sessions[backend.name] = self.load(backend)
            except WasmgraphError as error:
                self._failures[backend.name] = error
                raise
        return self._sessions[backend.name]

    @cached_property
    def rounds(self) -> dict[str, list[float]]:
        """Seconds of every timed call, by backend, all measured in turn in one go."""
        blocks: dict[str, Block] = {}
        for backend in self.backends:
            try:
                session = self.session(backend)
            except WasmgraphError:
                continue  # its own tests report it
            try:
                session.run(self.inputs[0])
            except WasmgraphError as error:  # one backend's fault must not cost the others theirs
                self._failures[backend.name] = error
                continue
            blocks[backend.name] = block_of(partial(session.run, self.inputs[0]), backend.threads)
        return interleave(blocks, self.schedule)

    def close(self) -> None:
        """End all sessions and remove what was made for them; what was measured stays."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._artifacts.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def latency(self, backend: Backend) -> list[float]:
        """The backend's own rounds of the interleaved run; its failure is raised."""
        rounds = self.rounds
        self.session(backend)
        return rounds[backend.name]

    @cached_property
    def reference_outputs(self) -> list[dict[str, Array]]:
        """The reference's outputs on all inputs."""
        reference = next(
            (b for b in self.backends if b.name == REFERENCE), Backend(REFERENCE, REFERENCE, None)
        )
        session = self.session(reference)
        return [session.run(feeds) for feeds in self.inputs]

    def named(self, doubt: Doubt) -> dict[str, Any]:
        """A doubt with the names of its photograph and classes; the photograph is kept for the report."""
        evaluation = self.evaluation
        photo = evaluation.photos[doubt.input]
        self.shown[photo.name] = photo
        top, expected = (
            [[evaluation.class_name(index), probability] for index, probability in most]
            for most in (doubt.top, doubt.reference_top)
        )
        label = evaluation.class_name(photo.label)
        return {"photo": photo.name, "label": label, "top": top, "reference_top": expected}

    def record(self, backend: Backend, **measured: Any) -> dict[str, Any]:
        """The record of a backend on this model, as ``extra_info``."""
        runtime = engine(backend.runtime)
        counted = {} if backend.target is None else self.metrics(backend.target)
        inputs = self.session(backend).inputs
        return Record(
            model=model_name(self.name),
            weights=self.evaluation.description.get("weights", "unknown"),
            backend=backend.name,
            target=backend.target or "onnx",
            runtime=backend.runtime,
            threads=backend.threads,
            batch=inputs[0].static_shape[0] if inputs and inputs[0].shape else 1,
            length=self.evaluation.length,
            engine=f"{runtime.name} {runtime.version()}",
            engine_config=runtime.config(),
            model_sha256=sha256_file(self.onnx_path),
            **counted,
            **measured,
        ).to_extra_info()

    def timing(self, backend: Backend) -> dict[str, Any]:
        """How the backend's rounds spread, and their ratio; no ratio without the reference in this run."""
        spread = asdict(describe(self.rounds[backend.name]))
        if backend.reference not in self.rounds:
            return spread
        ratio = ratio_of_medians(self.rounds[backend.name], self.rounds[backend.reference], self.schedule)
        return spread | {
            "reference": backend.reference,
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
        }


def _bound(
    path: Path,
    shapes: Mapping[str, Sequence[int | str]],
    directory: Path,
    first: Sequence[int] | None = None,
) -> Path:
    """The model with static shapes, as every backend gets it: the file itself where it has them already.
    ``first`` is the shape of its first input."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error
    except Exception:  # whoever compiles it says what is wrong
        return path
    names = {value.name for value in proto.graph.input}
    before = [value.SerializeToString() for value in proto.graph.input]
    wanted = {name: shape for name, shape in shapes.items() if name in names}
    if first is not None:
        wanted |= {value.name: first for value in fed_inputs(proto)[:1]}
    bind_shapes(proto, wanted)
    if [value.SerializeToString() for value in proto.graph.input] == before:
        return path
    bound = directory / path.name
    whole = onnx.load(path)
    bind_shapes(whole, wanted)
    onnx.save(whole, bound)
    return bound


def _noop_model(path: Path) -> Path:
    """The least a graph can do: one element, one ReLU. What is measured is the harness."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        NOOP,
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path
