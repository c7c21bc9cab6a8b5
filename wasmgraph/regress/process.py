"""The driver's end of a worker process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

from wasmgraph.errors import ExecutionError
from wasmgraph.regress.checkouts import Checkout

_SCRIPT = Path(__file__).with_name("worker.py")


class WorkerProcess:
    """A process that runs one revision; ``worker.py`` says what can be asked of it."""

    def __init__(self, checkout: Checkout) -> None:
        self._where = f"revision {checkout.commit[:12]}"
        self._process = subprocess.Popen(
            [checkout.python, str(_SCRIPT), str(checkout.root)],
            cwd=checkout.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Let the worker do something and return its result.

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
        except OSError as error:
            raise ExecutionError(f"{self._where}: its process ended ({error.strerror}).") from error
        if not line:
            raise ExecutionError(f"{self._where}: its process ended with {self._process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise ExecutionError(f"{self._where}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # nobody waits for what it is doing
            self._process.kill()
        self.close()
