"""Runs all of ONNX's own backend tests against wasmgraph's ONNX backend: ``make conformance`` writes
``results/conformance.json``.

The run can be interrupted: outcomes are kept in the user's cache, by the state of the sources, and cases
with a known outcome are not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from queue import Empty, Queue
from threading import Lock
from typing import Any

import click
import onnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wasmgraph.errors import ProcessError
from wasmgraph.files import cache_dir, write_atomically
from wasmgraph.processes import Child

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "conformance.json"
TARGETS = ("wasm32-simd128", "wasm32", "native")
# The dtypes that a graph's inputs and outputs must have for a case to count.
COUNTED = ("FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL")
_ROOMS = ("compiler", "runtimes")  # their code determines the outcome of a case
_SECONDS = 300  # a case that takes longer has hung


@dataclass(frozen=True)
class Case:
    """One test: ONNX's category and name, the operator that it tests, and whether its inputs and outputs
    are tensors of the dtypes that count.
    """

    category: str
    name: str
    operator: str
    counts: bool


@cache
def cases() -> tuple[Case, ...]:
    """Every case of ONNX's suite."""
    from onnx.backend.test.loader import load_model_tests

    kinds = {
        "Node": "node",
        "Real": "real",
        "Simple": "simple",
        "PyTorchConverted": "pytorch-converted",
        "PyTorchOperator": "pytorch-operator",
    }
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category, kind in kinds.items():
            tests = load_model_tests(kind=kind)
            operators: dict[str, str] = {}
            for test in sorted(tests, key=lambda t: len(t.name)):
                model = test.model
                if model is None and test.model_dir is not None:
                    model = onnx.load(Path(test.model_dir, "model.onnx"))
                plain = re.sub(r"_expanded.*", "", test.name)
                about = operators.get(plain) or _operator(model)
                operators[test.name] = about
                counts = model is not None and _counts(model.graph)
                found.append(Case(category, f"{test.name}_cpu", about, counts))
    return tuple(sorted(found, key=lambda c: (c.category, c.name)))


def _operator(model: onnx.ModelProto | None) -> str:
    kinds = [node.op_type for node in model.graph.node] if model is not None else []
    return kinds[0] if len(set(kinds)) == 1 else "(networks)"


def _counts(graph: onnx.GraphProto) -> bool:
    values = [*graph.input, *graph.output]
    tensors = all(value.type.WhichOneof("value") == "tensor_type" for value in values)
    kinds = {value.type.tensor_type.elem_type for value in values}
    return tensors and kinds <= {getattr(onnx.TensorProto, name) for name in COUNTED}


class Worker:
    """A process that runs cases for one target; it is restarted when it dies or hangs."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.child: Child | None = None

    def run(self, case: Case) -> dict[str, str]:
        """Run a case; return its outcome."""
        if self.child is None or self.child.closed:
            command = [sys.executable, "-m", "trials.conformance_worker", self.target]
            self.child = Child(command, self.target, cwd=ROOT)
        try:
            answer, _ = self.child.ask({"category": case.category, "name": case.name}, seconds=_SECONDS)
            return answer
        except ProcessError as error:
            reason = f"no answer in {_SECONDS} s" if error.late else str(error)
            return {"outcome": "crashed", "reason": reason[:300]}

    def close(self) -> None:
        """End the process."""
        if self.child is not None:
            self.child.close()


def run_cases(target: str, wanted: Sequence[Case], workers: int) -> Iterator[tuple[Case, dict[str, str]]]:
    """Run cases on ``workers`` processes; yield each with its outcome, in the order in which they end."""
    waiting: Queue[Case] = Queue()
    for case in wanted:
        waiting.put(case)
    ended: Queue[tuple[Case, dict[str, str]]] = Queue()

    def work() -> None:
        worker = Worker(target)
        try:
            while True:
                case = waiting.get_nowait()
                ended.put((case, worker.run(case)))
        except Empty:
            return
        finally:
            worker.close()

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            for _ in wanted:
                while True:
                    try:
                        yield ended.get(timeout=1)
                        break
                    except Empty:
                        for future in running:
                            if future.done():
                                future.result()
        finally:
            while not waiting.empty():
                waiting.get_nowait()


def _sources() -> str:
    """A digest of everything that outcomes depend on: the compiler, the runtimes and their packages."""
    digest = hashlib.sha256()
    package = ROOT / "wasmgraph"
    for path in sorted(
        [*package.glob("*.py"), *(p for room in _ROOMS for p in (package / room).rglob("*"))]
    ):
        if path.suffix in (".py", ".c"):
            digest.update(path.read_bytes())
    digest.update(repr([version(p) for p in ("onnx", "apache-tvm", "onnxruntime", "wasmtime")]).encode())
    return digest.hexdigest()[:16]


class Journal:
    """Outcomes by target and case, one line of JSON each, appended as they come."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[tuple[str, str, str], dict[str, str]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    *key, outcome = json.loads(line)
                except ValueError:
                    continue  # incomplete: the last run was killed
                self.known[tuple(key)] = outcome

    def add(self, target: str, case: Case, outcome: dict[str, str]) -> None:
        """Append an outcome."""
        with self.lock, self.path.open("a") as stream:
            self.known[target, case.category, case.name] = outcome
            stream.write(
                "\n" * (stream.tell() > 0) + json.dumps([target, case.category, case.name, outcome])
            )


