from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wasmgraph.analysis import Thresholds, read_thresholds

Write = Callable[..., Path]


@pytest.fixture
def thresholds() -> Thresholds:
    return read_thresholds()


def benchmark(name: str = "test_latency", backend: str = "wasm32@wasmtime", **extra: Any) -> dict[str, Any]:
    rounds = extra.pop("rounds", [1.0, 1.1])
    known = {"model": "net", "backend": backend, "target": "wasm32", "weights": "trained", "threads": 1,
             "batch": 1, "model_sha256": "0" * 64}  # fmt: skip
    ordered = sorted(rounds)
    median = ordered[len(ordered) // 2] if ordered else 0
    return {
        "name": f"{name}[net-{backend}]",
        "stats": {"data": rounds, "median": median, "rounds": len(rounds), "min": 0, "max": 0, "mean": 0,
                  "stddev": 0},
        "extra_info": known | extra,
    }  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a results file; ``side`` makes it one of a paired run."""

    def written(name: str, benchmarks: list[dict[str, Any]], side: str = "", **info: Any) -> Path:
        wasmgraph = {"schema": 1, "host": "here", "notices": [], "skipped": {}, "failed": {}, **info}
        if side:
            wasmgraph["pairing"] = {"run": "r", "side": side, "per_process": 4} | info.get("pairing", {})
        data = {
            "machine_info": {"machine": "x86_64"},
            "commit_info": {"id": name},
            "benchmarks": benchmarks,
            "wasmgraph": wasmgraph,
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        return path

    return written
