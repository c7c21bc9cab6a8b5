"""Checks that verdicts can be trusted: identical code must not raise alarms, and known regressions must be
caught.

``make prove`` writes ``results/proof.json``. It can be interrupted: finished experiments are kept in the
user's cache, by commit, and are not repeated.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import wasmgraph as wg
from bench.backends import DEFAULT, NOOP, parse, parse_list
from bench.lab import Bench, Network
from trials.mutations import lower_bias, more_work, slower, spilling
from wasmgraph.analysis import Comparison, compare, read_thresholds
from wasmgraph.analysis.compare import TIME, median_interval
from wasmgraph.analysis.runs import KERNEL_WORK
from wasmgraph.analysis.thresholds import OWN
from wasmgraph.errors import MissingDependencyError, UnsupportedOperatorError
from wasmgraph.files import cache_dir, write_atomically
from wasmgraph.host import cpu_name, host_id
from wasmgraph.measure.interleaved import Schedule, block_of
from wasmgraph.models.evaluation import evaluation
from wasmgraph.regress import Options, checkout, measure_pair, repository
from wasmgraph.runtimes.metrics import metrics

ROOT = Path(__file__).parent.parent
SMALL, LARGE, SIMD = "light_squeezenet", "resnet50", "wasm32-simd128@wasmtime"
SMALL_RUNS, LARGE_RUNS, WORK_RUNS, SLOW_RUNS, SPILL_RUNS, ACCURACY_RUNS = 37, 3, 10, 10, 3, 3
BACKENDS = (SIMD, "native@native", SIMD, "wasm32@wasmtime")  # in turn
_QUICK = {"pairs": 4, "least": 1, "most": 1}  # for experiments that do not concern time
_PASSES, _ALONE = 12, 4
Outcome = dict[str, Any]


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


@cache
def _commit() -> str:
    """The commit under test: the revision that the command names, or HEAD at the beginning."""
    with checkout(repository(), sys.argv[1] if len(sys.argv) > 1 else "HEAD", _say) as head:
        return head.commit


def _run(
    model: str, backend: str, change: Callable[[Path], None] | None = None, **options: Any
) -> Comparison:
    """Compare the commit with itself, or with a changed copy of itself."""
    root = repository()
    quiet = lambda _: None  # noqa: E731
    with (
        tempfile.TemporaryDirectory(prefix="wasmgraph-prove-") as directory,
        checkout(root, _commit(), quiet) as base,
        checkout(root, _commit(), quiet) as head,
    ):
        if change is not None:
            change(head.root)
        chosen = Options([model], parse_list(backend, 1), **options)
        files = measure_pair(base, head, chosen, Path(directory), quiet)
        return compare(*files, read_thresholds())


def _found(comparison: Comparison) -> Outcome:
    """Every verdict except those of no difference, and all verdicts about time."""
    return {
        "worse": comparison.worse,
        "judged": comparison.judged,
        "verdicts": [
            asdict(v) for v in comparison.verdicts if v.outcome in ("worse", "better") or v.metric == TIME
        ],
    }


def _same(model: str, backend: str) -> Outcome:
    return _found(_run(model, backend)) | {"model": model, "backend": backend}


@cache
def _kernels() -> list[tuple[str, int, int]]:
    """The small model's kernels that are called once: name, step and fuel, in order of fuel."""
    artifact = wg.compile(wg.fetch(SMALL), target="wasm32-simd128")
    feeds = evaluation(wg.fetch(SMALL), artifact.inputs, None, _say).feeds[0]
    work = metrics(artifact, feeds)[KERNEL_WORK]
    names = [step.kernel for step in artifact.manifest.steps]
    once = [(name, names.index(name), work[name]) for name in work if names.count(name) == 1]
    return sorted(once, key=lambda kernel: kernel[2])


