"""Everything the benchmarks share: models, artifacts and sessions, made once, and the interleaved
rounds from which every latency test takes its own.
"""

from __future__ import annotations

import copy
import multiprocessing
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx

import wasmgraph as wg
from bench.backends import NOOP, NOOP_OPEN, Values, model_name, split_shape, values_name
from bench.memory import session_bytes
from bench.peers import engine
from wasmgraph.analysis.runs import KERNEL_WORK
from wasmgraph.artifact import Artifact
from wasmgraph.backends import CLOSED, REFERENCE, Backend
from wasmgraph.compiler import CompileLog
from wasmgraph.compiler.importing import bind_shapes
from wasmgraph.compiler.importing.binding import check_dims, fed_inputs
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
from wasmgraph.tensors import Array, TensorSpec

_NAME = re.compile(r"[^\W\d]\w*")  # in a size such as "past + seq"
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
class Network:
    """A model, and what is compiled of it. ``values`` are those at which its open dimensions are measured;
    their least and greatest are the bounds of one module."""

    name: str
    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    values: Mapping[str, Sequence[int]] = field(default_factory=dict)
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="wasmgraph-bench-")))
    _compiled: dict[tuple[str, Values], tuple[Artifact, CompileLog]] = field(default_factory=dict)

    @cached_property
    def _path(self) -> Path:
        """The model's file as it is."""
        made: dict[str, list[int | str]] = {NOOP: [1], NOOP_OPEN: ["n"]}
        if self.name in made:
            return _noop_model(self.directory / f"{self.name}.onnx", made[self.name])
        name = split_shape(self.name)[0]
        return wg.fetch(name) if name in MODELS else Path(name)

    @cached_property
    def _proto(self) -> onnx.ModelProto | None:
        """The model without its weights; None where the file is none."""
        try:
            proto = onnx.load(self._path, load_external_data=False)
        except OSError as error:
            raise ModelError(f"{self._path}: {error.strerror or error}.") from error
        except Exception:  # whoever compiles it says what is wrong
            return None
        for tensor in proto.graph.initializer:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name))
        return proto

    def _bind(self, proto: onnx.ModelProto, values: Mapping[str, int | tuple[int, int]]) -> None:
        """Give every dimension of the model a value or bounds."""
        names = {value.name for value in proto.graph.input}
        wanted = {name: shape for name, shape in self.shapes.items() if name in names}
        if (first := split_shape(self.name)[1]) is not None:
            wanted |= {value.name: first for value in fed_inputs(proto)[:1]}
        bind_shapes(proto, wanted, *check_dims(values))

    @cached_property
    def dimensions(self) -> frozenset[str]:
        """Names of the open dimensions that the inputs' shapes have."""
        inputs = fed_inputs(self._proto) if self._proto else []
        sizes = [size for value in inputs for size in self.shapes.get(value.name, ())]
        sizes += [dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim]
        return frozenset(name for size in sizes if isinstance(size, str) for name in _NAME.findall(size))

    @cached_property
    def bounds(self) -> Mapping[str, tuple[int, int]]:
        """The bounds of the dimensions that the model has, of all that the run asks for."""
        return {name: (min(values), max(values)) for name, values in self.values.items()}

    @cached_property
    def onnx_path(self) -> Path:
        """The model as engines of ``.onnx`` files get it: with static shapes but for the dimensions that
        are measured at several values. It is the file itself where that has these shapes already."""
        if self._proto is None:
            return self._path
        bound = copy.deepcopy(self._proto)
        self._bind(bound, self.bounds)
        if _inputs(bound) == _inputs(self._proto):
            return self._path
        whole = onnx.load(self._path)
        self._bind(whole, self.bounds)
        path = self.directory / self._path.name
        onnx.save(whole, path)
        return path

    def specs(self, values: Mapping[str, int]) -> list[TensorSpec]:
        """The model's inputs at these values of its dimensions."""
        if self._proto is None:
            raise ModelError(f"{self._path} is no ONNX model.")
        proto = copy.deepcopy(self._proto)
        self._bind(proto, values)
        return [
            TensorSpec(
                value.name,
                tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            )
            for value in fed_inputs(proto)
        ]

    def compiled(self, target: str, values: Mapping[str, int]) -> tuple[Artifact, CompileLog]:
        """The model compiled, once a run, and how that went: for all values, or for ``values`` alone."""
        key = target, tuple(values.items())
        if key not in self._compiled:
            self._compiled[key] = self.compile(target, values)
        return self._compiled[key]

    def compile(self, target: str, values: Mapping[str, int]) -> tuple[Artifact, CompileLog]:
        """Compile as :meth:`compiled` does, anew."""
        log = CompileLog()
        dims = {
            name: values.get(name, (least, most))
            for name, (least, most) in self.bounds.items()
            if least < most
        }
        return wg.compile(self.onnx_path, target=target, dims=dims, log=log), log

    def close(self) -> None:
        """Remove what was made."""
        self._compiled.clear()
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass
class Bench:
    """One network, at one value of each of its open dimensions, on all selected backends."""

    network: Network
    backends: Sequence[Backend]
    schedule: Schedule
    sessions: int
    images: Path | None
    augment: int
    notice: Callable[[str], None]
    values: Mapping[str, int] = field(default_factory=dict)
    shown: dict[str, Photo] = field(default_factory=dict)
    _metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _failures: dict[str, WasmgraphError] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the network is called in results at these values: ``minilm@batch=1,seq=8``."""
        return model_name(self.network.name) + values_name(self.values)

    @cached_property
    def specs(self) -> list[TensorSpec]:
        """The network's inputs at these values."""
        return self.network.specs(self.values)

    @cached_property
    def evaluation(self) -> Evaluation:
        """What every backend is fed, the same for all, and what is known of it."""
        return evaluation(self.network.onnx_path, self.specs, self.images, self.notice)

    @property
    def inputs(self) -> Sequence[dict[str, Array]]:
        """The feeds of the evaluation."""
        return self.evaluation.feeds

    def _compiled(self, backend: Backend) -> tuple[Artifact, CompileLog]:
        assert backend.target is not None
        return self.network.compiled(backend.target, self.values if backend.closed else {})

    def artifact(self, backend: Backend) -> Artifact:
        """What a backend runs, compiled once a run."""
        return self._compiled(backend)[0]

    def compile_seconds(self, backend: Backend, most: int, seconds: float) -> list[float]:
        """Seconds that compiling for a backend takes: at most so many times, or until as many seconds are
        spent."""
        assert backend.target is not None
        found = [self._compiled(backend)[1].seconds]
        while sum(found) < seconds and len(found) < most:
            _, log = self.network.compile(backend.target, self.values if backend.closed else {})
            found.append(log.seconds)
        return found

    def metrics(self, backend: Backend) -> dict[str, Any]:
        """What can be counted of the compiled model, in a run of its own that nobody times."""
        return {key: value for key, value in self._counted(backend).items() if key != KERNEL_WORK}

    def kernel_work(self, backend: Backend) -> dict[str, int]:
        """Fuel of one inference by kernel, of :meth:`metrics`' run."""
        found: dict[str, int] = self._counted(backend).get(KERNEL_WORK, {})
        return found

    def _counted(self, backend: Backend) -> dict[str, Any]:
        key = f"{backend.target}{CLOSED if backend.closed else ''}"
        if key not in self._metrics:
            self._metrics[key] = metrics(self.artifact(backend), self.inputs[0])
        return self._metrics[key]

    def load(self, backend: Backend) -> Session:
        """A fresh session."""
        return engine(backend.runtime).load(self.source(backend), LoadOptions(backend.threads))

    def source(self, backend: Backend) -> Path:
        """The file that a backend loads."""
        return self.network.onnx_path if backend.target is None else self.artifact(backend).path

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
        """End all sessions; what was measured stays."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

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
        self.session(backend)
        counted = {} if backend.target is None else self.metrics(backend)
        return Record(
            model=self.name,
            weights=self.evaluation.description.get("weights", "unknown"),
            backend=backend.name,
            target=backend.target or "onnx",
            runtime=backend.runtime,
            threads=backend.threads,
            batch=self.specs[0].static_shape[0] if self.specs and self.specs[0].shape else 1,
            length=self.evaluation.length,
            dims=",".join(f"{name}={value}" for name, value in self.values.items()) or None,
            engine=f"{runtime.name} {runtime.version()}",
            engine_config=runtime.config(),
            model_sha256=sha256_file(self.network.onnx_path),
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


def _inputs(proto: onnx.ModelProto) -> list[bytes]:
    return [value.SerializeToString() for value in proto.graph.input]


def _noop_model(path: Path, shape: Sequence[int | str]) -> Path:
    """The least a graph can do: one ReLU, of one element or of a few. What is measured is the harness."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        NOOP,
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, shape)],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path
