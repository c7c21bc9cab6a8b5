"""The small interface that every engine implements: prepare once, run many times."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar, TypeVarTuple

from wasmgraph.artifact import Artifact
from wasmgraph.dims import Dim
from wasmgraph.errors import ArtifactError, UsageError
from wasmgraph.host import cpu_count
from wasmgraph.tensors import Array, Feeds, OpenInputs, TensorSpec, check_feeds, signature


@dataclass(frozen=True)
class LoadOptions:
    """How a graph is loaded: the number of ``threads`` that one inference may use, the ``sha256`` that the
    file must have, and ``params``, the folder of its parameter file if that is not the default one."""

    threads: int = 1
    sha256: str | None = None
    params: str | None = None

    def authenticate(self, path: Path, digest: str) -> None:
        """Raise ArtifactError if a digest was asked for and ``digest`` is another one."""
        if self.sha256 is not None and self.sha256.lower() != digest:
            raise ArtifactError(
                f"{path} has the sha256 {digest}, not {self.sha256}: it is another file than was expected.",
                check="sha256",
            )

    @property
    def params_folder(self) -> Path | None:
        """``params`` as a path."""
        return None if self.params is None else Path(self.params)

    def check(self, artifact: Artifact) -> None:
        """Raise ArtifactError if the artifact is not the one that was asked for, and UsageError if it
        cannot use so many threads. Asking for more threads than processors gives a warning."""
        self.authenticate(artifact.path, artifact.sha256)
        pages = (0, 0) if artifact.module is None else artifact.module.shared_pages
        room = max(1, 1 + pages[1] - pages[0])  # the module's checks refuse an invalid range
        if self.threads > room:
            many = "one thread" if room == 1 else f"at most {room} threads"
            raise UsageError(f"{artifact.path} was compiled for {many}; it cannot use {self.threads}.")
        if self.threads > cpu_count():
            warnings.warn(
                f"{artifact.path}: {self.threads} threads on {cpu_count()} processors wait for each other.",
                stacklevel=4,
            )


_PATIENCE_S = 5.0  # how long the exiting program waits for calls in other threads
_exiting = False
_Operands = TypeVarTuple("_Operands")
_Result = TypeVar("_Result")


class Session(ABC):
    """A loaded graph.

    **Threads.** A session may be used from any number of threads. Its calls take turns, and ``close`` waits
    for the call that is running; a call that is still waiting for its turn then raises UsageError. Sessions
    do not wait for each other: :meth:`clone` and :class:`wasmgraph.SessionPool` run the same graph several
    times at once. A signal handler or a finalizer may interrupt a call of its own thread. It can then close
    the session, which takes effect when the interrupted call ends; it cannot run the session.

    **Processes.** A session belongs to the process that loaded it, and cannot be pickled. After a fork, two
    kinds of session keep working in the child, with memory of their own: sessions of native artifacts, and
    on Linux Wasmtime sessions of artifacts without threads. Neither may have been running at the moment of
    the fork. All other sessions raise UsageError in the child. Closing a session in a child does not affect
    the parent's session.

    Attributes
    ----------
    inputs, outputs : specs of the graph's inputs and outputs, in order; where a size is open, the shape has
        the name of the dimension
    dims : the graph's open dimensions, with their bounds
    values : of all dimensions that shapes depend on, those too that the graph computes: what they were in
        the last run
    """

    survives_fork = False
    """Whether a forked child may use a session that was idle: it needs no threads and no child process."""

    _finalizer: Any = None
    """A :class:`weakref.finalize` that ends the threads or processes, if any, of a session that was
    garbage-collected without ``close``."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        dims: tuple[Dim, ...] = (),
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.dims = dims
        self.values: dict[str, int] = {}
        self._open_inputs = OpenInputs(dims, inputs)
        self._source: object = None  # an artifact that has to live as long as the session
        self._lock = threading.RLock()  # held by the thread whose turn it is
        self._running = False
        self._closed = False
        self._released = False
        self._foreign = False  # in a forked child: its threads or processes belong to the parent
        _SESSIONS[id(self)] = self

    def run(
        self, feeds: Feeds, *, strict: bool = True, dims: Mapping[str, int] | None = None
    ) -> dict[str, Array]:
        """Run one inference. Wait while another thread uses the session.

        Parameters
        ----------
        feeds : by input name, an array of exactly its shape and dtype; for a graph of one input, that array
        strict : False casts feeds where numpy's ``same_kind`` allows it and no value overflows, and
            converts lists and numbers to arrays; shapes must match in any case
        dims : values of open dimensions; those that are not given are taken from the inputs' shapes

        Returns
        -------
        Arrays by output name, of the shapes of this run. The caller owns them: the next run does not change
        them.

        Raises
        ------
        FeedError
            An input's name, shape or dtype is wrong, or a dimension's value.
        IndexRangeError
            The inputs make an index point beyond a tensor.
        ExecutionError
            The graph trapped or reported an error. The session can run again, unless it is ``closed``.
        UsageError
            The session is closed, or belongs to the process that this one was forked from.
        """
        self._check_open()
        if self.dims or dims:
            values, specs = self._open_inputs.at(feeds, dims or {})
            arrays = check_feeds(specs, feeds, strict)
            results = self._in_turn(self._run_at, arrays, values)
        else:
            results = self._in_turn(self._run, check_feeds(self.inputs, feeds, strict))
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<{type(self).__name__}{state}: {signature(self.inputs, self.outputs)}>"

    def run_step(self, index: int) -> None:
        """Run one call of the plan on the values that memory holds at present; for profiling.

        Raises
        ------
        UsageError
            The engine does not run single steps, or there is no such step. Other errors as for :meth:`run`.
        """
        self._in_turn(self._run_step, index)

    def clone(self) -> Session:
        """Return another session of the same graph, which can run at the same time as this one.

        The clone shares code and, where the engine can, parameters. Wasmtime sessions share the compiled
        module, whose memory is copied page by page on write; native sessions share the library; onnxruntime
        sessions share everything. A graph compiled for threads gets memory and threads of its own. A graph
        in Node.js and an untrusted graph get another child process. Close each clone separately, in any
        order.

        Raises
        ------
        ArtifactError
            The new child process has to read the file again, and the file has changed.
        UsageError
            As for :meth:`run`, or this kind of session cannot be cloned.
        """
        return self._in_turn(self._another)

    @property
    def closed(self) -> bool:
        """Whether the session can no longer run: it was closed, or its process ended."""
        return self._closed

    def close(self) -> None:
        """Release the session's resources, after waiting for a call in another thread. A closed session
        cannot run. Closing it again does nothing."""
        self._closed = True  # first, so that calls that wait for their turn do not delay it
        with self._lock:
            self._release_if_closed()

    def _check_open(self) -> None:
        if _exiting and threading.current_thread() is not threading.main_thread():
            raise SystemExit  # ends a thread silently
        if self._foreign:
            raise UsageError(
                "the session belongs to the process that this one was forked from; load it again in this"
                " process."
            )
        if self._closed:
            raise UsageError("the session is closed; load the artifact again.")

    def _in_turn(self, work: Callable[[*_Operands], _Result], *operands: *_Operands) -> _Result:
        """Call ``work`` with the session's lock held, so that only one thread works at a time. The session
        must be open."""
        with self._lock:
            self._check_open()
            if self._running:  # the lock is reentrant: this thread is already in a call
                raise UsageError(
                    "a signal handler or a finalizer cannot run the session whose call it interrupted; give"
                    " it a session of its own, with clone()."
                )
            try:
                self._running = True
                return work(*operands)
            finally:
                self._running = False
                self._release_if_closed()

    def _another(self) -> Session:
        session = self._clone()
        session._source = self._source
        return session

    def _release_if_closed(self) -> None:
        """Release a closed session's resources, once; the caller holds the lock."""
        if self._closed and not (self._running or self._released or self._foreign):
            self._released = True
            self._release()

    def _after_fork(self) -> None:
        """Prepare for use in a forked child, where only the thread that called fork exists."""
        self._lock = threading.RLock()
        if self._running or not self.survives_fork:
            self._foreign = True
            self._abandon()

    def _abandon(self) -> None:
        """Keep the object alive for ever. Its destructor would wait for threads or end a process that only
        the parent has, or free memory that a thread still uses."""
        if self._finalizer is not None:
            self._finalizer.detach()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    @abstractmethod
    def _run(self, arrays: list[Array]) -> list[Array]:
        """Run on checked inputs; return owned outputs in order."""

    def _run_at(self, arrays: list[Array], values: Mapping[str, int]) -> list[Array]:
        """Run on checked inputs at these values of the graph's dimensions."""
        raise UsageError(f"{type(self).__name__} does not run graphs of open dimensions.")

    def _run_step(self, index: int) -> None:
        raise UsageError(f"{type(self).__name__} does not run single steps; profile an artifact.")

    def _clone(self) -> Session:
        raise UsageError(f"{type(self).__name__} cannot be cloned; load the file again.")

    def _release(self) -> None:  # noqa: B027 - it may hold nothing
        """Release memory, threads and processes; called once, while no call runs."""

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a session cannot be pickled or copied: it belongs to its process. Pass on the path of its"
            " artifact and load that; within a process, clone() gives another session."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SESSIONS: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()  # by id


