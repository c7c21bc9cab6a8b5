"""``make soak``: a million inferences, sessions that are loaded and closed, eight sessions at once. Outputs
must not change; memory, threads and open files must not grow. Writes ``results/reliability.json``.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import psutil
from onnx import helper, numpy_helper
from rich.console import Console
from rich.progress import track

import wasmgraph as wg
from trials.faulting.limits import seeded
from trials.fuzz import record
from wasmgraph.runtimes import Session

_GROWTH_BYTES = 2 << 20  # allowed for allocators; no inference may add to it
_WARM = 0.3  # of a run, before memory is sampled: V8's heap reaches its size after 100,000 inferences
_LOOKS = 200  # samples of memory; V8's varies with garbage collection, so medians of halves are compared
_PATIENCE_S = 1800.0
_ENDING_S = 1.0  # for a joined thread to disappear from the system's list


@dataclass(frozen=True)
class Soak:
    """A run: target, runtime, threads, whether it is untrusted, and the number of inferences."""

    target: str
    inferences: int
    runtime: str = "wasmtime"
    threads: int = 1
    untrusted: bool = False
    params: str = "embedded"

    @property
    def name(self) -> str:
        """The run's name in the record."""
        more = [f"{self.threads} threads"] * (self.threads > 1) + ["untrusted"] * self.untrusted
        more += ["parameters by WASI"] * (self.params == "wasi")
        return ", ".join([f"{self.target}@{self.runtime}", *more])


SOAKS = (
    Soak("wasm32-simd128", 1_000_000),
    Soak("wasm32-simd128", 100_000, untrusted=True),
    Soak("wasm32", 100_000, params="wasi"),
    Soak("wasm32-simd128-threads", 100_000, threads=2),
    Soak("wasm32-simd128", 1_000_000, runtime="node"),
)
_SESSIONS, _EACH, _CYCLES = 8, 20_000, 500


