"""wasmgraph as an ONNX backend: the interface of ``onnx.backend.base``, which ONNX's own tests drive.

>>> import wasmgraph.onnx_backend as backend
>>> outputs = backend.run_model(model, [x])                        # doctest: +SKIP
>>> prepared = backend.prepare(model, device="wasm32")             # doctest: +SKIP

A device is a target; ``CPU`` is ``wasm32-simd128``. A graph is compiled when the first inputs come, and
again when others come of which it depends. These are the inputs' shapes, and the values of those that ONNX
uses as shapes, axes, sizes or counts (``STATIC_INPUTS`` lists them), unless data may say them and the model
declares the shape of the result, which bounds them. No other input's value is known to the compiler. Where
outputs depend on shapes alone, shapes are open (:data:`_ROOM`), so that the module computes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from wasmgraph.artifact import Artifact
from wasmgraph.compiler import CompileLog, compile
from wasmgraph.compiler.importing.static_inputs import STATIC_INPUTS, static_inputs
from wasmgraph.errors import (
    FeedError,
    IndexRangeError,
    ModelError,
    UnboundDimensionError,
    UsageError,
    WasmgraphError,
)
from wasmgraph.runtimes import load
from wasmgraph.runtimes.base import Session
from wasmgraph.targets import get_target, target_names
from wasmgraph.tensors import Array

DEFAULT_TARGET = "wasm32-simd128"


_ROOM = 2  # by how much an open size may be larger than the first that comes
_MOST_SIZES = 8  # that data says
_MOST_SESSIONS = 8  # of one model, each for other shapes or shape-like values


class PreparedModel(BackendRep):
    """A model for one target, compiled once for each set of shapes and static inputs.

    ``constant_outputs`` are those outputs of the last run that no input's value reached.
    """

    def __init__(self, model: onnx.ModelProto, target: str, runtime: str | None) -> None:
        self.model, self.target, self.runtime = model, target, runtime
        initialized = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in initialized]
        self.static = static_inputs(model)
        self._must = static_inputs(model, bounded=True)
        self.constant_outputs: tuple[str, ...] = ()
        self._sessions: dict[Any, tuple[Session, tuple[str, ...]]] = {}
        self._refused: dict[Any, WasmgraphError] = {}

    def run(self, inputs: Any, **_: Any) -> tuple[Array, ...]:
        """Run on arrays in the order of the model's inputs, or by name.

        Returns
        -------
        A named tuple of arrays in the order of the model's outputs.
        """
        feeds = inputs if isinstance(inputs, dict) else self._named(inputs)
        for name, value in feeds.items():
            if not isinstance(value, (np.ndarray, np.generic)):
                raise ModelError(f"input {name!r} is a {type(value).__name__}; inputs must be tensors.")
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        try:
            return self._run(arrays, self._must)
        except IndexRangeError:
            raise
        except WasmgraphError:
            if self._must == self.static:
                raise
        return self._run(arrays, self.static)  # a size was beyond the bound that was found for it

    def _run(self, arrays: dict[str, Array], static: set[str]) -> tuple[Array, ...]:
        session, self.constant_outputs = self._session(arrays, static)
        given = {spec.name: arrays[spec.name] for spec in session.inputs}
        fed = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in given.items()}
        outputs = session.run(fed)
        names = [value.name for value in self.model.graph.output]
        named: tuple[Array, ...] = namedtupledict("Outputs", names)(*(outputs[name] for name in names))
        return named

    def _named(self, inputs: Any) -> dict[str, Any]:
        values = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
        if len(values) > len(self.inputs):
            raise FeedError(f"{len(values)} inputs are given; the model takes {', '.join(self.inputs)}.")
        return dict(zip(self.inputs, values, strict=False))

    def _session(self, arrays: dict[str, Array], static: set[str]) -> tuple[Session, tuple[str, ...]]:
        values = {name: value for name, value in arrays.items() if name in static}
        shapes = {name: value.shape for name, value in arrays.items() if name not in static}
        said = tuple((n, str(v.dtype), v.shape, v.tobytes()) for n, v in sorted(values.items()))
        key = (tuple(sorted(shapes.items())), said)
        if key in self._refused:
            raise self._refused[key]
        if key not in self._sessions:
            try:
                made = self._compiled(shapes, values)
            except WasmgraphError as error:
                if static != self.static:
                    self._refused[key] = error
                raise
            while len(self._sessions) >= _MOST_SESSIONS:  # the longest unused goes first
                self._sessions.pop(next(iter(self._sessions)))[0].close()
            self._sessions[key] = made
        self._sessions[key] = self._sessions.pop(key)
        return self._sessions[key]

    def _compiled(
        self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Array]
    ) -> tuple[Session, tuple[str, ...]]:
        """A session for these shapes, and the outputs that are constants. ``values`` are those of static
        inputs."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        fed = [value for value in model.graph.input if value.name not in values]
        del model.graph.input[:]
        model.graph.input.extend(fed)
        model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
        log = CompileLog()
        artifact = self._bounded(model, shapes, log)
        if log.constant_outputs and any(shapes.values()):
            with suppress(WasmgraphError):
                return self._open(model, shapes)
        return load(artifact, runtime=self.runtime), log.constant_outputs

    def _bounded(
        self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], log: CompileLog
    ) -> Artifact:
        """Compile. A size that data says, and that nothing else bounds, is at most the largest number of
        elements that the model declares for an output."""
        declared = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output]
        most = max((prod(sizes) for sizes in declared if all(sizes)), default=0)
        dims: dict[str, tuple[int, int]] = {}
        while True:
            try:
                return compile(model, target=self.target, shapes=shapes, dims=dims, log=log)
            except UnboundDimensionError as error:
                if not error.dim or not most or len(dims) == _MOST_SIZES:
                    raise
                dims[error.dim] = (0, most)

    def _open(
        self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[Session, tuple[str, ...]]:
        """A session whose inputs' sizes are open, but for those of 1, which broadcast."""
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
        named: dict[str, list[int | str]] = {}
        dims: dict[str, tuple[int, int]] = {}
        for name, shape in shapes.items():
            named[name] = [size if size == 1 else f"{name}_{axis}" for axis, size in enumerate(shape)]
            dims |= {f"{name}_{a}": (0, size + _ROOM) for a, size in enumerate(shape) if size != 1}
        log = CompileLog()
        artifact = compile(model, target=self.target, shapes=named, dims=dims, log=log)
        return load(artifact, runtime=self.runtime), log.constant_outputs

    def close(self) -> None:
        """Let go of every compiled graph."""
        while self._sessions:
            self._sessions.popitem()[1][0].close()


class WasmgraphBackend(Backend):
    """``onnx.backend.base.Backend``; ``device`` is ``CPU`` or a target, ``runtime`` as for ``wg.load``."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> bool:
        """Whether every operator has an implementation and every input and output can be a tensor here.

        What an operator does with its attributes is only known once :meth:`prepare` has compiled it.
        """
        from wasmgraph.compiler.importing.frontend import check_border, missing

        if not cls.supports_device(device) or missing(model):
            return False
        try:
            check_border(model, model.graph.name)
        except ModelError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """A model, ready to be run.

        Raises
        ------
        UsageError
            There is no such device.
        ModelError
            The model is invalid. What is found while compiling is raised by the first run.
        """
        if not cls.supports_device(device):
            raise UsageError(f"no device {device!r}; there are CPU, {', '.join(target_names())}.")
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise ModelError(f"{model.graph.name}: {str(error).strip().splitlines()[0]}") from error
        target = DEFAULT_TARGET if device.upper().startswith("CPU") else device
        return PreparedModel(model, get_target(target).name, kwargs.get("runtime"))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Array, ...]:
        """Prepare, run, and let go."""
        prepared = cls.prepare(model, device, **kwargs)
        try:
            return prepared.run(inputs)
        finally:
            prepared.close()

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Array, ...]:
        """Run one node; ``opset_version`` in ``kwargs`` says of which opset it is (else the newest)."""
        arrays = [np.asarray(value) for value in ([inputs] if isinstance(inputs, np.ndarray) else inputs)]
        given = [name for name in node.input if name]
        feeds = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in zip(given, arrays, strict=True)
        ]
        if outputs_info is not None:
            results = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(d)), shape)
                for name, (d, shape) in zip(node.output, outputs_info, strict=True)
            ]
        else:
            results = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name]
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        model = helper.make_model(
            helper.make_graph([node], node.op_type, feeds, results),
            opset_imports=[helper.make_opsetid(node.domain, opset)],
        )
        if outputs_info is None:
            model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        return cls.run_model(model, arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """``CPU``, or the name of a target."""
        return device.partition(":")[0].upper() == "CPU" or device in target_names()


is_compatible = WasmgraphBackend.is_compatible
prepare = WasmgraphBackend.prepare
run_model = WasmgraphBackend.run_model
run_node = WasmgraphBackend.run_node
supports_device = WasmgraphBackend.supports_device

__all__ = [
    "DEFAULT_TARGET",
    "STATIC_INPUTS",
    "PreparedModel",
    "WasmgraphBackend",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]
