"""Stage 2: an ONNX model, bound and simplified, becomes a Relax module.

onnxruntime's *basic* graph optimisations do the simplifying: they fold BatchNorm into Conv, fold
Pad into Conv, compute constants and fix shapes, without leaving standard ONNX.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
import onnxruntime
import tvm
from google.protobuf.message import DecodeError
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

from wasmgraph.artifact import DESCRIPTION_KEY
from wasmgraph.errors import ModelError, UnboundDimensionError, UnsupportedOperatorError
from wasmgraph.files import sha256_file
from wasmgraph.tensors import TensorSpec

# The metadata_props key under which a model carries its description: weights, preprocessing, labels.
# TVM imports these, but lowers them to library calls or to shapes that depend on data.
_WITHOUT_KERNEL = {
    "CumSum",
    "If",
    "NonMaxSuppression",
    "NonZero",
    "TopK",
    "Unique",
}


@dataclass(frozen=True)
class ImportedModel:
    """A Relax module with what it came from.

    ``inputs`` and ``outputs`` are in the order of ``module["main"]``, under their ONNX names.
    """

    name: str
    sha256: str
    description: Mapping[str, Any]
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


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
    proto, name, sha256 = _read(model)
    proto = simplify(proto, shapes, name)
    _check_operators(proto)
    module = _convert(proto, name)
    main = module["main"]
    inputs = [_spec(v.name, p.ty, name) for v, p in zip(_fed_inputs(proto), main.params, strict=True)]
    results = main.body.body.ty
    types = list(results.fields) if isinstance(results, relax.TupleType) else [results]
    outputs = [_spec(v.name, t, name) for v, t in zip(proto.graph.output, types, strict=True)]
    description = _description(proto, name)
    return ImportedModel(name, sha256, description, module, tuple(inputs), tuple(outputs))


def simplify(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], name: str) -> onnx.ModelProto:
    """Bind the inputs' shapes, fold constants, paddings and BatchNorm; ``name`` is for errors.

    ``proto`` is altered. The inputs of the result are those that are fed.
    """
    bind_shapes(proto, shapes)
    fed = {value.name for value in _fed_inputs(proto)}
    proto = _optimize(_pairwise_sums(_explicit_padding(proto)), name)
    # onnxruntime folds initializers away but leaves their entries among the inputs.
    kept = [value for value in proto.graph.input if value.name in fed]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return proto


def _read(model: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, str, str]:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        _check_operators(copy)
        digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        return copy, model.graph.name or "model", digest
    path = Path(model)
    try:
        proto = onnx.load(path)
        _check_operators(proto)
        onnx.checker.check_model(path)
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


def _fed_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that the user feeds: those that are not initializers under another name."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in constants]


def bind_shapes(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write ``shapes`` into the inputs of ``proto``; every dimension must then have a value."""
    inputs = {value.name: value for value in _fed_inputs(proto)}
    for name in shapes:
        if name not in inputs:
            raise ModelError(
                f"--shape binds {name!r}, which is no input; the inputs are {', '.join(inputs)}."
            )
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        declared = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
        if name in shapes:
            wanted = list(shapes[name])
            contradicted = len(wanted) != len(declared) or any(
                isinstance(d, int) and d > 0 and d != w for d, w in zip(declared, wanted, strict=True)
            )
            if contradicted and declared:
                raise ModelError(f"--shape gives {name!r} the shape {wanted}; the model says {declared}.")
            del dims[:]
            for size in wanted:
                dims.add().dim_value = size
        elif any(not isinstance(d, int) or d <= 0 for d in declared):
            unbound = ", ".join(str(d) for d in declared if not isinstance(d, int) or d <= 0)
            example = ",".join(str(d) if isinstance(d, int) and d > 0 else "1" for d in declared)
            raise UnboundDimensionError(
                f"input {name!r} has the shape {declared}: {unbound} has no value."
                f" Bind it, for example with --shape {name}={example} (shapes={{...}} in Python)."
            )