def small_net() -> onnx.ModelProto:
    """Two convolutions, a residual, a dense layer and a softmax, which take tens of microseconds."""
    rng = np.random.default_rng(0)
    shapes = {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "d": (16 * 64, 10)}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.2, s).astype(np.float32), n) for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["e"], pads=[1] * 4),
        helper.make_node("Add", ["e", "r"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("Gemm", ["f", "d"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "soaked",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("y", onnx.TensorProto.FLOAT, [1, 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def artifacts(place: Path) -> dict[tuple[str, str], Path]:
    """The small net's artifacts, by target and location of the parameters."""
    return {
        (s.target, s.params): wg.compile(small_net(), target=s.target, params=s.params).save(  # type: ignore[arg-type]
            place / f"{s.target}-{s.params}.wasm"
        )
        for s in SOAKS
    }


def _memory() -> int:
    """Resident bytes of this process and its children."""
    process = psutil.Process()
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


def _threads(process: psutil.Process, before: int) -> int:
    """The process's threads, once those that were joined have ended: the system takes a moment for each."""
    until = time.monotonic() + _ENDING_S
    while process.num_threads() > before and time.monotonic() < until:
        time.sleep(0.01)
    return int(process.num_threads())


def _same(outputs: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(np.array_equal(outputs[name], array) for name, array in expected.items())


def inferences(path: Path, soak: Soak, count: int, console: Console) -> dict[str, Any]:
    """Run one session ``count`` times."""
    with wg.load(path, runtime=soak.runtime, threads=soak.threads, untrusted=soak.untrusted) as session:
        feeds = seeded(session)
        expected = session.run(feeds)
        wrong, held, began = 0, [], time.monotonic()
        for number in track(range(count), soak.name, console=console):
            wrong += not _same(session.run(feeds), expected)
            if number % max(1, count // _LOOKS) == 0:
                held.append(_memory())
    warm = held[int(len(held) * _WARM) :]
    half = len(warm) // 2
    return {
        "inferences": count,
        "seconds": round(time.monotonic() - began),
        "wrong_outputs": wrong,
        "growth_bytes": int(np.median(warm[half:]) - np.median(warm[:half])),
    }


def at_once(paths: Mapping[tuple[str, str], Path], sessions: int, each: int) -> dict[str, Any]:
    """Run sessions in separate threads, every second one with a graph of two threads; none may hang."""
    wrong, done, broken = [0] * sessions, [0] * sessions, [""] * sessions

    def work(number: int) -> None:
        target, threads = ("wasm32-simd128-threads", 2) if number % 2 else ("wasm32-simd128", 1)
        try:
            with wg.load(paths[target, "embedded"], threads=threads) as session:
                feeds = {name: array + np.float32(number) for name, array in seeded(session).items()}
                expected = session.run(feeds)
                for _ in range(each):
                    wrong[number] += not _same(session.run(feeds), expected)
                    done[number] += 1
        except Exception as error:  # any exception is a find
            broken[number] = f"{type(error).__name__}: {error}"

    began = time.monotonic()
    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(sessions)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, began + _PATIENCE_S - time.monotonic()))
    return {
        "sessions": sessions,
        "inferences": sum(done),
        "seconds": round(time.monotonic() - began),
        "wrong_outputs": sum(wrong),
        "deadlocks": sum(worker.is_alive() for worker in workers),
        "errors": [text for text in broken if text],
    }


def cycles(paths: Mapping[tuple[str, str], Path], count: int, console: Console) -> dict[str, Any]:
    """Load, run and close sessions of every kind in turn; return what each kind leaves behind."""
    process = psutil.Process()
    kinds = [s for s in SOAKS if s.runtime == "wasmtime" and not s.untrusted]
    held: list[tuple[int, int, int]] = []

    def run(session: Session) -> None:
        session.run(seeded(session))

    for number in track(range(count), "load and close", console=console):
        soak = kinds[number % len(kinds)]
        with wg.load(paths[soak.target, soak.params], threads=soak.threads) as session:
            run(session)
        if number % max(1, count // 20) == 0:
            threads = _threads(process, held[-1][1] if held else 0)
            held.append((_memory(), threads, process.num_fds()))
    warm = held[len(held) // 4 :]
    growth = warm[-1][0] - warm[0][0]
    return {
        "sessions": count,
        "growth_bytes_a_session": round(growth / (count * len(warm) / len(held))),
        "threads_more": warm[-1][1] - warm[0][1],
        "open_files_more": warm[-1][2] - warm[0][2],
    }


def finds(figures: Mapping[str, Any]) -> list[str]:
    """The requirements that the figures do not meet."""
    found = []
    for name, said in figures.items():
        if said.get("wrong_outputs") or said.get("deadlocks") or said.get("errors"):
            found.append(f"{name}: {said}")
        if said.get("growth_bytes", 0) > _GROWTH_BYTES or said.get("growth_bytes_a_session", 0) > 4096:
            found.append(f"{name} grows: {said}")
        if said.get("threads_more", 0) > 0 or said.get("open_files_more", 0) > 0:
            found.append(f"{name} leaves something behind: {said}")
    return found


def soaked(part: float, console: Console) -> dict[str, Any]:
    """All figures, from a fraction ``part`` of the inferences."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        paths = artifacts(Path(place))
        for soak in SOAKS:
            count = max(100, round(soak.inferences * part))
            figures[soak.name] = inferences(paths[soak.target, soak.params], soak, count, console)
        figures["at once"] = at_once(paths, _SESSIONS, max(20, round(_EACH * part)))
        figures["load and close"] = cycles(paths, max(40, round(_CYCLES * part)), console)
    return figures


@click.command()
@click.option(
    "--part", default=1.0, type=click.FloatRange(0, 1), help="Of the inferences; less is not recorded."
)
def main(part: float) -> None:
    """Do all of it."""
    console = Console(stderr=True)
    figures = soaked(part, console)
    for name, said in figures.items():
        console.print(name, said)
    if part == 1:
        record("soak", figures)
    for find in (found := finds(figures)):
        console.print(find, markup=False)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
