"""The first cases of each kind of fuzzing; `make fuzz` does thousands."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from trials.fuzz import _PATIENCE_S, fuzz
from trials.fuzzing import graphs, modules


@pytest.mark.parametrize(
    ("kind", "seeds"),
    [
        ("modules", range(150)),
        ("onnx_files", range(24)),
        ("graphs", range(4)),
        ("open_graphs", range(6)),
        ("open_values", range(0, 400, 40)),
        ("results_files", range(40)),
        ("command_lines", range(60)),
    ],
)
def test_nothing_comes_out_that_is_not_meant(
    kind: str, seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "modules":
        monkeypatch.setenv("WASMGRAPH_CACHE", str(tmp_path / "cache"))
    case = import_module(f"trials.fuzzing.{kind}").case
    outcomes = {seed: case(seed, tmp_path) for seed in seeds}  # what is not caught inside is a find
    assert not {s: o for s, o in outcomes.items() if o.startswith(("disagrees", "unexpected"))}


def test_cases_are_the_same_every_time() -> None:
    assert modules.mutated(17) == modules.mutated(17) != modules.mutated(18)
    one, other = (graphs.Generator(3).model().SerializeToString() for _ in range(2))
    assert one == other
    assert len(graphs.Generator(3).model().graph.node) >= 30
    assert len(graphs.histogram(20)) > 40


@pytest.mark.skipif(sys.platform == "win32", reason="select knows no pipes on Windows")
def test_a_worker_that_dies_or_hangs_is_a_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind whose case 1 kills the worker, 2 hangs, 3 raises what nobody means; others are done."""
    monkeypatch.setitem(_PATIENCE_S, "selftest", 2.0)
    monkeypatch.setattr("trials.fuzz._FIRST_S", 20.0)
    tally = fuzz("selftest", 5)
    assert tally.outcomes == {"done": 2, "crashed": 1, "hung": 1, "untyped: ZeroDivisionError": 1}
    assert sorted(seed for seed, *_ in tally.finds) == [1, 2, 3]
