"""Everything the benchmarks share: models, artifacts and sessions, made once, and the interleaved
rounds from which every latency test takes its own.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import wasmgraph as wg
from bench.backends import REFERENCE, Backend
from bench.memory import session_bytes
from bench.peers import engine
from wasmgraph.artifact import Artifact
from wasmgraph.compiler import CompileLog
from wasmgraph.compiler.importer import DESCRIPTION_KEY
from wasmgraph.errors import FetchError, WasmgraphError
from wasmgraph.files import sha256_file
from wasmgraph.measure.interleaved import Schedule, interleave, ratio_of_medians
from wasmgraph.models import MODELS
from wasmgraph.models.photos import Photo, accuracy_set, inputs_of, labelled_folder
from wasmgraph.records import Record
from wasmgraph.runtimes import LoadOptions, Session
from wasmgraph.tensors import Array

FALLBACK_MODEL = {"resnet50": "resnet50-random"}
NOOP = "noop"


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
    """One model on all selected backends."""

    name: str
    backends: Sequence[Backend]
    schedule: Schedule
    sessions: int
    images: Path | None
    augment: int
    notice: Callable[[str], None]
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="wasmgraph-bench-")))
    logs: dict[str, CompileLog] = field(default_factory=dict)
    _artifacts: dict[str, Artifact] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _failures: dict[str, WasmgraphError] = field(default_factory=dict)

    @cached_property
    def onnx_path(self) -> Path:
        """The model's file."""
        if self.name == NOOP:
            return _noop_model(self.directory / "noop.onnx")
        return wg.fetch(self.name) if self.name in MODELS else Path(self.name)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the model says of itself: weights, preprocessing, labels."""
        proto = onnx.load(self.onnx_path, load_external_data=False)
        raw = next((p.value for p in proto.metadata_props if p.key == DESCRIPTION_KEY), "{}")
        description: dict[str, Any] = json.loads(raw)
        return description

    @cached_property
    def photos(self) -> list[Photo]:
        """Labelled photographs, or none where they cannot be had (which is said)."""
        if "preprocessing" not in self.description:
            return []
        if self.images is not None:
            return labelled_folder(self.images)
        try:
            return accuracy_set()
        except FetchError as error:
            self.notice(f"No photographs: {error} Accuracy is measured on seeded noise.")
            return []

    @cached_property
    def inputs(self) -> list[dict[str, Array]]:
        """What every backend is fed, the same for all."""
        session = self.session(next(b for b in self.backends if b.name not in self._failures))
        if self.photos:
            name = self.description["input"]
            images = inputs_of(self.photos, self.description["preprocessing"])
            return [{name: image} for image in images]
        rng = np.random.default_rng(0)
        return [
            {s.name: rng.normal(0, 1, s.shape).astype(s.dtype) for s in session.inputs} for _ in range(3)
        ]

    def artifact(self, target: str) -> Artifact:
        """The compiled model, compiled once a run."""
        if target not in self._artifacts:
            log = CompileLog()
            artifact = wg.compile(self.onnx_path, target=target, log=log)
            self._artifacts[target], self.logs[target] = artifact, log
        return self._artifacts[target]

    def load(self, backend: Backend) -> Session:
        """A fresh session."""
        return engine(backend.runtime).load(self.source(backend), LoadOptions(backend.threads))

    def source(self, backend: Backend) -> Path:
        """The file that a backend loads."""
        return self.onnx_path if backend.target is None else self.artifact(backend.target).path

    def memory(self, backend: Backend) -> int:
        """Bytes of one more session, found in a process of its own."""
        question = (backend.runtime, self.source(backend), backend.threads, self.inputs[0])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            return fresh.submit(session_bytes, *question).result()

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
        calls: dict[str, Callable[[], object]] = {}
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
            calls[backend.name] = partial(session.run, self.inputs[0])
        return interleave(calls, self.schedule)

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

    def record(self, backend: Backend, **measured: Any) -> dict[str, Any]:
        """The record of a backend on this model, as ``extra_info``."""
        runtime = engine(backend.runtime)
        compiled: dict[str, Any] = {}
        if backend.target is not None:
            artifact = self.artifact(backend.target)
            manifest = artifact.manifest
            compiled = {
                "module_bytes": artifact.path.stat().st_size - manifest.param_bytes,
                "param_bytes": manifest.param_bytes,
                "arena_bytes": manifest.arena_bytes,
                "kernels": manifest.kernels,
                "ops_scheduled": manifest.ops_scheduled,
                "ops_fallback": manifest.ops_fallback,
            }
        inputs = self.session(backend).inputs
        return Record(
            model=Path(self.name).stem if self.name.endswith(".onnx") else self.name,
            weights=self.description.get("weights", "unknown"),
            backend=backend.name,
            target=backend.target or "onnx",
            runtime=backend.runtime,
            threads=backend.threads,
            batch=inputs[0].shape[0] if inputs and inputs[0].shape else 1,
            engine=f"{runtime.name} {runtime.version()}",
            engine_config=runtime.config(),
            model_sha256=sha256_file(self.onnx_path),
            **compiled,
            **measured,
        ).to_extra_info()

    def ratio(self, backend: Backend) -> dict[str, Any]:
        """The ratio fields of a record; none without the reference in this run."""
        if backend.reference not in self.rounds:
            return {}
        ratio = ratio_of_medians(self.rounds[backend.name], self.rounds[backend.reference], self.schedule)
        return {
            "reference": backend.reference,
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
        }


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