def _more_work(number: int) -> Outcome:
    kernels = _kernels()
    name, step, fuel = kernels[number * (len(kernels) - 1) // (WORK_RUNS - 1)]
    compared = _run(SMALL, SIMD, partial(more_work, step=step, fuel=round(0.05 * fuel)), **_QUICK)
    (kernel,) = [v for v in compared.verdicts if v.metric == f"work_fuel of {name}"]
    return _found(compared) | {
        "kernel": name,
        "added": (kernel.ratio or 1) - 1,
        "caught": kernel.outcome == "worse" and compared.worse,
    }


def _slower(_: int) -> Outcome:
    compared = _run(SMALL, SIMD, partial(slower, factor=1.1))
    (seen,) = [v for v in compared.verdicts if v.metric == TIME]
    return _found(compared) | {"caught": seen.outcome == "worse"}


def _spilling(_: int) -> Outcome:
    compared = _run(SMALL, SIMD, spilling)
    outcomes = {v.metric: v.outcome for v in compared.verdicts}
    caught = outcomes[TIME] == "worse" and compared.worse
    return _found(compared) | {"work": outcomes["work_fuel"], "time": outcomes[TIME], "caught": caught}


@cache
def _narrow() -> list[tuple[int, float]]:
    """Classes that are correct for one photograph by a narrow margin, with the margins in logits."""
    path = wg.fetch(LARGE)
    with wg.load(path) as session:
        judged = evaluation(path, session.inputs, None, _say)
        logits = np.stack([session.run(feeds)["logits"].ravel() for feeds in judged.feeds])
    first = logits.argmax(axis=1)
    ordered = np.sort(logits, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    labels = judged.labels or []
    return [
        (int(first[i]), float(margins[i]))
        for i in np.argsort(margins)
        if first[i] == labels[i] and (first == first[i]).sum() == 1
    ]


def _one_photograph(number: int) -> Outcome:
    label, margin = _narrow()[number]
    change = partial(lower_bias, label=label, by=margin + 0.05)
    compared = _run(LARGE, SIMD, change, **_QUICK)
    (top1,) = [v for v in compared.verdicts if v.metric == "top1"]
    lost = (top1.base or 0) - (top1.head or 0)
    return _found(compared) | {"lost": lost, "caught": lost == 1 and top1.outcome == "worse"}


@contextmanager
def _bench(model: str, schedule: Schedule) -> Iterator[Bench]:
    network = Network(model)
    bench = Bench(network, [parse(name) for name in DEFAULT], schedule, 1, None, 0, _say)
    try:
        yield bench
    finally:
        bench.close()
        network.close()


def _noop() -> Outcome:
    with _bench(NOOP, Schedule(blocks=100)) as bench:
        return {name: median(seconds) for name, seconds in bench.rounds.items()}


def _interleaving() -> Outcome:
    """Does interleaving with other backends distort a backend's time? Compares each backend alone, in
    uninterrupted calls, with the same backend taking turns; the median ratio over passes, and its interval.
    """
    with _bench(SMALL, Schedule()) as bench:
        blocks = {}
        for backend in bench.backends:
            try:
                session = bench.session(backend)
            except (MissingDependencyError, UnsupportedOperatorError) as error:
                _say(f"skipped: {backend.name}: {error}")
                continue
            blocks[backend.name] = block_of(partial(session.run, bench.inputs[0]), backend.threads)
        ratios: dict[str, list[float]] = {name: [] for name in blocks}
        for _ in range(_PASSES):
            in_turn = {name: block(2) for name, block in blocks.items()}
            for name, block in blocks.items():
                block(_ALONE)
                ratios[name].append(median(in_turn[name]) / median(block(2)))
    found = {}
    for name, values in ratios.items():
        low, high = median_interval(np.array(values), 0.95)
        found[name] = {"ratio": median(values), "low": low, "high": high}
    return found


def _scale() -> Outcome:
    """Seconds that two commands take on files much larger than any in this project."""
    rng = np.random.default_rng(0)
    known = {"model": "net", "target": "t", "weights": "trained", "threads": 1, "batch": 1, "inputs": 20}
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="wasmgraph-prove-") as directory:
        place = Path(directory)
        for side in ("base", "head"):
            entries = [
                {
                    "name": f"test_latency[net-b{n}]",
                    "stats": {"data": (1 + rng.random(160)).tolist(), "median": 1.5},
                    "extra_info": known
                    | {"backend": f"b{n}", "work_fuel": n, "module_bytes": n, "top1": 19},
                }
                for n in range(2_500)
            ]
            info = {"schema": 1, "host": "h", "pairing": {"run": "r", "side": side, "per_process": 16}}
            (place / f"{side}.json").write_text(json.dumps({"benchmarks": entries, "wasmgraph": info}))
        files = [str(place / f"{side}.json") for side in ("base", "head")]
        seconds["compare, 10,000 series"] = _seconds("compare", *files)
        with (place / "history.jsonl").open("w") as stream:
            for run in range(1_000):
                head = {
                    "schema": 1,
                    "run": str(run),
                    "datetime": f"{run:06}",
                    "commit": f"c{run}",
                    "host": "h",
                }
                for series in range(100):
                    values = {
                        "latency_s": 1 + rng.random(),
                        "ratio": 2 + rng.random(),
                        "work_fuel": run // 300,
                    }
                    stream.write(json.dumps(head | {"series": f"s{series}", "values": values}) + "\n")
        shown = _seconds("history", "show", "--file", str(place / "history.jsonl"))
        seconds["history show, 100,000 lines"] = shown
    return seconds


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "wasmgraph", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode > 1:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}")
    return time.perf_counter() - began


