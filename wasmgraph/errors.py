"""The one exception tree. Everything raised on purpose is a :class:`WasmgraphError`.

::

    WasmgraphError                     exit code
    ├── InputError                     2   what the user gave us is wrong
    │   ├── ModelError                     not ONNX, or not a model we can take
    │   │   ├── UnsupportedOperatorError       names every such operator and node
    │   │   ├── UnboundDimensionError          names the dimension and the --shape that binds it
    │   │   └── OpenSizeError                  names the open dimension on which the module would depend
    │   ├── TargetError                    unknown target
    │   ├── FeedError                      wrong input name, shape or dtype
    │   │   └── IndexRangeError                an index beyond what it points into
    │   ├── ArtifactError                  truncated, altered, not ours
    │   │   └── SchemaError                    made by a newer wasmgraph
    │   ├── PhotoError                     an image that cannot be read
    │   ├── RecordError                    a results file that cannot be read
    │   └── UsageError                     options that do not go together
    ├── CacheError                     2   the cache directory cannot be used
    ├── FetchError                     2   a download failed
    │   └── DigestError                    its content is not what it should be
    ├── MissingDependencyError         2   an optional package is not installed
    └── InternalError                  3   a failure of wasmgraph
        ├── CompileError                   TVM, the assembler or the linker failed
        └── ExecutionError                 a module trapped or reported an error
            ├── ProcessError                   a child process died, or gave no answer in time
            └── LimitError                     it exceeded a limit, and was ended
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


class WasmgraphError(Exception):
    """Root of every error raised on purpose; ``exit_code`` is what the CLI ends with."""

    exit_code = 3


class InputError(WasmgraphError):
    """What the user gave is wrong; the message says what, where, and what to do."""

    exit_code = 2


class ModelError(InputError):
    """The file is not an ONNX model that can be compiled."""


class UnsupportedOperatorError(ModelError):
    """The model uses operators that have no implementation; all of them are named."""


class UnboundDimensionError(ModelError):
    """A dimension has no value and no bounds: an input's, or ``dim``, which the graph computes."""

    dim: str = ""


class OpenSizeError(ModelError):
    """A number is needed where a size depends on a dimension whose value is known only when the graph runs:
    bind that dimension to one value."""


class TargetError(InputError):
    """There is no target of that name, or it does not run here."""


class FeedError(InputError):
    """An input of ``Session.run`` has the wrong name, shape or dtype."""


class IndexRangeError(FeedError):
    """A graph was fed values that made an index point beyond a tensor; the message names the node, the
    index and the range. Nothing outside of the tensor was touched, there are no outputs, and the session
    can go on."""


class ArtifactError(InputError):
    """The file is not a whole, unaltered wasmgraph artifact.

    ``check`` names what it failed: ``form`` (of file and manifest), ``digest``, ``engine``,
    ``instance``, or a check of ``runtimes/checks.py``.
    """

    def __init__(self, message: str, check: str = "form") -> None:
        super().__init__(message)
        self.check = check


class SchemaError(ArtifactError):
    """The artifact was written by a newer wasmgraph."""


class PhotoError(InputError):
    """A photograph cannot be read."""


class RecordError(InputError):
    """A results file cannot be read as pytest-benchmark records of wasmgraph."""


class UsageError(InputError):
    """Options or arguments that do not make sense together."""


class CacheError(WasmgraphError):
    """The cache directory cannot be created, written or trusted."""

    exit_code = 2


class FetchError(WasmgraphError):
    """A package could not be had from its registry."""

    exit_code = 2


class DigestError(FetchError):
    """A fetched file's sha256 is not the expected one."""


class MissingDependencyError(WasmgraphError):
    """A package that this action needs is not installed; the message names the extra."""

    exit_code = 2


class InternalError(WasmgraphError):
    """A failure of wasmgraph's own."""


class CompileError(InternalError):
    """TVM, the assembler or the linker failed on a model that was accepted."""


class ExecutionError(InternalError):
    """A compiled module trapped, or its entry returned an error code."""


class ProcessError(ExecutionError):
    """A child process died, gave no answer in time (``late``), or answered nonsense; it has ended.

    ``status`` is the exit status of a child that ended by itself, negative for a signal.
    """

    def __init__(self, message: str, status: int | None = None, late: bool = False) -> None:
        super().__init__(message)
        self.status, self.late = status, late


class LimitError(ExecutionError):
    """An untrusted graph exceeded a limit of memory or time; its session is closed."""


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Say which extra of wasmgraph brings a package that ``what`` needs and that is not installed.

    A name that an installed package lacks is another fault, and is raised as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or find_spec(package) is not None:
            raise
        raise MissingDependencyError(
            f"{what} needs {error.name}: pip install 'wasmgraph[{extra}]'."
        ) from error


def error_to(error: WasmgraphError) -> dict[str, str]:
    """An error as JSON holds it, for another process."""
    check = error.check if isinstance(error, ArtifactError) else ""
    return {"error": type(error).__name__, "message": str(error), "check": check}


def error_from(said: Mapping[str, Any]) -> WasmgraphError:
    """The error that another process met, as if it had been met here; that process is not trusted."""
    kind = globals().get(str(said.get("error")))
    if not (isinstance(kind, type) and issubclass(kind, WasmgraphError)):
        kind = ExecutionError
    message = str(said.get("message", ""))
    return kind(message, check=str(said.get("check"))) if issubclass(kind, ArtifactError) else kind(message)
