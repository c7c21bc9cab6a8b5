"""Command lines of valid and invalid words."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import click
from click.testing import CliRunner

from wasmgraph.cli import main
from wasmgraph.errors import WasmgraphError

_SLOW = ("regress", "fetch")  # these use git and the network
_WORDS = (
    "",
    "-",
    "--",
    "x",
    "x=",
    "=1",
    "x=1,-1",
    "x=1,a",
    "0",
    "-1",
    "1e9",
    "nan",
    "absent.onnx",
    "\x1b[31m",
    "é" * 300,
)


def case(seed: int, place: Path) -> str:
    """Run one command line."""
    rng = random.Random(seed)
    name = rng.choice([name for name in main.commands if name not in _SLOW])
    options = [o for p in main.commands[name].params if isinstance(p, click.Option) for o in p.opts]
    for file in ("empty.onnx", "text.wasm", "list.json"):
        (place / file).write_text({"empty.onnx": "", "text.wasm": "\0asm text", "list.json": "[1, 2"}[file])
    files = [str(place / file) for file in ("empty.onnx", "text.wasm", "list.json", "absent", "")]
    words = [rng.choice((*_WORDS, *files, *options)) for _ in range(rng.randrange(6))]
    with contextlib.chdir(place):
        done = CliRunner().invoke(main, ["--debug", name, *words])
    if isinstance(done.exception, WasmgraphError):
        return "refused: wasmgraph"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return {0: "done", 1: "judged worse", 2: "refused: click"}.get(
        done.exit_code, f"unexpected: {done.exit_code}"
    )