def _living() -> list[Session]:
    return [session for reference in _SESSIONS.valuerefs() if (session := reference()) is not None]


def _after_fork() -> None:
    for session in _living():
        session._after_fork()


def _before_exit() -> None:
    """Wait for calls in other threads to end, and let none begin: the interpreter is about to exit."""
    global _exiting
    _exiting = True
    deadline = time.monotonic() + _PATIENCE_S
    for session in _living():
        if session._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            session._lock.release()
        else:
            session._abandon()


weakref.finalize(Session, lambda: None)  # finalizers run at exit, after the handlers registered below
atexit.register(_before_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Runtime(ABC):
    """An engine: the kinds of file it runs, its version and its configuration."""

    name: str
    accepts: Literal["wasm", "native", "onnx"]

    @abstractmethod
    def version(self) -> str:
        """The engine's version."""

    @abstractmethod
    def config(self) -> str:
        """The part of the engine's configuration that affects results, in a few words."""

    @abstractmethod
    def engine_bytes(self) -> int:
        """Bytes on disk of the engine, without Python and numpy; 0 where the artifact needs no engine."""

    @abstractmethod
    def load(self, path: Path, options: LoadOptions) -> Session:
        """Prepare a file of the kind that this runtime accepts."""


def distribution_bytes(name: str) -> int:
    """Size of an installed Python distribution's files; 0 if it is not installed."""
    try:
        found = files(name) or []
    except PackageNotFoundError:
        return 0
    return sum(Path(str(f.locate())).stat().st_size for f in found if Path(str(f.locate())).is_file())
