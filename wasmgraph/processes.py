"""Child processes that answer messages: one framing, a deadline on every wait, and what a child said last.

A message is a line of JSON, an object; as many bytes follow it as its ``bytes`` says, if it has that key. A
child reads messages from its standard input and writes answers to its standard output. Whatever interrupts
an exchange (a deadline, Ctrl-C, an alarm's exception) ends the child: an answer that comes late would
otherwise be taken for that of the next question.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Self

from wasmgraph.errors import ProcessError

LONGEST_LINE = 1 << 22  # bytes of JSON in an answer
_LAST_WORDS_S = 2.0
_CHUNK = 1 << 18
# Windows cannot wait for pipes: there nothing ends a wait but the child.
_CAN_WAIT = hasattr(select, "poll")


def encode(message: Mapping[str, Any]) -> bytes:
    """A message's line.

    Raises
    ------
    ValueError
        It holds a number that JSON has not: NaN or an infinity.
    """
    return json.dumps(message, allow_nan=False).encode() + b"\n"


class Child:
    """A process that answers messages; ``where`` names it in errors. Not for concurrent use.

    ``longest`` is how many bytes may follow an answer. ``group``: the process leads a group of its own,
    which ends with it.
    """

    def __init__(
        self,
        command: Sequence[str],
        where: str,
        *,
        longest: int = 1 << 33,
        group: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._where, self._longest, self._group = where, longest, group
        # Not a pipe: nobody would drain it. Closed with the process.
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._held = bytearray()  # what was read beyond an answer
        self._status: int | None = None
        self._owner = os.getpid()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=None if env is None else dict(env),
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=group,
                bufsize=0,
            )
        except OSError as error:
            self._said.close()
            raise ProcessError(f"{where}: {command[0]} cannot be started: {error.strerror}.") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        if _CAN_WAIT:
            os.set_blocking(self._to, False)
            os.set_blocking(self._from, False)
            self._writable, self._readable = select.poll(), select.poll()
            self._writable.register(self._to, select.POLLOUT)
            self._readable.register(self._from, select.POLLIN)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def closed(self) -> bool:
        """Whether the process was ended."""
        return self._status is not None

    def ask(
        self, message: Mapping[str, Any], payload: bytes = b"", *, seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        """Send a message, return the answer and the bytes after it; ``seconds`` for both together.

        Raises
        ------
        ProcessError
            The child was ended: it took too long (``late``), died (``status``) or answered nonsense.
        """
        deadline = time.monotonic() + seconds
        self.send(message, payload, deadline=deadline)
        return self.receive(deadline=deadline)

    def send(self, message: Mapping[str, Any], payload: bytes = b"", *, deadline: float) -> None:
        """Send a message until ``deadline``, by ``time.monotonic``; errors as for :meth:`ask`."""
        self._check_open()
        try:
            line = encode({**message, "bytes": len(payload)} if payload else message)
            for part in (line, payload) if len(payload) > _CHUNK else (line + payload,):
                self._write(memoryview(part), deadline)
        except BrokenPipeError as error:
            raise self._ended("died") from error
        except BaseException:
            self.close()
            raise

    def receive(self, *, deadline: float) -> tuple[dict[str, Any], bytes]:
        """The next answer and the bytes after it, before ``deadline``; errors as for :meth:`ask`."""
        self._check_open()
        try:
            while (end := self._held.find(b"\n")) < 0:
                if len(self._held) > LONGEST_LINE:
                    raise self._ended("answered with a line without an end")
                self._held += self._read(_CHUNK, deadline)
            try:
                answer = json.loads(bytes(self._held[:end]))
                if not isinstance(answer, dict):
                    raise TypeError("no object")
            except (ValueError, TypeError, RecursionError) as error:
                raise self._ended(f"answered with nonsense ({error})") from error
            size = answer.pop("bytes", 0)
            if type(size) is not int or not 0 <= size <= self._longest:
                raise self._ended(f"answered that {size!r:.40} bytes follow")
            content = self._held[end + 1 : end + 1 + size]
            self._held = self._held[end + 1 + size :]
            while len(content) < size:
                content += self._read(size - len(content), deadline)
            return answer, bytes(content)
        except BaseException:
            self.close()
            raise

    def close(self) -> int:
        """End the process, and its group if it has one; its exit status (negative: a signal's number). In a
        forked process this does nothing: the child is its parent's."""
        if self._status is None:
            self._status = self._end() if os.getpid() == self._owner else 0
        return self._status

    def last_words(self) -> str:
        """The last line that the child wrote to its standard error; empty if there is none."""
        with suppress(ValueError):  # closed
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").strip().splitlines()
            return lines[-1].strip() if lines else ""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_from"):
            self.close()

    def _check_open(self) -> None:
        if self._status is not None:
            raise ProcessError(
                f"{self._where}: its process was ended, by an error or because a call was interrupted."
                " Load it again."
            )

    def _write(self, content: memoryview, deadline: float) -> None:
        while content:
            if _CAN_WAIT:
                self._wait(self._writable, deadline)
            with suppress(BlockingIOError):
                content = content[os.write(self._to, content[:_CHUNK]) :]

    def _read(self, most: int, deadline: float) -> bytes:
        while True:
            if _CAN_WAIT:
                self._wait(self._readable, deadline)
            with suppress(BlockingIOError):
                content = os.read(self._from, min(most, _CHUNK))
                if not content:
                    raise self._ended("died")
                return content

    def _wait(self, ready: select.poll, deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._ended("gave no answer in time, and was ended", late=True)
            if ready.poll(min(left, 3600.0) * 1000):
                return

    def _ended(self, how: str, late: bool = False) -> ProcessError:
        """The error of a child that is ended now; one that has died by itself says how."""
        status: int | None = None
        if how == "died":
            with suppress(subprocess.TimeoutExpired):  # it may have closed its streams only
                status = self._process.wait(_LAST_WORDS_S)
                how = describe(status)
        said = self.last_words()
        self.close()
        words = f": {said}" if said else "."
        return ProcessError(f"{self._where}: its process {how}{words}", status=status, late=late)

    def _end(self) -> int:
        if self._group:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.kill()
        status = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # a pipe broken by a process that ended first
                    stream.close()
        self._said.close()
        return status


def describe(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with the exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"


def serve_on_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """For a child in Python: where to read messages and write answers. What is printed from now on goes to
    standard error, also by libraries."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return os.fdopen(os.dup(0), "rb", buffering=0), answers
