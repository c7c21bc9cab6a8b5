"""Several sessions at once, as in a server with one graph and several threads."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from wasmgraph.runtimes.base import Session
from wasmgraph.tensors import Array


@dataclass(frozen=True)
class Load:
    """Sessions that ran at the same time, each in a thread: the seconds of every call, and all calls over
    the time from the first one's start to the last one's end."""

    sessions: int
    seconds: list[float]
    runs_per_s: float


def run_together(sessions: Sequence[Session], feeds: Mapping[str, Array], calls: int) -> Load:
    """Every session makes ``calls`` calls, in a thread of its own, after one call ahead.

    Raises
    ------
    WasmgraphError
        A session failed. Raised after all others have ended.
    """
    for session in sessions:
        session.run(feeds)
    seconds: list[float] = []
    failures: list[Exception] = []
    start = threading.Barrier(len(sessions) + 1)

    def serve(session: Session) -> None:
        start.wait()
        try:
            for _ in range(calls):
                began = time.perf_counter()
                session.run(feeds)
                seconds.append(time.perf_counter() - began)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    if failures:
        raise failures[0]
    return Load(len(sessions), seconds, len(seconds) / elapsed)


def memory_of_one_more(load: Callable[[], Session], feeds: Mapping[str, Array]) -> int:
    """Bytes of private memory of a second session, beside one of the same graph that has already run.

    Counts the anonymous pages of this process and of its children (Linux; elsewhere the resident set, which
    counts shared pages once for each session). Pages of files, such as parameters in compiled code, lie in
    the page cache once, however many sessions map them. Call this in a fresh process: allocators reuse the
    memory of closed sessions.
    """
    with load() as first:
        first.run(feeds)
        before = _own_bytes()
        with load() as second:
            second.run(feeds)
            return max(0, _own_bytes() - before)


def _own_bytes() -> int:
    gc.collect()
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += _anonymous_bytes(process)
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            continue
    return total


def _anonymous_bytes(process: psutil.Process) -> int:
    # Not the proportional set: kernels with large folios only estimate how often a page is mapped.
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():
        resident: int = process.memory_info().rss
        return resident
    line = next(line for line in rollup.read_text().splitlines() if line.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024
