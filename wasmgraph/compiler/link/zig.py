"""Zig provides the C compiler, assembler, archiver and linker for every target in one wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from wasmgraph.errors import CacheError, CompileError, needing
from wasmgraph.files import cache_dir
from wasmgraph.targets import Target

_PATIENCE_S = 900  # the first call builds the C library
# PR_SET_PDEATHSIG: Linux kills Zig with the process that waits for it. Otherwise Zig would go on, and build
# the C library to its end.
_TIED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


@cache
def _cache() -> str:
    """The folder for the C library that Zig builds. Without a cache folder, Zig would hang if HOME is not
    set."""
    try:
        return str(cache_dir("zig"))
    except CacheError:
        return tempfile.mkdtemp(prefix="wasmgraph-zig-")


def zig(*arguments: str | Path) -> None:
    """Run one of Zig's tools; raise CompileError with its message if it fails."""
    with needing("linking", "compile"):
        import ziglang
    command = [str(Path(ziglang.__file__).with_name("zig")), *map(str, arguments)]
    tool = " ".join(command[1:3])
    if sys.platform == "linux":
        command = [sys.executable, "-c", _TIED, *command]
    environment = {"ZIG_GLOBAL_CACHE_DIR": _cache(), "ZIG_LOCAL_CACHE_DIR": _cache(), **os.environ}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"zig {tool} took longer than {_PATIENCE_S} s, and was ended.") from error
    if done.returncode:
        raise CompileError(f"zig {tool} failed: {(done.stderr or done.stdout).strip()[:2000]}")


def compile_object(source: Path, output: Path, target: Target, flags: Sequence[str] = ()) -> None:
    """Compile one C or assembler file for a target; the file must not include headers.

    Uses `zig clang`, not `zig cc`, which would keep a copy of every model's parameters in its cache, and
    does not notice when an .incbin file has changed.
    """
    if target.kind == "wasm":
        machine = ["--target=wasm32-unknown-unknown", "-mbulk-memory"]
        machine += [f"-m{feature}" for feature in target.features]
    else:
        machine = [f"-march={target.cpu or 'native'}", "-fPIC"]
    if source.suffix == ".S":
        flags = [*flags, "-Wno-unused-command-line-argument"]
    zig("clang", *machine, "-O2", *flags, "-c", source, "-o", output)
