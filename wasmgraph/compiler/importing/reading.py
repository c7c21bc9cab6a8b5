"""Reading: makes a model with its identity, free to be modified, from a path, bytes or a ``ModelProto``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from wasmgraph.compiler.constants import allocate, let_go
from wasmgraph.compiler.importing import frontend
from wasmgraph.compiler.importing.checking import check, import_domain
from wasmgraph.compiler.importing.frontend.schemas import subgraphs
from wasmgraph.compiler.importing.onnx_private import external_bytes, parser_error
from wasmgraph.compiler.importing.weights import check_size, hide, large_names
from wasmgraph.errors import ModelError, UnsupportedOperatorError, UsageError
from wasmgraph.files import expand, sha256_file
from wasmgraph.tensors import Array

Source: TypeAlias = "str | Path | bytes | onnx.ModelProto"
_MALFORMED = (
    DecodeError,
    text_format.ParseError,
    json_format.ParseError,
    parser_error(),
    UnicodeDecodeError,
)


# Operators that draw random numbers.
_RANDOM = ("Random", "Bernoulli", "Multinomial")


@dataclass
class Model:
    """A model that was read.

    Attributes
    ----------
    proto : the graph, a copy that may be modified
    name : the model's name in messages and in the manifest
    sha256 : the model's identity: the hash of the file, including weights in other files
    weights : tensors that are stored outside ``proto``, by name (see ``weights.py``)
    notes : what a user should know about the import
    """

    proto: onnx.ModelProto
    name: str
    sha256: str
    weights: dict[str, Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_model(source: Source, most_bytes: int | None = None, apart: bool = False) -> Model:
    """Read and check a model.

    Parameters
    ----------
    source : path of an ONNX file (binary, or one of ONNX's text formats by its suffix), the bytes of a
        binary file, or a model in memory
    most_bytes : models with more bytes of weights are refused
    apart : whether large weights of a large model may be stored in ``weights`` instead of ``proto``

    Raises
    ------
    ModelError
        The model cannot be read, is invalid, or uses operators that have no implementation.
    UsageError
        ``source`` is none of these.
    """
    if isinstance(source, (str, Path)):
        return _read_file(expand(source), most_bytes, apart)
    if isinstance(source, (bytes, bytearray, memoryview)):
        try:
            proto = onnx.ModelProto.FromString(bytes(source))
        except DecodeError as error:
            raise ModelError(f"the bytes are not an ONNX file: {first_line(error)}") from error
        return _settle(proto, proto.graph.name or "model", hashlib.sha256(source), None, most_bytes, apart)
    if not isinstance(source, onnx.ModelProto):
        hint = " Wrap it with onnx.helper.make_model." if isinstance(source, onnx.GraphProto) else ""
        raise UsageError(
            f"a model is a path, the bytes of an ONNX file, or an onnx.ModelProto; this is a"
            f" {type(source).__name__}.{hint}"
        )
    name = source.graph.name or "model"
    check_size(source, name, most_bytes)
    if apart and large_names(source):
        return _settle(_without_weights(source), name, hashlib.sha256(), None, None, apart, source)
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    digest = hashlib.sha256(source.SerializeToString(deterministic=True))
    return _settle(copy, name, digest, None, most_bytes, apart)


def _read_file(path: Path, most_bytes: int | None, apart: bool) -> Model:
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error
    except _MALFORMED as error:
        raise ModelError(f"{path} is not an ONNX file: {first_line(error)}") from error
    external = any(uses_external_data(tensor) for tensor in _tensors(proto.graph))
    digest = hashlib.sha256(bytes.fromhex(sha256_file(path))) if external else None
    if apart and not external and large_names(proto):
        # A proto does not release the memory of tensors that are removed from it, so copy the rest.
        model = _settle(_without_weights(proto), str(path), None, path.parent, most_bytes, apart, proto)
        del proto
    else:
        model = _settle(proto, str(path), digest, path.parent, most_bytes, apart)
    model.name = path.stem
    if digest is None:
        model.sha256 = sha256_file(path)
    return model


def _settle(
    proto: onnx.ModelProto,
    name: str,
    digest: hashlib._Hash | None,
    folder: Path | None,
    most_bytes: int | None,
    apart: bool,
    values: onnx.ModelProto | None = None,
) -> Model:
    """Make the model of a proto whose weights may be in files in ``folder``, or in another proto."""
    _check_text(proto.graph, name)
    if not proto.graph.output:
        raise ModelError(f"{name} is not an ONNX model: it has no graph with outputs.")
    check_size(proto, name, most_bytes)
    known = onnx.defs.onnx_opset_version()
    newest = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if newest > known:
        raise ModelError(
            f"{name} uses opset {newest}; opsets up to {known} are known here. Export it with opset"
            f" {known}, or update the onnx package."
        )
    weights = _load_weights(proto, name, digest, folder, apart, values)
    if values is not None and digest is not None:
        digest.update(proto.SerializeToString(deterministic=True))
    _densify(proto.graph, name)
    _check_tensors(proto, name)
    check_operators(proto)
    import_domain(proto)
    _check(proto, name, weights)
    _unique_outputs(proto)
    return Model(proto, name, digest.hexdigest() if digest else "", weights)


def first_line(error: Exception) -> str:
    """The first line of the message of another library's exception, as a sentence."""
    said = error.args[0] if error.args else ""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a graph and of the graphs in its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in subgraphs(node):
            yield from _tensors(inner)


def _check_text(graph: onnx.GraphProto, where: str) -> None:
    """Raise ModelError if a name is not UTF-8: protobuf then gives its bytes."""
    texts: list[Any] = [tensor.name for tensor in graph.initializer]
    texts += [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
    for node in graph.node:
        texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
        for attribute in node.attribute:
            texts += [attribute.name, attribute.ref_attr_name]
        for inner in subgraphs(node):
            _check_text(inner, where)
    wrong = next((text for text in texts if isinstance(text, bytes)), None)
    if wrong is not None:
        raise ModelError(f"{where} is not a valid ONNX model: the name {wrong!r:.80} is not UTF-8.")


def _without_weights(source: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model, but of tensors that are to be stored separately copy only the headers."""
    light = onnx.ModelProto()
    for descriptor, value in source.ListFields():
        if descriptor.name == "graph":
            continue
        if descriptor.is_repeated:
            getattr(light, descriptor.name).extend(value)
        elif descriptor.message_type:
            getattr(light, descriptor.name).CopyFrom(value)
        else:
            setattr(light, descriptor.name, value)
    large = large_names(source)
    for descriptor, value in source.graph.ListFields():
        if descriptor.name == "initializer":
            for tensor in value:
                if tensor.name in large:
                    header = light.graph.initializer.add()
                    header.name, header.data_type = tensor.name, tensor.data_type
                    header.dims.extend(tensor.dims)
                else:
                    light.graph.initializer.append(tensor)
        elif descriptor.is_repeated:
            getattr(light.graph, descriptor.name).extend(value)
        else:
            setattr(light.graph, descriptor.name, value)
    return light


def _load_weights(
    proto: onnx.ModelProto,
    name: str,
    digest: hashlib._Hash | None,
    folder: Path | None,
    apart: bool,
    values: onnx.ModelProto | None,
) -> dict[str, Array]:
    """Read tensors from external files into the proto; read large weights of a large model into arrays."""
    large = large_names(proto) if apart else set()
    sources = {t.name: t for t in values.graph.initializer} if values is not None else {}
    weights: dict[str, Array] = {}
    for tensor in _tensors(proto.graph):
        source = sources.get(tensor.name, tensor)
        outside = uses_external_data(source)
        is_large = tensor.name in large and tensor.name not in weights
        if not outside and not is_large:
            continue
        if outside and folder is None:
            raise ModelError(
                f"{name}: tensor {source.name!r} is kept in another file. Give the model's path, or load it"
                " with onnx.load(path)."
            )
        try:
            raw = external_bytes(source, folder) if outside and folder is not None else _raw(source)
            if digest is not None and (outside or values is not None):
                digest.update(source.name.encode() + b"\0")
                digest.update(raw)
            if is_large:
                dtype = helper.tensor_dtype_to_np_dtype(source.data_type)
                weights[source.name] = allocate(tuple(source.dims), dtype, in_file=True)
                weights[source.name][...] = np.frombuffer(raw, dtype).reshape(source.dims)
                let_go(weights[source.name])
            else:
                tensor.raw_data = bytes(raw)
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
        except OSError as error:
            raise ModelError(f"{name}: tensor {source.name!r}: {error.strerror or error}.") from error
        except (KeyError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{name}: tensor {source.name!r}: {first_line(error)}") from error
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    if weights:
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    return weights


def _raw(tensor: onnx.TensorProto) -> bytes:
    """The bytes of a tensor whose data is in the proto."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    raw: bytes = numpy_helper.to_array(tensor).tobytes()
    return raw


def _densify(graph: onnx.GraphProto, where: str) -> None:
    """Write sparse initializers and constants as dense ones."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(numpy_helper.from_array(_dense(sparse, where), sparse.values.name))
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                value = numpy_helper.from_array(_dense(attribute.sparse_tensor, where))
                attribute.CopyFrom(helper.make_attribute("value", value))
        for inner in subgraphs(node):
            _densify(inner, where)


def _dense(sparse: onnx.SparseTensorProto, where: str) -> Array:
    """Make a sparse tensor dense. Each index is a position in row-major order, or a row of coordinates."""
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: sparse tensor {sparse.values.name!r}: {error}.") from error


def _check_tensors(proto: onnx.ModelProto, where: str) -> None:
    """Check that every initializer is complete. onnxruntime would fail too, but without naming the
    tensor."""
    for tensor in proto.graph.initializer:
        try:
            numpy_helper.to_array(tensor)
        except KeyError as error:
            raise ModelError(f"{where}: tensor {tensor.name!r} has the unknown dtype {error}.") from error
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{where}: tensor {tensor.name!r} is not the {list(tensor.dims)} it should be: {error}."
            ) from error


def _check(proto: onnx.ModelProto, name: str, weights: Mapping[str, Array]) -> None:
    """Run ONNX's checker on a model."""
    checked = proto
    if weights:
        checked = onnx.ModelProto()
        checked.CopyFrom(proto)
        hide(checked, weights)
    try:
        check(checked)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{name} is not a valid ONNX model: {first_line(error)}") from error


def _unique_outputs(proto: onnx.ModelProto) -> None:
    """Remove duplicates from the list of outputs: an output listed twice has one name and is one output."""
    unique = list({value.name: value for value in proto.graph.output}.values())
    if len(unique) < len(proto.graph.output):
        del proto.graph.output[:]
        proto.graph.output.extend(unique)


def check_operators(proto: onnx.ModelProto) -> None:
    """Raise UnsupportedOperatorError, with all operators that have no implementation, if there are any."""
    missing = frontend.missing(proto)
    if not missing:
        return
    lines = "; ".join(f"{op} at {', '.join(nodes)}" for op, nodes in sorted(missing.items()))
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    hints = []
    if any(op.startswith("com.microsoft") for op in missing):
        hints.append(
            "Operators of com.microsoft are written by onnxruntime's optimizer and quantizer: compile the"
            " model as it was before."
        )
    if any(op.endswith("ZipMap") for op in missing):
        hints.append("skl2onnx leaves ZipMap out with options={'zipmap': False}.")
    if any(op.startswith(_RANDOM) for op in missing):
        hints.append(
            "A compiled graph gives equal results for equal inputs: feed random numbers as an input."
        )
    remedy = " ".join(hints) or "Export the model without them."
    raise UnsupportedOperatorError(f"no implementation (opset {opset}) for: {lines}. {remedy}")
