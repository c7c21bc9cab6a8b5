"""Mutated results files and histories against ``compare`` and ``history``."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from trials.fuzzing.modules import _NUMBERS, _bytes
from wasmgraph.cli import main
from wasmgraph.errors import WasmgraphError

_BASELINE = Path(__file__).parents[2] / "results" / "baseline.json"


@cache
def _small() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(_BASELINE.read_text())
    kept = [b for b in whole["benchmarks"] if "wasm32-simd128@wasmtime" in b["name"]][:6]
    return {**whole, "benchmarks": kept}


def _altered(rng: random.Random, value: Any, depth: int) -> Any:
    """Return a JSON value with one change somewhere inside."""
    if depth and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _altered(rng, value[key], depth - 1)}
    if depth and isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], _altered(rng, value[at], depth - 1), *value[at + 1 :]]
    return rng.choice((*_NUMBERS, "<script>", float("nan"), [[[]]], True))


def case(seed: int, place: Path) -> str:
    """Compare a mutated file with the valid one, add it to a history, and show the history."""
    rng = random.Random(seed)
    sound = json.dumps(_small()).encode()
    if seed % 2:
        content = _bytes(rng, sound)
    else:
        content = json.dumps(_altered(rng, _small(), rng.randrange(1, 6))).encode()
    base, head, history = place / "base.json", place / "head.json", place / "history.jsonl"
    base.write_bytes(sound)
    head.write_bytes(content)
    shown: tuple[str | Path, ...] = ("history", "show", "--file", history)
    outcomes = [
        _run("compare", base, head),
        _run("history", "add", head, "--file", history),
        _run(*shown),
    ]
    if history.exists() and rng.random() < 0.5:
        history.write_bytes(_bytes(rng, history.read_bytes()))
        _run(*shown)
    history.unlink(missing_ok=True)
    return f"compare {outcomes[0]}, history {outcomes[1]}"


def _run(*command: str | Path) -> str:
    """Run a command; return its outcome. Unexpected exceptions are passed on."""
    done = CliRunner().invoke(main, ["--debug", *map(str, command)])
    if isinstance(done.exception, WasmgraphError):
        return "refused"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return f"ended with {done.exit_code}"
