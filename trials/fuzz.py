"""``make fuzz``: thousands of malformed or unusual inputs; writes ``results/reliability.json``.

A worker that dies counts as a crash, and one that does not answer for ten seconds as a hang. Both are
finds, and so is any exception that is not one of wasmgraph's. ``python -m trials.fuzz modules --seed 4711``
repeats one case.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from trials.fuzzing.graphs import histogram
from trials.fuzzing.modules import EVERY_CHECK
from wasmgraph.errors import ProcessError
from wasmgraph.files import cache_dir, write_atomically
from wasmgraph.processes import Child

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "reliability.json"
SIZES = {
    "modules": 10_000,
    "onnx_files": 2_000,
    "graphs": 500,
    "open_graphs": 500,
    "open_values": 2_000,
    "results_files": 2_000,
    "command_lines": 500,
}
_PATIENCE_S = {"graphs": 120.0, "open_graphs": 120.0, "open_values": 60.0}  # others are refused or small
_FIRST_S = 120.0  # includes imports and a worker's preparation
_FINDS = ("untyped", "unexpected", "crashed", "hung", "disagrees")


@dataclass
class Tally:
    """Outcomes, and for each find its seed and message."""

    outcomes: Counter[str] = field(default_factory=Counter)
    finds: list[tuple[int, str, str | None]] = field(default_factory=list)

    def add(self, seed: int, outcome: str, said: str | None) -> None:
        self.outcomes[outcome] += 1
        if outcome.startswith(_FINDS):
            self.finds.append((seed, outcome, said))


class Worker:
    """A process that runs cases; it is restarted when it dies or hangs."""

    def __init__(self, kind: str, cache: Path) -> None:
        self._kind = kind
        # Zig's cache is shared: building the C library again for every worker would look like a hang.
        zig = str(cache_dir("zig"))
        zigs = {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}
        self._environment = {**os.environ, **zigs, "WASMGRAPH_CACHE": str(cache)}
        self._child: Child | None = None

    def do(self, seed: int) -> tuple[int, str, str | None]:
        """Run one case; return its seed, outcome and message, if any."""
        patience = _PATIENCE_S.get(self._kind, 10.0)
        if self._child is None or self._child.closed:
            patience += _FIRST_S
            command = [sys.executable, "-m", "trials.fuzzing.worker", self._kind]
            self._child = Child(command, self._kind, cwd=ROOT, env=self._environment)
        try:
            answer, _ = self._child.ask({"seed": seed}, seconds=patience)
            return seed, str(answer["outcome"]), answer["find"]
        except ProcessError as error:
            if error.late:
                return seed, "hung", f"over {patience:g} s"
            return seed, "crashed", str(error)

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()


def fuzz(kind: str, count: int, first: int = 0, workers: int = 2) -> Tally:
    """Do ``count`` cases of a kind, from the seed ``first`` on."""
    tally, lock = Tally(), Lock()
    seeds = iter(track(range(first, first + count), kind, console=Console(stderr=True)))

    def work(cache: Path) -> None:
        worker = Worker(kind, cache)
        try:
            while True:
                with lock:
                    seed = next(seeds, None)
                if seed is None:
                    return
                done = worker.do(seed)
                with lock:
                    tally.add(*done)
        finally:
            worker.close()

    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(workers) as pool:
        caches = [Path(place) / str(number) for number in range(workers)]
        for done in [pool.submit(work, cache) for cache in caches]:
            done.result()
    return tally


def record(section: str, figures: dict[str, Any]) -> None:
    """Put figures into a section of ``results/reliability.json``; leave the other sections."""
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_atomically(
        RESULTS, (json.dumps({**held, section: figures}, indent=1, sort_keys=True) + "\n").encode()
    )


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(list(SIZES)))
@click.option("--count", type=click.IntRange(1), help="Cases of each kind; the default is the whole size.")
@click.option("--seed", type=int, help="Do this one case, and show what is raised.")
def main(kinds: tuple[str, ...], count: int | None, seed: int | None) -> None:
    """Fuzz KINDS, or everything."""
    console, bad = Console(), 0
    for kind in kinds or SIZES:
        if seed is not None:
            from importlib import import_module

            with tempfile.TemporaryDirectory() as place:
                console.print(import_module(f"trials.fuzzing.{kind}").case(seed, Path(place)))
            continue
        began = time.monotonic()
        tally = fuzz(kind, count or SIZES[kind])
        figures = {
            "cases": tally.outcomes.total(),
            "outcomes": dict(tally.outcomes.most_common()),
            "finds": len(tally.finds),
            "seconds": round(time.monotonic() - began),
        }
        if kind == "graphs":
            figures["operators"] = dict(histogram(tally.outcomes.total()).most_common())
        console.print(kind, figures)
        for number, outcome, said in tally.finds[:20]:
            console.print(number, outcome, (said or "").strip()[-300:], markup=False)
        bad += len(tally.finds)
        if kind == "modules" and count is None:
            missed = EVERY_CHECK - {outcome.removeprefix("refused: ") for outcome in tally.outcomes}
            console.print(f"checks that no module failed: {', '.join(sorted(missed)) or 'none'}")
            bad += len(missed)
        if count is None:
            record(f"fuzz_{kind}", figures)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
