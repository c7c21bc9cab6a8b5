"""The driver's end of a worker process."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from wasmgraph.errors import ExecutionError
from wasmgraph.regress.checkouts import Checkout

_SCRIPT = Path(__file__).with_name("worker.py")


class WorkerProcess:
    """A process that runs one revision; ``worker.py`` has its requests."""

    def __init__(self, checkout: Checkout) -> None:
        self._where = f"revision {checkout.commit[:12]}"
        # Not a pipe, which would fill up unread. Closed with the process.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [checkout.python, str(_SCRIPT), str(checkout.root)],
            cwd=checkout.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a request to the worker and return its result.

        Raises
        ------
        ExecutionError
            It failed, or the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            answer = json.loads(line) if line else None
        except (OSError, ValueError) as error:
            raise ExecutionError(
                self._last_words(f"its process sent an unreadable answer ({error})")
            ) from error
        if answer is None:
            raise ExecutionError(self._last_words(f"its process ended with {self._process.wait()}"))
        if "error" in answer:
            raise ExecutionError(f"{self._where}: {answer['error']}")
        return answer["result"]

    def _last_words(self, what: str) -> str:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return f"{self._where}: {what}" + (f": {said[-1]}" if said else ".")

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # its current work is not needed
            self._process.kill()
        self.close()
