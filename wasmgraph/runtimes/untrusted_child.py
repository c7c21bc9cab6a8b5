"""The child process of an untrusted session: it limits itself, loads the graph, and runs it on request."""

from __future__ import annotations

import errno
import json
import mmap
import resource
import signal
from collections.abc import Callable
from typing import Any

from wasmgraph.artifact import Artifact
from wasmgraph.dims import to_json
from wasmgraph.errors import LimitError, WasmgraphError, error_to
from wasmgraph.limits import end_with_parent, restrict_memory
from wasmgraph.processes import encode, serve_on_standard_streams
from wasmgraph.runtimes import get_runtime
from wasmgraph.runtimes.base import LoadOptions, Session
from wasmgraph.runtimes.untrusted import layout, views
from wasmgraph.tensors import Array
from wasmgraph.wasm.wasmfile import PAGE_BYTES

_LAST_WORDS_BYTES = 64 << 10
_NO_MEMORY = f"(os error {errno.ENOMEM})"  # in Wasmtime's error message


class Child:
    """Answers messages. Each has a verb (``do``) and its operands."""

    def __init__(self) -> None:
        self._questions, self._answers = serve_on_standard_streams()
        self._request: dict[str, Any] = {}
        self._session: Session
        self._tensors: list[Array] = []

    def serve(self) -> None:
        """Answer messages until the parent closes the connection."""
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "map": self._map,
            "run": self._run,
            "step": self._step,
        }
        for line in self._questions:
            message = json.loads(line)
            verb = message.pop("do")
            if verb == "load":
                self._request = message["request"]
            answer = self._answer(lambda: verbs[verb](**message))  # noqa: B023 - called at once
            self._answers.write(encode(answer))

    def _answer(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        request = self._request
        signal.setitimer(signal.ITIMER_PROF, float(request["cpu_s"]))
        try:
            return work()
        except WasmgraphError as error:
            return error_to(error) if _NO_MEMORY not in str(error) else self._too_little()
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            return self._too_little()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _too_little(self) -> dict[str, Any]:
        allowed = f"{self._request['memory_bytes']:,} bytes"
        return error_to(LimitError(f"{self._request['path']} needs more memory than {allowed}."))

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        allowed = int(request["memory_bytes"])
        restrict_memory(allowed)
        artifact = Artifact.open(request["path"])
        declared = artifact.module.memory_min * PAGE_BYTES if artifact.module else 0
        if declared > allowed:
            raise LimitError(
                f"{artifact.path} declares {declared:,} bytes of memory, {allowed:,} are allowed."
            )
        options = LoadOptions(int(request["threads"]), request["sha256"], request["params"])
        self._session = get_runtime("wasmtime").load(artifact.path, options)
        # Wasmtime has made its memory images; the standard error is a file and keeps the last words.
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LAST_WORDS_BYTES, _LAST_WORDS_BYTES))
        sides = {
            side: [(s.name, list(map(to_json, s.shape)), s.dtype) for s in getattr(self._session, side)]
            for side in ("inputs", "outputs")
        }
        self._dims = artifact.manifest.dims
        dims = [(dim.name, dim.least, dim.most, 0, dim.computed) for dim in self._dims]
        return {"sha256": artifact.sha256, "dims": dims, **sides}

    def _map(self, shared: int) -> dict[str, Any]:
        dims = {dim.name: dim for dim in self._dims}
        specs = tuple(s.largest(dims) for s in (*self._session.inputs, *self._session.outputs))
        self._offsets, size = layout(specs)
        self._memory = mmap.mmap(shared, max(size, 1))
        self._tensors = views(self._memory, specs, self._offsets)
        return {}

    def _run(self, dims: dict[str, int]) -> dict[str, Any]:
        inputs, tensors = self._session.inputs, self._tensors
        count = len(inputs)
        if self._dims:
            tensors = views(self._memory, tuple(s.at(dims) for s in inputs), self._offsets[:count])
        feeds = {spec.name: tensor for spec, tensor in zip(inputs, tensors[:count], strict=True)}
        outputs = self._session.run(feeds, dims=dims or None)
        values = self._session.values
        if self._dims:
            specs = tuple(s.at(values) for s in self._session.outputs)
            tensors = [*tensors, *views(self._memory, specs, self._offsets[count:])]
        for spec, tensor in zip(self._session.outputs, tensors[count:], strict=True):
            tensor[...] = outputs[spec.name]
        return {"dims": values} if self._dims else {}

    def _step(self, index: int) -> dict[str, Any]:
        self._session.run_step(index)
        return {}


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    end_with_parent()
    Child().serve()
