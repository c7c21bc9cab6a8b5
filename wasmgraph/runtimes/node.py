"""Node.js: runs the same wasm artifact in V8, in a child process, through ``web/loader.mjs``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from wasmgraph.artifact import Artifact, check_computed, given
from wasmgraph.dims import Dim
from wasmgraph.errors import (
    ArtifactError,
    ExecutionError,
    FeedError,
    IndexRangeError,
    MissingDependencyError,
)
from wasmgraph.processes import Child
from wasmgraph.runtimes.base import LoadOptions, Runtime, Session
from wasmgraph.runtimes.checks import check
from wasmgraph.runtimes.parameters import params_file
from wasmgraph.tensors import Array, TensorSpec

# (module (func (param v128) (result v128)
#   local.get 0 local.get 0 local.get 0 f32x4.relaxed_madd))
_RELAXED_SIMD = "0061736d0100000001060160017b017b030201000a0d010b00200020002000fd85020b"
# Seconds within which a call must end, including the compilation of a load: far more than any graph takes.
PATIENCE_S = 600.0
_STARTING_S = 60.0  # for one expression; far more than Node.js takes to start
_RUNNER = Path(__file__).with_name("node_runner.mjs")


def _node() -> str:
    found = shutil.which("node")
    if found is None:
        raise MissingDependencyError("the runtime 'node' needs Node.js: there is no `node` on the PATH.")
    return found


def _evaluate(program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [_node(), *flags, "-e", program]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_STARTING_S)
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError(f"`node` does not answer within {_STARTING_S:g} s.") from error


@cache
def node_versions() -> dict[str, str]:
    """Versions of Node.js and its components: ``node``, ``v8`` and more."""
    program = "console.log(JSON.stringify(process.versions))"
    done = _evaluate(program)
    if done.returncode:
        raise MissingDependencyError(f"`node` does not run: {done.stderr.strip()[-500:]}")
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def node_bytes() -> int:
    """Size of Node.js's executable file."""
    return Path(_node()).resolve().stat().st_size


@cache
def relaxed_simd_flags() -> tuple[str, ...] | None:
    """Command-line flags that enable relaxed SIMD in Node.js: V8 before 11.4 needs one. None if V8 does not
    support relaxed SIMD at all."""
    program = f"process.exit(WebAssembly.validate(Buffer.from('{_RELAXED_SIMD}', 'hex')) ? 0 : 1)"
    for flags in ((), ("--experimental-wasm-relaxed-simd",)):
        if _evaluate(program, *flags).returncode == 0:
            return flags
    return None


