"""The process that runs one revision. It is started with that revision's root as its only argument, answers
lines of JSON with lines of JSON, and knows of wasmgraph only what every revision has: ``compile``, ``load``
and ``Session.run``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def bind(processors: list[int]) -> None:
    """Bind this thread to these processors, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)


class Worker:
    """Sessions by the names that the driver gives them."""

    def __init__(self, root: str) -> None:
        sys.path[0] = root
        import wasmgraph

        home = Path(wasmgraph.__file__).resolve()
        if not home.is_relative_to(Path(root).resolve()):
            raise RuntimeError(f"wasmgraph comes from {home}, not from the revision")
        self.wasmgraph = wasmgraph
        self.sessions: dict[str, Any] = {}
        self.feeds: dict[str, Any] = {}

    def compile(self, model: str, target: str, output: str) -> float:
        """Compile a model to a file; seconds."""
        began = time.perf_counter()
        self.wasmgraph.compile(model, target=target).save(output)
        return time.perf_counter() - began

    def load(
        self, name: str, path: str, runtime: str, threads: int, feeds: str, processors: list[int]
    ) -> float:
        """Load a graph under a name, and its first feeds from an .npz file; return the seconds of loading.

        Threads that loading starts may use ``processors``: they keep what this thread may use now.
        """
        import numpy as np

        bind(processors)
        options: dict[str, Any] = {} if threads == 1 else {"threads": threads}
        began = time.perf_counter()
        self.sessions[name] = self.wasmgraph.load(path, runtime=runtime, **options)
        seconds = time.perf_counter() - began
        with np.load(feeds) as stored:
            self.feeds[name] = {key: stored[key] for key in stored.files}
        return seconds

    def call(self, name: str, processors: list[int]) -> float:
        """One call on these processors; its seconds."""
        session, feeds = self.sessions[name], self.feeds[name]
        bind(processors)
        began = time.perf_counter()
        session.run(feeds)
        return time.perf_counter() - began

    def outputs(self, name: str, feeds: str, output: str) -> None:
        """Run on feeds that are stacked in an .npz file; store all outputs likewise."""
        import numpy as np

        with np.load(feeds) as stored:
            stacked = {key: stored[key] for key in stored.files}
        count = len(next(iter(stacked.values())))
        found = [self.sessions[name].run({k: v[i] for k, v in stacked.items()}) for i in range(count)]
        together = {key: np.stack([outputs[key] for outputs in found]) for key in found[0]}
        np.savez(output, allow_pickle=False, **together)


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a compiler or a library must not be read as an answer
    with redirect_stdout(sys.stderr):
        worker = Worker(sys.argv[1])
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"result": getattr(worker, request.pop("do"))(**request)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
