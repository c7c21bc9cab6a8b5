"""The child of an untrusted session: limits itself, loads the graph, and runs it when told to."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Serve until the other side hangs up."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    request = json.loads(_receive(channel) or b"{}")
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    # Of memory, the kernel bounds what is private and can be written; what Wasmtime merely reserves is not
    # counted. Files: what Wasmtime makes of a module's data, and the cache; none once the graph is loaded.
    memory = int(request["memory_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, memory)
    _limit(resource.RLIMIT_FSIZE, memory)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)

    from wasmgraph.errors import LimitError, WasmgraphError

    session: Any = None
    tensors: list[Any] = []

    def load() -> dict[str, Any]:
        nonlocal session
        from wasmgraph.artifact import Artifact
        from wasmgraph.runtimes import get_runtime
        from wasmgraph.runtimes.base import LoadOptions
        from wasmgraph.wasmfile import PAGE_BYTES

        artifact = Artifact.open(request["path"])
        declared = artifact.module.memory_min * PAGE_BYTES if artifact.module else 0
        if declared > memory:
            raise LimitError(
                f"{artifact.path} declares {declared:,} bytes of memory, {memory:,} are allowed."
            )
        options = LoadOptions(int(request["threads"]), request["sha256"])
        session = get_runtime("wasmtime").load(artifact.path, options)
        _limit(resource.RLIMIT_FSIZE, 0)
        return {
            side: [(s.name, s.shape, s.dtype) for s in getattr(session, side)]
            for side in ("inputs", "outputs")
        }

    def answer(message: bytes) -> dict[str, Any]:
        from wasmgraph.runtimes.untrusted import layout, views

        if message == b"map":
            specs = (*session.inputs, *session.outputs)
            offsets, size = layout(specs)
            tensors[:] = views(mmap.mmap(request["shared"], max(size, 1)), specs, offsets)
        elif message == b"run":
            feeds = {spec.name: tensor for spec, tensor in zip(session.inputs, tensors, strict=False)}
            outputs = session.run(feeds)
            for spec, tensor in zip(session.outputs, tensors[len(feeds) :], strict=True):
                tensor[...] = outputs[spec.name]
        else:
            session.run_step(int(message.split()[1]))
        return {}

    work: Any = load
    while True:
        signal.setitimer(signal.ITIMER_PROF, float(request["cpu_s"]))
        try:
            said = work()
        except WasmgraphError as error:
            said = {
                "error": type(error).__name__,
                "message": str(error),
                "check": getattr(error, "check", ""),
            }
        except MemoryError:
            said = {
                "error": "LimitError",
                "message": f"{request['path']} needs more than {memory:,} bytes.",
            }
        signal.setitimer(signal.ITIMER_PROF, 0)
        content = json.dumps(said).encode()
        channel.sendall(len(content).to_bytes(4, "little") + content)
        message = _receive(channel)
        if message is None:
            return

        def work(message: bytes = message) -> dict[str, Any]:
            return answer(message)


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, most))


def _receive(channel: socket.socket) -> bytes | None:
    head = channel.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    return channel.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)


def _leave_with(parent: int) -> None:
    """End when the parent has ended, even in the midst of a call."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