class NodeProcess:
    """A Node.js process that answers messages (``node_messages.mjs``); ``where`` names it in errors."""

    def __init__(self, script: Path, where: str, flags: Sequence[str] = ()) -> None:
        self._where = where
        self._child = Child([_node(), *flags, str(script)], where)

    @property
    def closed(self) -> bool:
        """Whether the process has ended."""
        return self._child.closed

    def ask(self, message: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a message; return the answer and its bytes.

        Raises
        ------
        IndexRangeError
            An index was out of range.
        ProcessError
            The process died, or was ended because it gave no answer within :data:`PATIENCE_S`.
        ExecutionError
            The process answered with another error.
        """
        answer, content = self._child.ask(message, payload, seconds=PATIENCE_S)
        if "error" in answer:
            kind, _, text = str(answer["error"]).partition(": ")
            if kind in (IndexRangeError.__name__, FeedError.__name__):
                error = IndexRangeError if kind == IndexRangeError.__name__ else FeedError
                raise error(f"{self._where}: {text}")
            raise ExecutionError(f"{self._where}: {answer['error']}")
        return answer, content

    def close(self) -> None:
        """End the process."""
        self._child.close()


class ProcessSession(Session):
    """A graph in a Node.js process; tensors cross its standard streams in the order of the specs."""

    def __init__(
        self,
        process: NodeProcess,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        dims: tuple[Dim, ...] = (),
    ) -> None:
        super().__init__(inputs, outputs, dims)
        self.process = process

    def _run(self, arrays: list[Array]) -> list[Array]:
        return self._run_at(arrays, {})

    def _run_at(self, arrays: list[Array], values: Mapping[str, int]) -> list[Array]:
        payload = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        message = {"command": "run", **self._told(arrays, values)}
        answer, content = self._answer(message, payload)
        outputs = self._answered(answer, values)
        if len(content) != sum(spec.nbytes for spec in outputs):
            self._closed = True
            raise ExecutionError(f"the process answered with {len(content)} bytes of outputs.")
        results, offset = [], 0
        for spec in outputs:
            raw = content[offset : offset + spec.nbytes]
            results.append(np.frombuffer(raw, spec.dtype).reshape(spec.static_shape).copy())
            offset += spec.nbytes
        return results

    def _told(self, arrays: list[Array], values: Mapping[str, int]) -> Mapping[str, Any]:
        """What the process is told of a run, beside the content of the arrays."""
        return {}

    def _answered(self, answer: Mapping[str, Any], values: Mapping[str, int]) -> Sequence[TensorSpec]:
        """The outputs of a run as they are in what follows the answer."""
        return self.outputs

    def _ask(self, message: Mapping[str, Any], payload: bytes = b"") -> bytes:
        return self._answer(message, payload)[1]

    def _answer(self, message: Mapping[str, Any], payload: bytes = b"") -> tuple[Mapping[str, Any], bytes]:
        try:
            return self.process.ask(message, payload)
        finally:
            if self.process.closed:  # it died, or the call was interrupted
                self._closed = True

    def _release(self) -> None:
        self.process.close()


class NodeSession(ProcessSession):
    """A wasm artifact under V8."""

    def __init__(self, artifact: Artifact, threads: int, folder: Path | None = None) -> None:
        check(artifact)
        params = params_file(artifact, folder)
        relaxed = "relaxed-simd" in artifact.manifest.features
        flags = relaxed_simd_flags() if relaxed else ()
        if flags is None:
            raise ArtifactError(
                f"{artifact.path} needs relaxed SIMD, which V8 {node_versions()['v8']} does not have."
                " Compile the model for wasm32-simd128.",
                check="engine",
            )
        process = NodeProcess(_RUNNER, str(artifact.path), flags)
        super().__init__(process, artifact.inputs, artifact.outputs, given(artifact.manifest.dims))
        self._dims = artifact.manifest.dims
        self._artifact, self._threads, self._folder = artifact, threads, folder
        try:
            path = str(artifact.path.resolve())
            file = None if params is None else str(params)
            self.process.ask({"command": "load", "path": path, "threads": threads, "params": file})
            artifact.check_unchanged()
        except ExecutionError as error:
            self.close()
            raise ArtifactError(f"V8 refuses the module: {error}", check="engine") from error
        except ArtifactError:
            self.close()
            raise

    def _told(self, arrays: list[Array], values: Mapping[str, int]) -> Mapping[str, Any]:
        return {"dims": dict(values)} if values else {}

    def _answered(self, answer: Mapping[str, Any], values: Mapping[str, int]) -> Sequence[TensorSpec]:
        if not self._dims:
            return self.outputs
        computed = [dim for dim in self._dims if dim.computed]
        found = check_computed(computed, {dim.name: int(answer["dims"][dim.name]) for dim in computed})
        self.values = {**values, **found}
        return [spec.at(self.values) for spec in self.outputs]

    def _run_step(self, index: int) -> None:
        self._ask({"command": "step", "index": index})

    def _clone(self) -> Session:
        artifact = Artifact.open(self._artifact.path)
        LoadOptions(sha256=self._artifact.sha256).authenticate(artifact.path, artifact.sha256)
        return NodeSession(artifact, self._threads, self._folder)


class NodeRuntime(Runtime):
    """Runs wasm artifacts in V8."""

    name = "node"
    accepts = "wasm"

    def version(self) -> str:
        """Versions of Node.js and V8."""
        versions = node_versions()
        return f"{versions['node']}, V8 {versions['v8']}"

    def config(self) -> str:
        """How V8 compiles, and on which platform it runs."""
        flags = relaxed_simd_flags()
        relaxed = f", {' '.join(flags)} for relaxed SIMD" if flags else ""
        return f"V8's defaults (Liftoff, then TurboFan), a process of its own{relaxed}"

    def engine_bytes(self) -> int:
        """Size of Node.js's executable file; the loader is a few kilobytes more."""
        return node_bytes()

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Check the artifact, start a process, compile, instantiate, start the threads."""
        artifact = Artifact.open(path)
        options.check(artifact)
        return NodeSession(artifact, options.threads, options.params_folder)
