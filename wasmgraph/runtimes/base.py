"""The small interface behind which every engine stands: prepare once, run many."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from wasmgraph.artifact import Artifact
from wasmgraph.errors import ArtifactError, UsageError
from wasmgraph.host import cpu_count
from wasmgraph.tensors import Array, TensorSpec, check_feeds


@dataclass(frozen=True)
class LoadOptions:
    """How a graph is loaded: ``threads`` that one inference may use, ``sha256`` that the file must have,
    ``params``, the folder of its parameter file, where that is not the one beside it."""

    threads: int = 1
    sha256: str | None = None
    params: str | None = None

    def authenticate(self, path: Path, digest: str) -> None:
        """Raise ArtifactError unless it is the digest that was asked for, if one was."""
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
        """Raise ArtifactError if it is another artifact than was asked for, UsageError if more threads are
        than it can use; say so (a warning) if there are more than processors."""
        self.authenticate(artifact.path, artifact.sha256)
        pages = (0, 0) if artifact.module is None else artifact.module.shared_pages
        room = max(1, 1 + pages[1] - pages[0])  # what is no memory is refused by the module's checks
        if self.threads > room:
            many = "one thread" if room == 1 else f"at most {room} threads"
            raise UsageError(f"{artifact.path} was compiled for {many}; it cannot use {self.threads}.")
        if self.threads > cpu_count():
            warnings.warn(
                f"{artifact.path}: {self.threads} threads on {cpu_count()} processors wait for each other.",
                stacklevel=4,
            )


class Session(ABC):
    """A loaded graph. Not for concurrent use: load one session a thread."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one inference.

        Parameters
        ----------
        feeds : an array for every input, of exactly its shape and dtype

        Returns
        -------
        By output name, arrays that the caller owns: the next run does not touch them.

        Raises
        ------
        FeedError
            An input's name, shape or dtype is wrong.
        IndexRangeError
            The inputs make an index point beyond a tensor.
        ExecutionError
            The graph trapped or reported an error.
        """
        self._check_open()
        results = self._run(check_feeds(self.inputs, feeds))
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the session is closed; load the artifact again.")

    @abstractmethod
    def _run(self, arrays: list[Array]) -> list[Array]:
        """Run on checked inputs; return owned outputs in order."""

    def run_step(self, index: int) -> None:
        """Run one call of the plan, on whatever its inputs hold; for profiling.

        Raises
        ------
        UsageError
            The engine does not run single steps, or there is no such step.
        """
        raise UsageError(f"{type(self).__name__} does not run single steps; profile an artifact.")

    def close(self) -> None:
        """Release the graph's memory. A closed session cannot run."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Runtime(ABC):
    """An engine: what it runs, which version it is, how it is configured."""

    name: str
    accepts: Literal["wasm", "native", "onnx"]

    @abstractmethod
    def version(self) -> str:
        """The engine's version."""

    @abstractmethod
    def config(self) -> str:
        """What of its configuration bears on results, in a few words."""

    @abstractmethod
    def engine_bytes(self) -> int:
        """Bytes on disk of what runs graphs, beside Python and numpy; 0 where the graph runs by itself."""

    @abstractmethod
    def load(self, path: Path, options: LoadOptions) -> Session:
        """Prepare a file of the kind that this runtime accepts."""


def distribution_bytes(name: str) -> int:
    """Size of an installed Python distribution's files, 0 if it is not there."""
    try:
        found = files(name) or []
    except PackageNotFoundError:
        return 0
    return sum(Path(str(f.locate())).stat().st_size for f in found if Path(str(f.locate())).is_file())
