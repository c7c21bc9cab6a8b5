"""Models that nobody vouches for: importer and compiler in a child process that is limited, and killed if
need be with everything that it started.

The child is not a sandbox: what takes over TVM, LLVM or onnxruntime has this user's rights (SECURITY.md).
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmgraph.artifact import Artifact
from wasmgraph.errors import CompileError, LimitError, ProcessError, error_from
from wasmgraph.files import expand
from wasmgraph.limits import Limits, check_platform, child_environment
from wasmgraph.processes import Child, describe

if TYPE_CHECKING:
    import onnx

    from wasmgraph.compiler import CompileLog

RESULT = "graph.wasm"
_COMMAND = ("-B", "-m", "wasmgraph.compiler.untrusted.child")
# How a limit of memory ends a process: its own allocator, or the kernel.
_OUT_OF_MEMORY = (-signal.SIGABRT, -signal.SIGKILL)


def compile_untrusted(
    model: str | Path | bytes | onnx.ModelProto, options: Mapping[str, Any], limits: Limits, log: CompileLog
) -> Artifact:
    """What :func:`wasmgraph.compile` does with ``options``, in a child process.

    Raises
    ------
    LimitError
        A limit was exceeded; nothing of the child is left.
    WasmgraphError
        Whatever the child met.
    """
    check_platform("compiling an untrusted model")
    owner: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="wasmgraph-")
    place = Path(owner.name)
    try:
        if isinstance(model, str | Path):
            path = expand(model).resolve()
        else:
            path = place / "model.onnx"
            path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        (place / "tmp").mkdir()
        request = {"model": str(path), "place": str(place), **options, **asdict(limits)}
        if request["keep"] is not None:
            request["keep"] = str(Path(request["keep"]).resolve())
        _converse(request, place, limits, log)
        return Artifact.open(place / RESULT, owner)
    except BaseException:
        owner.cleanup()
        raise


def _converse(request: Mapping[str, Any], place: Path, limits: Limits, log: CompileLog) -> None:
    """Tell the child what to do, and follow what it says until it is done."""
    where, deadline = str(request["model"]), time.monotonic() + limits.wall_s
    # A group of its own: with it end zig and whatever else it has started.
    environment = child_environment(TMPDIR=str(place / "tmp"))
    with Child(
        [sys.executable, *_COMMAND], where, longest=0, group=True, env=environment, cwd=place
    ) as child:
        try:
            child.send(request, deadline=deadline)
            while True:
                said, _ = child.receive(deadline=deadline)
                if "error" in said:
                    raise error_from(said)
                if "done" in said:
                    _fill(log, said["done"])
                    return
                _observe(log, said)
        except ProcessError as error:
            raise _epitaph(where, error, limits) from error


def _observe(log: CompileLog, said: Mapping[str, Any]) -> None:
    from wasmgraph.compiler import Stage

    stage = Stage(str(said.get("name")), float(said.get("seconds", 0)), str(said.get("outcome", "")))
    if stage.seconds:
        log.stages.append(stage)
    if log.observer:
        log.observer(stage)


def _fill(log: CompileLog, said: Mapping[str, Any]) -> None:
    """Of what a child says, which may be anything."""
    try:
        log.rules.update(Counter({str(rule): int(count) for rule, count in said["rules"].items()}))
        log.fallbacks += map(str, said["fallbacks"])
        log.slow += map(str, said["slow"])
        log.constant_outputs = tuple(map(str, said["constant_outputs"]))
        log.notes = tuple(map(str, said.get("notes", ())))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompileError(f"the compiler's process answered with nonsense ({error}).") from error


def _epitaph(where: str, error: ProcessError, limits: Limits) -> CompileError | LimitError:
    if error.late:
        return LimitError(f"{where} took longer than {limits.wall_s:g} s to compile, and was ended.")
    if error.status in (-signal.SIGPROF, -signal.SIGXCPU):
        return LimitError(f"{where} took more than {limits.cpu_s:g} s of processor time, and was ended.")
    if error.status is not None and error.status in _OUT_OF_MEMORY:
        how = describe(error.status)
        allowed = f"{limits.memory_bytes:,} bytes"
        return LimitError(f"{where}: the compiler {how}; it may use {allowed} of memory.")
    if error.status == -signal.SIGSEGV:  # LLVM does not look whether it was given memory
        return CompileError(
            f"{where}: the compiler was ended by SIGSEGV: by a fault of its own, or because"
            f" {limits.memory_bytes:,} bytes of memory were too few."
        )
    return CompileError(f"{where}: the compiler failed. {error}")
