"""Several sessions of one graph, for any number of threads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, Self

from wasmgraph.artifact import Artifact
from wasmgraph.errors import UsageError
from wasmgraph.runtimes import Session, load
from wasmgraph.tensors import Array

_STARVING_S = 1.0


class SessionPool:
    """A pool of ``size`` sessions of one graph. Each call takes a free session, or waits for one.

    A session whose child process exceeded a limit or died is replaced when it is next needed. A pool
    belongs to the process that made it: in a forked child it raises UsageError.

    Parameters
    ----------
    source : an artifact, or the path of an artifact or an ``.onnx`` file
    size : how many inferences may run at once
    options : as for :func:`wasmgraph.load`

    Attributes
    ----------
    inputs, outputs : specs of the graph's inputs and outputs, in order

    Raises
    ------
    UsageError
        ``size`` is not a positive integer, or as for :func:`wasmgraph.load`.
    """

    def __init__(self, source: str | Path | Artifact, size: int, **options: Any) -> None:
        if type(size) is not int or size < 1:
            raise UsageError(f"size={size!r}: a pool has a whole number of sessions, at least one.")
        self.size = size
        self._process = os.getpid()
        self._closed = False
        self._free: SimpleQueue[int | None] = SimpleQueue()  # indices; None once the pool is closed
        self._inside: set[int] = set()  # threads that run a session, or wait for one
        self._lock = threading.RLock()  # guards the fields below
        self._sessions: list[Session] = [load(source, **options)]
        try:
            while len(self._sessions) < size:
                self._sessions.append(self._sessions[0].clone())
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = self._sessions[0].inputs, self._sessions[0].outputs
        for index in range(size):
            self._free.put(index)

    def run(self, feeds: Any, **options: Any) -> dict[str, Array]:
        """Run one inference on a free session; arguments and result as for :meth:`wasmgraph.Session.run`.

        Raises
        ------
        FeedError
            An input's name, shape or dtype is wrong.
        ExecutionError
            The graph trapped or reported an error.
        UsageError
            The pool is closed, or belongs to the process that this one was forked from.
        """
        self._check_process()
        thread = threading.get_ident()
        nested = thread in self._inside
        try:
            self._inside.add(thread)
            index = self._take(nested)
            try:
                return self._usable(index).run(feeds, **options)
            finally:
                self._free.put(index)
        finally:
            if not nested:
                self._inside.discard(thread)

    def _take(self, nested: bool) -> int:
        while True:
            try:
                index = self._free.get(block=not nested, timeout=_STARVING_S)
            except Empty:
                if nested:  # this thread would wait for itself
                    raise UsageError(
                        "a signal handler or a finalizer interrupted a call of this pool, and no session is"
                        " free; make the pool larger."
                    ) from None
                index = self._lost()
            else:
                if index is None:
                    self._free.put(None)  # for the next thread that waits
                    raise UsageError("the pool is closed; make another.")
            if index is not None:
                return index

    def _lost(self) -> int | None:
        """Return the index of a session that is marked as taken but is not running, if there is one. A
        signal handler's exception between taking and running a session causes this. If another thread is
        about to run the session after all, the two take turns."""
        return next((i for i, session in enumerate(self._sessions) if not session._running), None)

    def _usable(self, index: int) -> Session:
        """Return the session at ``index``; replace it first if it has ended."""
        session = self._sessions[index]
        if session.closed:
            with self._lock:
                if self._closed:
                    raise UsageError("the pool is closed; make another.")
                session = self._sessions[index] = session._another()
        return session

    def __repr__(self) -> str:
        return f"<SessionPool of {self.size}: {self._sessions[0]!r}>"

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                "the pool belongs to the process that this one was forked from; make another in this"
                " process."
            )

    def close(self) -> None:
        """Close all sessions, after waiting for running calls. Calls that wait for a session raise
        UsageError."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
        self._free.put(None)
        for session in self._sessions:
            session.close()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a pool of sessions cannot be pickled or copied: it belongs to its process. Pass on the path of"
            " its artifact and make a pool of that."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