def summary(outcomes: Sequence[tuple[Case, dict[str, str]]]) -> dict[str, Any]:
    """The number of cases by outcome, of those that count, of the node tests and of all."""
    groups = {
        "node_counted": [o["outcome"] for c, o in outcomes if c.category == "Node" and c.counts],
        "node": [o["outcome"] for c, o in outcomes if c.category == "Node"],
        "all": [o["outcome"] for c, o in outcomes],
    }
    return {name: {"cases": len(found), **Counter(found)} for name, found in groups.items()}


@click.command()
@click.option("--targets", default=",".join(TARGETS), show_default=True)
@click.option("--match", default="", help="Only cases whose name matches; writes no results.")
@click.option(
    "--outcomes", default="", help="Only cases that came to one of these in the committed results."
)
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
def main(targets: str, match: str, outcomes: str, workers: int) -> None:
    """Run the suite and write results/conformance.json."""
    names = targets.split(",")
    wanted = [case for case in cases() if re.search(match, case.name)]
    if outcomes:
        before = json.loads(RESULTS.read_text())["cases"]
        wanted = [
            c
            for c in wanted
            if any(
                before.get(f"{c.category}/{c.name}", {}).get(t, ["crashed"])[0] in outcomes for t in names
            )
        ]
    journal = Journal(cache_dir() / "conformance" / f"{_sources()}.jsonl")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for target in names:
            left = [c for c in wanted if (target, c.category, c.name) not in journal.known]
            task = progress.add_task(target, total=len(wanted), completed=len(wanted) - len(left))
            for case, outcome in run_cases(target, left, workers):
                journal.add(target, case, outcome)
                progress.advance(task)
    found = {t: [(c, journal.known[t, c.category, c.name]) for c in wanted] for t in names}
    for target, pairs in found.items():
        click.echo(f"{target}: {json.dumps(summary(pairs))}")
        for case, outcome in pairs:
            if outcome["outcome"] in ("wrong", "crashed"):
                click.echo(f"  {case.name}: {outcome['outcome']}: {outcome['reason']}")
    if not match and not outcomes and set(names) == set(TARGETS):
        write_results(found)


def write_results(found: dict[str, list[tuple[Case, dict[str, str]]]]) -> None:
    """Write results/conformance.json: a summary by target, and every case."""
    table: dict[str, dict[str, Any]] = {}
    for target, pairs in found.items():
        for case, outcome in pairs:
            row = table.setdefault(
                f"{case.category}/{case.name}", {"operator": case.operator, "counts": case.counts}
            )
            row[target] = [outcome["outcome"], *([outcome["reason"]] if "reason" in outcome else [])]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    head = {
        "onnx": version("onnx"),
        "dtypes": [name.lower() for name in COUNTED],
        "summary": {target: summary(pairs) for target, pairs in found.items()},
    }
    text = json.dumps(head, indent=1)[:-2] + f',\n "cases": {{\n{lines}\n }}\n}}\n'
    write_atomically(RESULTS, text.encode())


if __name__ == "__main__":
    main()
