"""Stage 2: an ONNX model, bound and simplified, becomes a Relax module.

onnxruntime's *basic* graph optimisations do the simplifying: they fold BatchNorm into Conv, fold
Pad into Conv, compute constants and fix shapes, without leaving standard ONNX.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import tvm
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from wasmgraph.artifact import DESCRIPTION_KEY
from wasmgraph.compiler.importing import frontend
from wasmgraph.compiler.importing.frontend.values import IndexCheck
from wasmgraph.compiler.importing.open_constants import leaves_open
from wasmgraph.errors import ModelError, UnboundDimensionError, UnsupportedOperatorError
from wasmgraph.files import sha256_file
from wasmgraph.tensors import TensorSpec


@dataclass(frozen=True)
class ImportedModel:
    """A Relax module with what it came from.

    ``inputs`` and ``outputs`` are in the order of ``module["main"]``, under their ONNX names.
    ``constant_outputs`` depend on no input: they were computed while importing. After its outputs
    ``main`` returns a code for each of ``checks``.
    """

    name: str
    sha256: str
    description: Mapping[str, Any]
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constant_outputs: tuple[str, ...]
    checks: tuple[IndexCheck, ...] = ()


def import_model(model: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> ImportedModel:
    """Read, bind, check, simplify and convert a model.

    Raises
    ------
    ModelError
        It cannot be read, is invalid, or cannot be converted.
    UnboundDimensionError
        An input's shape is not static and ``shapes`` does not bind it.
    UnsupportedOperatorError
        It uses operators without an implementation.
    """
    proto, name, sha256 = read_model(model)
    proto = simplify(proto, shapes, name)
    _check_operators(proto)
    module, inputs, outputs, constant, checks = frontend.convert(proto, name)
    description = _description(proto, name)
    return ImportedModel(name, sha256, description, module, inputs, outputs, constant, checks)


def simplify(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], name: str) -> onnx.ModelProto:
    """Bind the inputs' shapes, fold constants, paddings and BatchNorm; ``name`` is for errors.

    ``proto`` is altered. The inputs of the result are those that are fed.
    """
    bind_shapes(proto, shapes)
    fed = {value.name for value in _fed_inputs(proto)}
    proto = _optimize(proto, name)
    # onnxruntime folds initializers away but leaves their entries among the inputs.
    kept = [value for value in proto.graph.input if value.name in fed]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return proto


def read_model(model: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, str, str]:
    """A model that is ours to alter, its name, and the digest of what it was read from.

    Raises
    ------
    ModelError
        It cannot be read, is invalid, or uses operators that have no implementation.
    """
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        _check_weights(copy, model.graph.name or "the model")
        _check_operators(copy)
        digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        return copy, model.graph.name or "model", digest
    path = Path(model)
    try:
        proto = onnx.load(path)
        _check_weights(proto, str(path))
        _check_operators(proto)
        if all(value.type.tensor_type.HasField("shape") for value in proto.graph.output):
            onnx.checker.check_model(path)
        else:  # the checker alone insists on them; from a path it can check more than 2 GB
            proto = onnx.shape_inference.infer_shapes(proto)
            onnx.checker.check_model(proto)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file: {error}.") from error
    except (onnx.checker.ValidationError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{path} is not a valid ONNX model: {first}") from error
    if not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it has no graph with outputs.")
    return proto, path.stem, sha256_file(path)


def _check_weights(proto: onnx.ModelProto, where: str) -> None:
    """Every initializer is here and whole. onnxruntime would refuse too, without its name."""
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor):
            raise ModelError(
                f"{where}: tensor {tensor.name!r} is kept in another file. Give the model's path, or load"
                " it with onnx.load(path)."
            )
        try:
            numpy_helper.to_array(tensor)
        except KeyError as error:
            raise ModelError(f"{where}: tensor {tensor.name!r} has the unknown dtype {error}.") from error
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{where}: tensor {tensor.name!r} is not the {list(tensor.dims)} it should be: {error}."
            ) from error


def _fed_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that the user feeds: those that are not initializers under another name."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in constants]


def bind_shapes(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write ``shapes`` into the inputs of ``proto``, or where they are silent the shapes that the model's
    description proposes; every dimension must then have a value.

    A batch of 1 may be bound to a larger one: what the model says of other tensors' sizes is then inferred
    anew, and a graph that has its batch built in (a Reshape to a fixed size) is refused by whoever infers.
    """
    inputs = {value.name: value for value in _fed_inputs(proto)}
    proposed = _description(proto, proto.graph.name or "the model").get("shapes", {})
    for name in shapes:
        if name not in inputs:
            raise ModelError(
                f"--shape binds {name!r}, which is no input; the inputs are {', '.join(inputs)}."
            )
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        declared = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
        unbound = [d for d in declared if not isinstance(d, int) or d <= 0]
        if name in shapes or (unbound and name in proposed):
            wanted = list(shapes[name] if name in shapes else proposed[name])
            if declared[:1] == [1] and wanted[:1] > [1]:
                declared[0] = "batch"
                _forget_batch(proto)
            contradicted = len(wanted) != len(declared) or any(
                isinstance(d, int) and d > 0 and d != w for d, w in zip(declared, wanted, strict=True)
            )
            if contradicted and declared:
                raise ModelError(f"--shape gives {name!r} the shape {wanted}; the model says {declared}.")
            del dims[:]
            for size in wanted:
                dims.add().dim_value = size
        elif unbound:
            example = ",".join(str(d) if isinstance(d, int) and d > 0 else "1" for d in declared)
            raise UnboundDimensionError(
                f"input {name!r} has the shape {declared}, no value for {', '.join(map(str, unbound))}."
                f" Bind it, for example with --shape {name}={example} (shapes={{...}} in Python)."
            )


def _forget_batch(proto: onnx.ModelProto) -> None:
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim[:1]:
            dim.Clear()


def _check_operators(proto: onnx.ModelProto) -> None:
    lines = "; ".join(
        f"{op} at {', '.join(nodes)}" for op, nodes in sorted(frontend.missing(proto).items())
    )
    if lines:
        opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
        raise UnsupportedOperatorError(
            f"no implementation (opset {opset}) for: {lines}. Export the model without them."
        )


def _optimize(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Let onnxruntime simplify a model; a model that only lacks kernels there stays as it is."""
    with tempfile.TemporaryDirectory(prefix="wasmgraph-") as directory:
        path = Path(directory, "simplified.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(
                proto.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"] if leaves_open(proto) else [],
            )
            return onnx.load(path)
        except Exception as refusal:  # onnxruntime's exceptions share no base class
            try:
                onnx.checker.check_model(proto, full_check=True)
            except Exception as error:
                first = str(refusal).strip().splitlines()[0]
                raise ModelError(f"{name}: onnxruntime refuses the model: {first}") from error
            return proto


def _description(proto: onnx.ModelProto, name: str) -> Mapping[str, Any]:
    raw = next((p.value for p in proto.metadata_props if p.key == DESCRIPTION_KEY), "{}")
    try:
        description = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{name}: its {DESCRIPTION_KEY!r} metadata is not JSON: {error}.") from error
    if not isinstance(description, dict):
        raise ModelError(f"{name}: its {DESCRIPTION_KEY!r} metadata is not a JSON object.")
    return description
