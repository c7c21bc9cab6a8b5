"""``make stress``: one graph run by many threads at once, on one session, on a pool and on clones, in every
runtime. No output may be wrong, nothing may fail or hang.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import wasmgraph as wg
from trials.soak import small_net
from wasmgraph.tensors import Array, TensorSpec

_PATIENCE_S = 300.0
Feeds = Mapping[str, Array]
Run = Callable[[Feeds], Mapping[str, Array]]


@dataclass(frozen=True)
class Kind:
    """What to load, a target or ``onnx``, and how."""

    name: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)


KINDS = (
    Kind("wasmtime", "wasm32-simd128"),
    Kind("wasmtime, 2 threads", "wasm32-simd128-threads", {"threads": 2}),
    Kind("node", "wasm32-simd128", {"runtime": "node"}),
    Kind("native", "native"),
    Kind("onnxruntime", "onnx"),
    Kind("untrusted", "wasm32-simd128", {"untrusted": True}),
)


@dataclass
class Outcome:
    """The number of runs, the number with wrong outputs, errors, and seconds."""

    runs: int
    wrong: int
    errors: list[str]
    seconds: float


@contextmanager
def _one_session(path: Path, threads: int, options: Mapping[str, Any]) -> Iterator[list[Run]]:
    with wg.load(path, **options) as session:
        yield [session.run] * threads


@contextmanager
def _pool(path: Path, threads: int, options: Mapping[str, Any]) -> Iterator[list[Run]]:
    """A pool of half as many sessions as threads, so that threads have to wait."""
    with wg.SessionPool(path, max(1, threads // 2), **options) as pool:
        yield [pool.run] * threads


@contextmanager
def _clones(path: Path, threads: int, options: Mapping[str, Any]) -> Iterator[list[Run]]:
    with ExitStack() as stack:
        first = stack.enter_context(wg.load(path, **options))
        clones = [stack.enter_context(first.clone()) for _ in range(threads - 1)]
        yield [session.run for session in (first, *clones)]


@contextmanager
def _hasty() -> Iterator[None]:
    """Make Python switch threads after microseconds instead of milliseconds: in the middle of a run."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


WAYS = {"one session": _one_session, "pool": _pool, "clones": _clones}


def _feeds(inputs: tuple[TensorSpec, ...], number: int) -> dict[str, Array]:
    rng = np.random.default_rng(number)
    return {spec.name: rng.normal(0, 1, spec.static_shape).astype(spec.dtype) for spec in inputs}


def stress(path: Path, options: Mapping[str, Any], way: str, threads: int, runs: int) -> Outcome:
    """Run ``path`` ``runs`` times in each of ``threads`` threads, each on an input of its own."""
    with wg.load(path, **options) as alone:
        feeds = [_feeds(alone.inputs, number) for number in range(threads)]
        expected = [alone.run(each) for each in feeds]
    done, wrong, errors = [0] * threads, [0] * threads, []

    def work(number: int, run: Run) -> None:
        for _ in range(runs):
            try:
                found = run(feeds[number])
            except Exception as error:  # any exception is a find
                errors.append(f"{type(error).__name__}: {error}")
            else:
                wrong[number] += any(
                    not np.array_equal(found[name], array) for name, array in expected[number].items()
                )
            done[number] += 1

    with WAYS[way](path, threads, options) as calls, _hasty():
        began = time.monotonic()
        workers = [
            threading.Thread(target=work, args=(number, run), daemon=True)
            for number, run in enumerate(calls)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, began + _PATIENCE_S - time.monotonic()))
        seconds = time.monotonic() - began
        if hung := sum(worker.is_alive() for worker in workers):
            Console(stderr=True).print(f"{path}, {way}: {hung} threads hang")
            os._exit(1)  # closing would wait for them
    return Outcome(sum(done), sum(wrong), errors, seconds)


@click.command()
@click.option("--threads", default=8, show_default=True, type=click.IntRange(1))
@click.option("--runs", default=1000, show_default=True, type=click.IntRange(1), help="In each thread.")
def main(threads: int, runs: int) -> None:
    """All kinds in all ways."""
    table = Table("runtime", "on", "runs", "wrong", "errors", "runs/s", title=f"{threads} threads at once")
    failed = False
    with tempfile.TemporaryDirectory() as place:
        for kind in KINDS:
            if kind.options.get("runtime") == "node" and shutil.which("node") is None:
                table.add_row(kind.name, "there is no `node` on the PATH")
                continue
            path = Path(place) / kind.target
            if kind.target == "onnx":
                onnx.save(small_net(), path)
            elif not path.exists():
                wg.compile(small_net(), target=kind.target).save(path)
            for way in WAYS:
                outcome = stress(path, kind.options, way, threads, runs)
                counts = (outcome.runs, outcome.wrong, len(outcome.errors), outcome.runs / outcome.seconds)
                table.add_row(kind.name, way, *(f"{count:,.0f}" for count in counts))
                for error in sorted(set(outcome.errors)):
                    table.add_row("", error)
                failed |= bool(outcome.wrong or outcome.errors)
    Console(width=100).print(table, markup=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
