"""Zig carries the C compiler, assembler, archiver and linker for every target in one wheel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wasmgraph.errors import CompileError
from wasmgraph.targets import Target


def zig(*arguments: str | Path) -> None:
    """Run one of Zig's tools; raise CompileError with its words if it fails."""
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tool = " ".join(command[3:5])
        raise CompileError(f"zig {tool} failed: {(done.stderr or done.stdout).strip()[:2000]}")


def compile_object(source: Path, output: Path, target: Target, flags: Sequence[str] = ()) -> None:
    """Compile one C or assembler file, which includes no header, for a target.

    `zig clang`, not `zig cc`: the latter would keep a copy of every model's parameters in its
    cache, and does not notice when an .incbin file has changed.
    """
    if target.kind == "wasm":
        machine = ["--target=wasm32-unknown-unknown", "-mbulk-memory"]
        machine += [f"-m{feature}" for feature in target.features]
    else:
        machine = [f"-march={target.cpu or 'native'}", "-fPIC"]
    if source.suffix == ".S":
        flags = [*flags, "-Wno-unused-command-line-argument"]
    zig("clang", *machine, "-O2", *flags, "-c", source, "-o", output)