def experiments() -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """All experiments by name, the quick ones first."""
    yield "scale", _scale
    yield "noop", _noop
    yield "interleaving", _interleaving
    for n in range(WORK_RUNS):
        yield f"work-{n:02}", partial(_more_work, n)
    for n in range(ACCURACY_RUNS):
        yield f"accuracy-{n:02}", partial(_one_photograph, n)
    for n in range(SPILL_RUNS):
        yield f"spilling-{n:02}", partial(_spilling, n)
    for n in range(SLOW_RUNS):
        yield f"slower-{n:02}", partial(_slower, n)
    for n in range(LARGE_RUNS):
        yield f"same-large-{n:02}", partial(_same, LARGE, SIMD)
    for n in range(SMALL_RUNS):
        yield f"same-small-{n:02}", partial(_same, SMALL, BACKENDS[n % len(BACKENDS)])


def summary(outcomes: dict[str, Outcome]) -> Outcome:
    """The combined result of the experiments."""

    def group(prefix: str) -> list[Outcome]:
        return [outcome for name, outcome in outcomes.items() if name.startswith(prefix)]

    same = [verdict for outcome in group("same-") for verdict in outcome["verdicts"]]
    alarms = [verdict for verdict in same if verdict["outcome"] in ("worse", "better")]
    caught = {
        name: {"runs": len(group(f"{name}-")), "caught": sum(o["caught"] for o in group(f"{name}-"))}
        for name in ("work", "accuracy", "spilling", "slower")
    }
    return {
        "identical_code": {
            "runs": len(group("same-")),
            "series_judged": sum(outcome["judged"] for outcome in group("same-")),
            "deterministic_alarms": sum(verdict["metric"] != TIME for verdict in alarms),
            "time_alarms": sum(verdict["metric"] == TIME for verdict in alarms),
            "time_not_judged": sum(v["outcome"] == "not comparable" for v in same),
        },
        "known_regressions": caught,
        "scale_s": outcomes.get("scale", {}),
        "noop_s": outcomes.get("noop", {}),
        "interleaved_over_alone": outcomes.get("interleaving", {}),
    }


def holds(found: Outcome) -> dict[str, bool]:
    """The project's requirements for verdicts, and whether the results meet them."""
    same, caught = found["identical_code"], found["known_regressions"]
    every = {
        name: caught[name]["caught"] == caught[name]["runs"] > 0
        for name in ("work", "accuracy", "spilling")
    }
    wasmtime = [s for name, s in found["noop_s"].items() if name.endswith("@wasmtime")]
    return {
        "40 runs of identical code": same["runs"] >= 40,
        "no deterministic alarm": same["deterministic_alarms"] == 0,
        "at most one alarm of time": same["time_alarms"] <= 1 and same["time_not_judged"] == 0,
        "a tenth slower is caught 9 times of 10": caught["slower"]["caught"]
        >= 0.9 * caught["slower"]["runs"]
        > 0,
        **{f"{name} is caught every time": held for name, held in every.items()},
        "a call costs at most 50 µs in Wasmtime": max(wasmtime, default=1) <= 50e-6,
        "compare of 10,000 series takes at most 5 s": found["scale_s"]["compare, 10,000 series"] <= 5,
        "history of 100,000 lines takes at most 10 s": found["scale_s"]["history show, 100,000 lines"]
        <= 10,
        "within an hour": found["seconds"] <= 3600,
    }


def main() -> None:
    """Do what is not yet done, then write the proof."""
    key = hashlib.sha256(f"{_commit()} {host_id()} {OWN.read_text()}".encode()).hexdigest()[:16]
    place = cache_dir("proof", key)
    planned = list(experiments())
    outcomes: dict[str, Outcome] = {}
    spent: dict[str, float] = {}
    for number, (name, run) in enumerate(planned, 1):
        file = place / f"{name}.json"
        if not file.exists():
            began = time.perf_counter()
            outcome = run()
            seconds = time.perf_counter() - began
            write_atomically(file, json.dumps({"seconds": seconds, "outcome": outcome}).encode())
        done = json.loads(file.read_text())
        outcomes[name], spent[name] = done["outcome"], done["seconds"]
        said = {k: v for k, v in outcomes[name].items() if k in ("caught", "worse", "backend", "kernel")}
        _say(f"{number}/{len(planned)} {name}: {spent[name]:.0f} s {said or ''}")
    found = summary(outcomes) | {"seconds": sum(spent.values())}
    found["holds"] = holds(found)
    proof = {"commit": _commit(), "host": host_id(), "processor": cpu_name(), **found, "runs": outcomes}
    write_atomically(ROOT / "results" / "proof.json", json.dumps(proof, indent=1).encode())
    _say(
        json.dumps({key: found[key] for key in ("identical_code", "known_regressions", "holds")}, indent=1)
    )
    if not all(found["holds"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
