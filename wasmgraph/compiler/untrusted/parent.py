"""Models that nobody vouches for: importer and compiler in a child process that is limited, and killed if
need be with everything that it started.

The child is not a sandbox: what takes over TVM, LLVM or onnxruntime has this user's rights (SECURITY.md).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wasmgraph.artifact import Artifact
from wasmgraph.errors import CompileError, LimitError, UsageError, error_from
from wasmgraph.files import expand
from wasmgraph.limits import Limits, check_platform, child_environment

if TYPE_CHECKING:
    import onnx

    from wasmgraph.compiler import CompileLog

RESULT = "graph.wasm"
_COMMAND = ("-B", "-m", "wasmgraph.compiler.untrusted.child")
_LONGEST = 1 << 22  # bytes of an answer
_LAST_WORDS_S = 2.0
# How a limit ends a process: its own allocator, the kernel, the timer.
_OUT_OF_MEMORY = (-signal.SIGABRT, -signal.SIGKILL, -signal.SIGSEGV)


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
    child = subprocess.Popen(
        [sys.executable, *_COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(TMPDIR=str(place / "tmp")),
        cwd=place,
        start_new_session=True,  # a group of its own: with it end zig and whatever else it has started
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with suppress(BrokenPipeError), child.stdin as to:
            to.write(json.dumps(request).encode())
        lines = _Lines(child.stdout)
        while True:
            said = lines.next(deadline)
            if said is None:
                raise LimitError(f"{where} took longer than {limits.wall_s:g} s to compile, and was ended.")
            if not said:
                raise _epitaph(where, _status(child), limits)
            if "error" in said:
                raise error_from(said)
            if "done" in said:
                _fill(log, said["done"])
                return
            _observe(log, said)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()


def _status(child: subprocess.Popen[bytes]) -> int:
    """How a child ended that says no more; one that says nonsense has not ended, and is."""
    try:
        return child.wait(_LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        return 0


class _Lines:
    """JSON objects, a line each, from a process that may say anything, or nothing."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._descriptor, self._held = stream.fileno(), bytearray()

    def next(self, deadline: float) -> dict[str, Any] | None:
        """The next object; an empty one at the end; None if the deadline passes first."""
        while b"\n" not in self._held:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                return None
            part = os.read(self._descriptor, 1 << 16)
            self._held += part
            if not part or len(self._held) > _LONGEST:
                return {}
        line, _, rest = self._held.partition(b"\n")
        self._held = rest
        try:
            said = json.loads(line)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}


def _observe(log: CompileLog, said: Mapping[str, Any]) -> None:
    from wasmgraph.compiler import Stage

    stage = Stage(str(said.get("name")), float(said.get("seconds", 0)), str(said.get("outcome", "")))
    if stage.seconds:
        log.stages.append(stage)
    if log.observer:
        log.observer(stage)


def _fill(log: CompileLog, said: Mapping[str, Any]) -> None:
    log.rules.update(Counter({str(rule): int(count) for rule, count in said["rules"].items()}))
    log.fallbacks += map(str, said["fallbacks"])
    log.constant_outputs = tuple(map(str, said["constant_outputs"]))


def _epitaph(where: str, status: int, limits: Limits) -> CompileError | LimitError | UsageError:
    if status in (-signal.SIGPROF, -signal.SIGXCPU):
        return LimitError(f"{where} took more than {limits.cpu_s:g} s of processor time, and was ended.")
    if status in _OUT_OF_MEMORY:
        return LimitError(
            f"{where}: the compiler was ended by the system ({signal.Signals(-status).name}); it may use"
            f" {limits.memory_bytes:,} bytes of memory."
        )
    how = f"died ({signal.Signals(-status).name})" if status < 0 else f"gave no answer (status {status})"
    return CompileError(f"{where}: the compiler's process {how}.")
