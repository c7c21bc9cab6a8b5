"""Measures how soon an untrusted graph that exceeds a limit is ended, whether this disturbs other sessions,
and the overhead of a call."""

from __future__ import annotations

import dataclasses
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import wasmtime
from scipy.stats import bootstrap

import wasmgraph as wg
from wasmgraph.artifact import Artifact, seal
from wasmgraph.errors import LimitError
from wasmgraph.limits import Limits
from wasmgraph.runtimes import Session
from wasmgraph.runtimes.checks import check
from wasmgraph.runtimes.untrusted import UntrustedSession

_RUN = '(func (export "wasmgraph_run") (result i32) {} i32.const 0)'
_STEP = '(func (export "wasmgraph_step") (param i32) (result i32) i32.const 0)'
_OWN = '(memory (export "memory") 2000 2000)'
_SHARED = """(import "env" "memory" (memory 2000 2010 shared))
  (global (export "__stack_pointer") (mut i32) (i32.const 65536))
  (func (export "wasmgraph_init")) (func (export "wasmgraph_threads") (param i32))
  (func (export "wasmgraph_worker") (result i32) i32.const 0)
  (func (export "wasmgraph_fail")) (func (export "wasmgraph_stop"))"""
_LOOP = "(loop $again (br $again))"
_WAIT = "(drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))"
_TOUCH = """(local $at i32) (loop $next (i32.store (local.get $at) (i32.const 1))
  (br_if $next (i32.ne (local.tee $at (i32.add (local.get $at) (i32.const 4096))) (i32.const 0))))"""
_MANY = 20_000  # calls in a function that Cranelift compiles slowly


@dataclass(frozen=True)
class Attack:
    """A module, its limits, and the seconds after which it must have been ended."""

    module: str
    limits: Limits
    seconds: float


def _attacks() -> dict[str, Attack]:
    endless = f"(module {_OWN} {_RUN.format(_LOOP)} {_STEP})"
    all_memory = '(memory (export "memory") 65536 65536)'
    return {
        "endless loop, processor time": Attack(endless, Limits(cpu_s=2, wall_s=20), 2),
        "endless loop, time": Attack(endless, Limits(cpu_s=20, wall_s=2), 2),
        "atomic wait": Attack(f"(module {_SHARED} {_RUN.format(_WAIT)} {_STEP})", Limits(wall_s=2), 2),
        "declares more memory than allowed": Attack(
            f"(module {all_memory} {_RUN.format(_TOUCH)} {_STEP})", Limits(1 << 30, 2, 2), 2
        ),
        "touches all of its memory": Attack(
            f"(module {all_memory} {_RUN.format(_TOUCH)} {_STEP})", Limits((4 << 30) + 1, 2, 2), 2
        ),
        "takes long to compile": Attack(
            f"(module {_OWN} {_RUN.format(_long())} {_STEP})", Limits(cpu_s=1, wall_s=1), 1
        ),
    }


def _long() -> str:
    """A body of nested blocks over many locals."""
    turns = "".join(
        f"(local.set {n % 500} (i32.add (i32.mul (local.get {n * 7 % 500}) (local.get {n * 11 % 500}))"
        f" (i32.load (local.get {n * 13 % 500}))))"
        f" (if (local.get {n % 500}) (then (local.set {n * 3 % 500} (i32.const {n}))))"
        for n in range(_MANY)
    )
    return f"(local {'i32 ' * 500}) {turns}"


def forge(path: Path, template: Artifact, wat: str) -> Path:
    """Write an artifact with the manifest of ``template`` and another module."""
    path.write_bytes(wasmtime.wat2wasm(wat))
    seal(path, dataclasses.replace(template.manifest, arena_bytes=0, param_bytes=0))
    return path


def seeded(session: Session) -> dict[str, Any]:
    """Seeded noise for a session's inputs."""
    rng = np.random.default_rng(0)
    return {spec.name: rng.normal(0, 1, spec.static_shape).astype(spec.dtype) for spec in session.inputs}


