"""pytest-benchmark's file, written without pytest: its own tools read it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wasmgraph.errors import needing
from wasmgraph.records import RunInfo

with needing("measuring revisions", "bench"):
    import pytest_benchmark
    from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
    from pytest_benchmark.stats import Stats


def benchmark(record: Mapping[str, Any], rounds: Sequence[float]) -> dict[str, Any]:
    """The entry of one latency test, as ``pytest bench`` would name it."""
    stats = Stats()
    for seconds in rounds:
        stats.update(seconds)
    case = f"{record['model']}-{record['backend']}"
    return {
        "group": None,
        "name": f"test_latency[{case}]",
        "fullname": f"regress::test_latency[{case}]",
        "params": {"model": record["model"], "backend": record["backend"]},
        "param": case,
        "extra_info": record,
        "options": {},
        "stats": {key: getattr(stats, key) for key in Stats.fields}
        | {"data": list(rounds), "iterations": 1},
    }


def results_file(benchmarks: Sequence[Mapping[str, Any]], info: RunInfo, commit: str) -> bytes:
    """The whole file."""
    machine = pytest_benchmark_generate_machine_info()
    machine.pop("node", None)  # results do not reveal a host's name
    content = {
        "machine_info": machine,
        "commit_info": {"id": commit, "dirty": False},
        "benchmarks": benchmarks,
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": pytest_benchmark.__version__,
        "wasmgraph": asdict(info),
    }
    return json.dumps(content, indent=1).encode()
