"""The driver's end of a worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from wasmgraph.errors import ExecutionError
from wasmgraph.processes import Child
from wasmgraph.regress.checkouts import Checkout

_SCRIPT = Path(__file__).with_name("worker.py")
_PATIENCE_S = 1800.0  # compiling a large network on a slow machine


class WorkerProcess:
    """A process that runs one revision; ``worker.py`` has its requests."""

    def __init__(self, checkout: Checkout) -> None:
        self._where = f"revision {checkout.commit[:12]}"
        command = [checkout.python, str(_SCRIPT), str(checkout.root)]
        self._child = Child(command, self._where, cwd=checkout.root)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a request to the worker and return its result.

        Raises
        ------
        ExecutionError
            It failed, or the process ended, or gave no answer in half an hour.
        """
        answer, _ = self._child.ask({"do": do, **arguments}, seconds=_PATIENCE_S)
        if "error" in answer:
            raise ExecutionError(f"{self._where}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End the process and wait for it."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
