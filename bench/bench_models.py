"""The benchmarks. Every number that is compared with another comes from one interleaved run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import cycle
from statistics import median
from typing import Any, cast

import numpy as np
import pytest

from bench.lab import CLOCK, Bench
from bench.peers import engine
from wasmgraph.backends import REFERENCE, Backend
from wasmgraph.compiler import build_roofline
from wasmgraph.measure.accuracy import augment, doubts, judge
from wasmgraph.measure.coldstart import cold_start
from wasmgraph.measure.interleaved import Schedule, block_of, interleave
from wasmgraph.measure.profile import (
    ATTENTION_RULES,
    DIRECT_RULES,
    PRODUCT_RULES,
    by_kernel,
    profile_steps,
    read_share,
    roofline_share,
    time_share_outside,
    time_share_without,
)
from wasmgraph.measure.sessions import run_together
from wasmgraph.runtimes import load

pytestmark = pytest.mark.benchmark(timer=CLOCK.now)

_COMPILES, _COMPILE_SECONDS = 5, 2.0
_COLD_STARTS = 3
_PROFILE_ROUNDS = 4
_PROFILE_SECONDS = 0.5  # a block of the latency: six seconds
_SESSION_CALLS = 5
_CHANGES = 20  # calls of a block: they take microseconds


def test_compile(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """ONNX file → artifact file: once, or until two seconds are spent, at most five times."""
    CLOCK.replay(benchmark, bench.compile_seconds(backend, _COMPILES, _COMPILE_SECONDS))
    benchmark.extra_info.update(bench.record(backend))


def test_latency(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """One inference through the public API: inputs written, graph run, outputs copied."""
    CLOCK.replay(benchmark, bench.latency(backend))
    benchmark.extra_info.update(bench.record(backend, **bench.timing(backend)))


def test_work(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """What can be counted of one inference, kernel by kernel; the benchmark's one round is not a time to
    compare."""
    began = time.perf_counter()
    record = bench.record(backend)
    CLOCK.replay(benchmark, [time.perf_counter() - began])
    benchmark.extra_info.update(record, kernel_work=bench.kernel_work(backend))


def test_cold_start(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """From ``load(path)`` to the first outputs; the benchmark's rounds are the time to *ready*."""
    measured = cold_start(lambda: bench.load(backend), bench.inputs[0], _COLD_STARTS)
    CLOCK.replay(benchmark, measured.ready_s)
    benchmark.extra_info.update(
        bench.record(
            backend,
            ready_s=median(measured.ready_s),
            first_output_s=median(measured.first_output_s),
        )
    )


