"""Graphs that nobody vouches for: each session in a child process that is limited, and killed if need be.

WebAssembly keeps a module away from everything but its memory; the child bounds what it may spend. Tensors
pass through memory that both share, so that a call costs two copies and two short messages more.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from wasmgraph.artifact import DTYPES
from wasmgraph.errors import ExecutionError, LimitError, WasmgraphError, error_from
from wasmgraph.limits import Limits, child_environment
from wasmgraph.runtimes.base import LoadOptions, Session
from wasmgraph.tensors import Array, TensorSpec

_LONGEST = 1 << 22  # bytes of an answer
_ALIGNMENT = 64
_COMMAND = ("-B", "-m", "wasmgraph.runtimes.untrusted_child")


class UntrustedSession(Session):
    """A graph in a child process. After a limit was exceeded, or the child died, it is closed.

    Raises
    ------
    LimitError
        A limit was exceeded; the child is gone.
    """

    def __init__(self, path: Path, options: LoadOptions, limits: Limits) -> None:
        self._where, self._limits = str(path), limits
        ours, theirs = socket.socketpair()
        shared = os.memfd_create("wasmgraph", os.MFD_ALLOW_SEALING)
        try:
            self._process = _start(theirs, shared)
        finally:
            theirs.close()
        self._socket = ours
        self._finalizer = weakref.finalize(self, _end, self._process, ours)
        try:
            request = {"path": str(path.resolve()), **asdict(options), **asdict(limits)}
            answer = self._ask("load", request)
            try:
                self._loaded = path, replace(options, sha256=str(answer["sha256"])), limits
                inputs, outputs = (_specs(answer[side]) for side in ("inputs", "outputs"))
            except (KeyError, TypeError, ValueError) as error:
                raise ExecutionError(f"{path}: the child answered with no tensors ({error}).") from error
            super().__init__(inputs, outputs)
            self._share(shared, (*inputs, *outputs))
            self._ask("map", shared)
        except BaseException:
            self._finalizer()
            raise
        finally:
            os.close(shared)

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

    def _share(self, shared: int, specs: tuple[TensorSpec, ...]) -> None:
        """Lay the tensors out one after the other, in memory that the child cannot shrink under us."""
        offsets, size = layout(specs)
        if size > self._limits.memory_bytes:
            raise LimitError(
                f"{self._where}: its tensors take {size} bytes, {self._limits.memory_bytes} are allowed."
            )
        os.ftruncate(shared, max(size, 1))
        fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        memory = mmap.mmap(shared, max(size, 1))
        self._views = views(memory, specs, offsets)

    def _run(self, arrays: list[Array]) -> list[Array]:
        for view, array in zip(self._views, arrays, strict=False):
            np.copyto(view, array)
        self._ask("run")
        return [view.copy() for view in self._views[len(arrays) :]]

    def _run_step(self, index: int) -> None:
        self._ask("step", index)

    def _clone(self) -> Session:
        return UntrustedSession(*self._loaded)

    def _ask(self, *message: Any) -> dict[str, Any]:
        content = json.dumps(message).encode()
        self._socket.settimeout(self._limits.wall_s)
        try:
            self._socket.sendall(len(content).to_bytes(4, "little") + content)
            size = int.from_bytes(self._receive(4), "little")
            if size > _LONGEST:
                raise ExecutionError(f"{self._where}: the child answered with {size} bytes.")
            answer: dict[str, Any] = json.loads(self._receive(size))
            if not isinstance(answer, dict):
                raise TypeError("no object")
        except TimeoutError:
            self._give_up()
            raise LimitError(
                f"{self._where} took longer than {self._limits.wall_s:g} s, and was ended."
            ) from None
        except (OSError, EOFError, ValueError, TypeError, RecursionError) as error:
            status = self._give_up()
            raise self._epitaph(status) from error
        if "error" in answer:
            raise error_from(answer)
        return answer

    def _receive(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            part = self._socket.recv(size - len(content))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    def _give_up(self) -> int:
        self._closed = True
        self._views = []
        return int(self._finalizer() or 0)

    def _epitaph(self, status: int) -> WasmgraphError:
        if status == -signal.SIGPROF:
            return LimitError(
                f"{self._where} used more than {self._limits.cpu_s:g} s of processor time, and was ended."
            )
        if status in (-signal.SIGABRT, -signal.SIGKILL):
            allowed = f"{self._limits.memory_bytes:,} bytes"
            return LimitError(f"{self._where} was ended by the system; it may use {allowed} of memory.")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return ExecutionError(f"{self._where}: its process died ({how}).")

    def _release(self) -> None:
        self._views = []
        self._finalizer()


def layout(specs: tuple[TensorSpec, ...]) -> tuple[list[int], int]:
    """Where each tensor lies in shared memory, and how much of it there is."""
    offsets, end = [], 0
    for spec in specs:
        offsets.append(end)
        end += -(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def views(memory: mmap.mmap, specs: tuple[TensorSpec, ...], offsets: list[int]) -> list[Array]:
    """The tensors in shared memory."""
    return [
        np.frombuffer(memory, spec.dtype, int(np.prod(spec.static_shape)), offset).reshape(
            spec.static_shape
        )
        for spec, offset in zip(specs, offsets, strict=True)
    ]


def _start(channel: socket.socket, shared: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *_COMMAND, str(channel.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(channel.fileno(), shared),
        env=child_environment(),
        cwd="/",
    )


def _end(process: subprocess.Popen[bytes], channel: socket.socket) -> int:
    """Kill the child unless it has ended; how it ended."""
    channel.close()
    process.poll()
    if process.returncode is None:
        process.kill()
    return process.wait()


def _specs(said: Any) -> tuple[TensorSpec, ...]:
    """What a child says of its tensors, which may be anything."""
    specs = tuple(TensorSpec(str(name), tuple(shape), str(dtype)) for name, shape, dtype in said)
    for spec in specs:
        if spec.dtype not in DTYPES or any(type(size) is not int or size < 0 for size in spec.shape):
            raise ValueError(f"{spec.name!r} has shape {spec.shape} and dtype {spec.dtype!r}")
    return specs