def _check_operators(proto: onnx.ModelProto) -> None:
    known = set(_get_convert_map()) - _WITHOUT_KERNEL | {"Constant"}
    missing: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in known:
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            missing.setdefault(operator, []).append(node.name or f"(makes {node.output[0]})")
    if missing:
        lines = "; ".join(f"{op} at {', '.join(nodes)}" for op, nodes in sorted(missing.items()))
        opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
        raise UnsupportedOperatorError(
            f"no implementation (opset {opset}) for: {lines}. Export the model without them."
        )


def _explicit_padding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write Conv's ``auto_pad`` as ``pads``: TVM would make a separate padding kernel of it."""
    if not any(a.name == "auto_pad" for n in proto.graph.node if n.op_type == "Conv" for a in n.attribute):
        return proto
    inferred = onnx.shape_inference.infer_shapes(proto)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    weights = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        mode = attrs.get("auto_pad", b"NOTSET").decode() if node.op_type == "Conv" else "NOTSET"
        data, kernel = shapes.get(node.input[0]) if node.input else None, attrs.get("kernel_shape")
        if node.op_type == "Conv":
            kernel = kernel or weights.get(node.input[1], [])[2:]
        if mode == "NOTSET" or not kernel or (mode != "VALID" and not (data and all(data[2:]))):
            continue
        rank = len(kernel)
        before, after = [0] * rank, [0] * rank
        if mode != "VALID" and data:
            strides, dilations = attrs.get("strides", [1] * rank), attrs.get("dilations", [1] * rank)
            for i in range(rank):
                steps = -(-data[2 + i] // strides[i])
                extent = (steps - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
                total = max(0, extent - data[2 + i])
                before[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
                after[i] = total - before[i]
        kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", before + after)])
    return proto


def _pairwise_sums(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write Sum as additions: TVM would stack the terms and reduce the stack."""
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type != "Sum" or node.domain or len(node.input) < 2:
            nodes.append(node)
            continue
        total = node.input[0]
        for i, term in enumerate(node.input[1:], 2):
            result = node.output[0] if i == len(node.input) else f"{node.output[0]}_of_{i}"
            nodes.append(onnx.helper.make_node("Add", [total, term], [result], name=node.name))
            total = result
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _optimize(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="wasmgraph-") as directory:
        path = Path(directory, "simplified.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return onnx.load(path)
        except Exception as error:  # onnxruntime's exceptions share no base class
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"{name}: onnxruntime refuses the model: {first}") from error


def _spec(tensor: str, ty: tvm.ir.Type, name: str) -> TensorSpec:
    static = (
        isinstance(ty, relax.TensorType)
        and isinstance(ty.shape, relax.ShapeExpr)
        and all(isinstance(d, tvm.tirx.IntImm) for d in ty.shape.values)
    )
    if not static:
        raise ModelError(
            f"{name}: {tensor!r} is not a tensor of a static shape ({ty}); bind the inputs' shapes"
            " with --shape, or export the model with static ones."
        )
    return TensorSpec(tensor, tuple(int(d) for d in ty.shape.values), str(ty.dtype))


def _description(proto: onnx.ModelProto, name: str) -> Mapping[str, Any]:
    raw = next((p.value for p in proto.metadata_props if p.key == DESCRIPTION_KEY), "{}")
    try:
        description = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{name}: its {DESCRIPTION_KEY!r} metadata is not JSON: {error}.") from error
    if not isinstance(description, dict):
        raise ModelError(f"{name}: its {DESCRIPTION_KEY!r} metadata is not a JSON object.")
    return description


def _convert(proto: onnx.ModelProto, name: str) -> tvm.IRModule:
    # The frontend prints the failing operator to stdout before it raises; the error says it better.
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            return from_onnx(proto, keep_params_in_input=False)
    except Exception as error:  # the frontend raises whatever its converters meet
        said = printed.getvalue().strip().splitlines()
        what = said[0].split(", with inputs")[0] if said else "the importer failed"
        raise ModelError(f"{name}: {what}: {str(error).strip().splitlines()[-1]}") from error
