"""onnxruntime, the reference: it runs the ``.onnx`` file itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from wasmgraph.dims import MOST, Dim, Expression
from wasmgraph.errors import ExecutionError, ModelError, needing
from wasmgraph.files import sha256_file
from wasmgraph.runtimes.base import LoadOptions, Runtime, Session, distribution_bytes
from wasmgraph.tensors import Array, TensorSpec

_DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}


class OnnxRuntimeSession(Session):
    """An onnxruntime CPU session at its default optimisations. Clones share the onnxruntime session, which
    can run several calls at once."""

    def __init__(self, path: Path, session: Any) -> None:
        super().__init__(
            tuple(_spec(path, value) for value in session.get_inputs()),
            tuple(_spec(path, value) for value in session.get_outputs()),
            tuple(_dims(session.get_inputs())),
        )
        self._path, self._session = path, session

    def _run(self, arrays: list[Array]) -> list[Array]:
        feeds = {spec.name: a for spec, a in zip(self.inputs, arrays, strict=True)}
        try:
            results = self._session.run(None, feeds)
        except Exception as error:  # as below
            own = type(error).__module__.startswith("onnxruntime")
            if not own and type(error) not in (RuntimeError, ValueError):
                raise  # a signal handler raised it
            raise ExecutionError(f"onnxruntime: {str(error).strip().splitlines()[0]}") from error
        return [np.asarray(result) for result in results]

    def _run_at(self, arrays: list[Array], values: Mapping[str, int]) -> list[Array]:
        return self._run(arrays)

    def _clone(self) -> Session:
        return OnnxRuntimeSession(self._path, self._session)

    def _release(self) -> None:
        self._session = None  # the last clone to be closed drops the last reference


def _inference_session(path: Path, options: LoadOptions) -> Any:
    with needing("running .onnx files", "onnxruntime"):
        import onnxruntime
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = options.threads
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 4
    # Otherwise onnxruntime's threads would keep spinning after a run and take cores from the runtime that
    # is measured next.
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: onnxruntime refuses the model: {first}") from error


def _dims(inputs: Any) -> Iterator[Dim]:
    """The named dimensions of the inputs, for which onnxruntime knows no bounds."""
    for name in dict.fromkeys(d for value in inputs for d in value.shape if isinstance(d, str) and d):
        yield Dim(name, 0, MOST)


def _spec(path: Path, value: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else Expression.of(d) if d else -1 for d in value.shape)
    if any(size == -1 for size in shape):
        raise ModelError(f"{path}: {value.name!r} has the dynamic shape {value.shape}; bind it first.")
    inner = re.fullmatch(r"tensor\((.*)\)", value.type)
    if inner is None:
        raise ModelError(f"{path}: {value.name!r} is a {value.type}, not a tensor.")
    return TensorSpec(value.name, shape, _DTYPES.get(inner[1], inner[1]))


class OnnxRuntime(Runtime):
    """Runs ``.onnx`` files."""

    name = "onnxruntime"
    accepts = "onnx"

    def version(self) -> str:
        """onnxruntime's version."""
        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return "not installed"

    def config(self) -> str:
        """Optimisation level and thread policy."""
        return "CPU provider, all optimisations, no spinning"

    def engine_bytes(self) -> int:
        """The Python package."""
        return distribution_bytes("onnxruntime")

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Create the session."""
        if options.sha256 is not None:
            options.authenticate(path, sha256_file(path))
        return OnnxRuntimeSession(path, _inference_session(path, options))