@contextmanager
def _bystander(path: Path, untrusted: bool) -> Iterator[Callable[[], int]]:
    """Run a session in the background, whose outputs must not change; yield a function that returns the
    number of runs."""
    done, wrong, stop = [0], [0], threading.Event()

    def work() -> None:
        with wg.load(path, untrusted=untrusted) as session:
            feeds = seeded(session)
            expected = session.run(feeds)
            while not stop.is_set():
                same = all((session.run(feeds)[n] == a).all() for n, a in expected.items())
                done[0] += same
                wrong[0] += not same
                time.sleep(0.01)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield lambda: -wrong[0] or done[0]
    finally:
        stop.set()
        worker.join()


def overshoots(template: Path, place: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """By attack, the most seconds beyond its limit, while other sessions run that it must not disturb."""
    found: dict[str, dict[str, Any]] = {}
    opened = Artifact.open(template)
    with _bystander(template, untrusted=False) as here, _bystander(template, untrusted=True) as there:
        for name, attack in _attacks().items():
            path = forge(place / "hostile.wasm", opened, attack.module)
            worst = max(_overshoot(path, attack) for _ in range(rounds))
            found[name] = {
                "limit_s": attack.seconds,
                "worst_overshoot_s": round(worst, 3),
                "rounds": rounds,
            }
        counts = (here(), there())
    if min(counts) <= 0:
        raise AssertionError(f"sessions beside an attack were disturbed: {counts}")
    found["sessions beside"] = {"right_results": sum(counts), "wrong_results": 0}
    return found


def _overshoot(path: Path, attack: Attack) -> float:
    """Seconds for which an attack goes on beyond its limit; processor seconds if that limit was exceeded.
    Loading and running have separate limits."""
    by_processor = attack.limits.cpu_s < attack.limits.wall_s
    clock = _children_s if by_processor else time.monotonic
    began, earlier = clock(), 0.0
    try:
        with wg.load(path, untrusted=True, limits=attack.limits) as session:
            assert isinstance(session, UntrustedSession)
            feeds = seeded(session)
            if by_processor:  # the clock counts ended children: subtract this one's loading
                used = psutil.Process(session.process_id).cpu_times()
                earlier = used.user + used.system
            else:
                began = clock()
            session.run(feeds)
    except LimitError:
        return clock() - began - earlier - attack.seconds
    raise AssertionError(f"nobody ended {path}")


def _children_s() -> float:
    """Processor time of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def overhead(path: Path, place: Path, calls: int) -> dict[str, Any]:
    """The additional time of a call of an untrusted session over a trusted one, in alternating calls, in
    ms.

    ``idle`` is for a graph with the tensors of ``path`` that does nothing: the cost of communication,
    without the noise of a graph's own time. ``graph`` is for the graph itself.
    """
    opened = Artifact.open(path)
    assert opened.module is not None
    memory = f'(memory (export "memory") {opened.module.memory_min} {opened.module.memory_min})'
    idle = forge(place / "idle.wasm", opened, f"(module {memory} {_RUN.format('')} {_STEP})")
    return {"idle": _paired(idle, 20 * calls), "graph": _paired(path, calls)}


def _paired(path: Path, calls: int) -> dict[str, Any]:
    """Median of the differences between two sessions, and its 95 % interval, in ms."""
    with wg.load(path) as trusted, wg.load(path, untrusted=True) as untrusted:
        feeds = seeded(trusted)
        expected, actual = trusted.run(feeds), untrusted.run(feeds)
        assert all((actual[name] == array).all() for name, array in expected.items())
        differences, alone = [], []
        for turn in range(calls):
            taken = {}
            for session in (trusted, untrusted)[:: 1 if turn % 2 else -1]:
                began = time.perf_counter()
                session.run(feeds)
                taken[session] = 1e3 * (time.perf_counter() - began)
            differences.append(taken[untrusted] - taken[trusted])
            alone.append(taken[trusted])
    interval = bootstrap((differences,), np.median, rng=np.random.default_rng(0)).confidence_interval
    figures = {"median_ms": np.median(differences), "low_ms": interval.low, "high_ms": interval.high}
    figures["trusted_ms"] = np.median(alone)
    return {name: round(float(ms), 3) for name, ms in figures.items()} | {"calls": calls}


def checking(path: Path, rounds: int = 50) -> float:
    """Milliseconds that the checks of an artifact and its module take at load, without hashing: the digest
    is cached."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        check(Artifact.open(path))
        taken.append(1e3 * (time.perf_counter() - began))
    return round(float(np.median(taken)), 2)