def test_sessions(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """Several sessions at the same time; memory and disk that a deployment takes.

    The benchmark's rounds are all their calls; they slow each other down. For comparing the latency of one
    session, use test_latency.
    """
    with ExitStack() as stack:
        sessions = [stack.enter_context(bench.load(backend)) for _ in range(bench.sessions)]
        together = run_together(sessions, bench.inputs[0], _SESSION_CALLS)
    CLOCK.replay(benchmark, together.seconds)
    source = bench.source(backend)
    benchmark.extra_info.update(
        bench.record(
            backend,
            sessions=together.sessions,
            runs_per_s=together.runs_per_s,
            sessions_p50_s=float(np.quantile(together.seconds, 0.5)),
            sessions_p99_s=float(np.quantile(together.seconds, 0.99)),
            session_bytes=bench.memory(backend),
            artifact_bytes=source.stat().st_size,
            engine_bytes=engine(backend.runtime).engine_bytes(),
        )
    )


def test_accuracy(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """Photographs or sentences (or noise) through the backend, compared with labels and with the reference.

    The benchmark's rounds are these inferences, not interleaved: for comparing, use test_latency.
    """
    session = bench.session(backend)
    reference = bench.session(Backend(REFERENCE, REFERENCE, None))
    outputs, seconds = [], []
    for feeds in bench.inputs:
        began = time.perf_counter()
        outputs.append(session.run(feeds))
        seconds.append(time.perf_counter() - began)
    evaluation = bench.evaluation
    probabilities, logits = evaluation.outputs(session.outputs)
    found = evaluation.accuracy(outputs, bench.reference_outputs, session.outputs)
    if evaluation.photos:
        labels = cast("Sequence[int] | None", evaluation.labels)
        doubtful = doubts(outputs, bench.reference_outputs, labels, probabilities)
        benchmark.extra_info["doubts"] = [bench.named(doubt) for doubt in doubtful]
    if bench.augment and "input" in evaluation.description:
        name = evaluation.description["input"]
        varied = [{name: x} for x in augment([f[name] for f in bench.inputs], bench.augment)]
        more = judge(
            [session.run(feeds) for feeds in varied],
            [reference.run(feeds) for feeds in varied],
            None,
            probabilities,
            logits,
        )
        benchmark.extra_info["augmented_inputs"] = more.inputs
        benchmark.extra_info["augmented_agreement"] = more.agreement
        benchmark.extra_info["augmented_max_prob_diff"] = more.max_prob_diff
        benchmark.extra_info["augmented_max_logit_diff"] = more.max_logit_diff
    CLOCK.replay(benchmark, seconds)
    benchmark.extra_info.update(
        bench.record(
            backend,
            inputs=found.inputs,
            inputs_sha256=evaluation.sha256,
            top1=found.top1,
            top5=found.top5,
            agreement=found.agreement,
            max_prob_diff=found.max_prob_diff,
            max_logit_diff=found.max_logit_diff,
            cosine_min=found.cosine_min,
            neighbours_agree=found.neighbours_agree,
        )
    )


def test_profile(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """Every call of the plan, against the roofline of the target in the same engine."""
    assert backend.target is not None
    session = bench.session(backend)
    session.run(bench.inputs[0])
    steps = [step.at(session.values) for step in bench.artifact(backend).manifest.steps]
    roof = build_roofline(backend.target)
    with load(roof, runtime=backend.runtime, threads=backend.threads) as limit:
        profile = profile_steps(
            session,
            bench.inputs[0],
            steps,
            limit,
            [step.at({}) for step in roof.manifest.steps],
            _PROFILE_ROUNDS,
            _PROFILE_SECONDS * bench.schedule.blocks,
            backend.threads,
        )
    CLOCK.replay(benchmark, [sum(step.seconds for step in profile.steps)])
    kernels = by_kernel(profile)
    benchmark.extra_info["profile"] = [asdict(row) for row in kernels]
    benchmark.extra_info.update(
        bench.record(
            backend,
            peak_gflops=profile.roofline.flops_per_s * 1e-9,
            read_gb_s=profile.roofline.bytes_per_s * 1e-9,
            direct_share=roofline_share(profile, DIRECT_RULES),
            other_share=time_share_without(profile, "conv2d"),
            products_share=roofline_share(profile, PRODUCT_RULES),
            products_read_share=read_share(profile, PRODUCT_RULES),
            attention_share=roofline_share(profile, ATTENTION_RULES),
            outside_products_share=time_share_outside(profile, (*PRODUCT_RULES, *ATTENTION_RULES)),
            calls_slow=sum(row.calls for row in kernels if row.slow),
        )
    )


def test_noop(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """A graph of one element: what the harness itself costs a call."""
    CLOCK.replay(benchmark, bench.latency(backend))
    benchmark.extra_info.update(bench.record(backend, **bench.timing(backend)))


def test_change(benchmark: Any, bench: Bench, backend: Backend) -> None:
    """A graph of a few elements whose number is another in each call: what a change of a dimension costs.

    The benchmark's rounds are calls with a change. The record's ``change_s`` is how much longer they take
    than calls without, of the same run.
    """
    session = bench.session(backend)
    feeds = [{"x": np.ones(number, np.float32)} for number in (1, 2)]
    session.run(feeds[0])
    alternating = cycle(feeds)
    blocks = {
        "the same": block_of(lambda: session.run(feeds[0]), backend.threads),
        "another": block_of(lambda: session.run(next(alternating)), backend.threads),
    }
    rounds = interleave(blocks, Schedule(bench.schedule.blocks, _CHANGES))
    CLOCK.replay(benchmark, rounds["another"])
    change = median(rounds["another"]) - median(rounds["the same"])
    benchmark.extra_info.update(bench.record(backend, change_s=change))
