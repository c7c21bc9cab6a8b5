"""Binding: gives every dimension of every input a value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from wasmgraph.artifact import DESCRIPTION_KEY
from wasmgraph.errors import ModelError, UnboundDimensionError, UsageError

Shapes = Mapping[str, Sequence[int]]


def check_shapes(shapes: Any) -> dict[str, tuple[int, ...]]:
    """Validate a caller's shapes and return them as tuples of integers.

    Raises
    ------
    UsageError
        ``shapes`` is not a mapping from names to sequences of non-negative integers.
    """
    if shapes is None:
        return {}
    if not isinstance(shapes, Mapping):
        raise UsageError(
            f"shapes are a mapping of input names to shapes, such as {{'x': (1, 3)}}; this is a"
            f" {type(shapes).__name__}."
        )
    return {name: _shape(name, shape) for name, shape in shapes.items()}


def _shape(name: Any, shape: Any) -> tuple[int, ...]:
    sizes = shape.tolist() if isinstance(shape, np.ndarray) else shape
    listed = isinstance(sizes, Iterable) and not isinstance(sizes, (str, bytes, Mapping))
    sizes = list(sizes) if listed else []
    whole = all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in sizes)
    if not isinstance(name, str) or not listed or not whole or any(size < 0 for size in sizes):
        raise UsageError(
            f"shapes[{name!r}] is {shape!r}; expected the sizes of an input as whole numbers that are not"
            " negative, such as (1, 3, 224, 224)."
        )
    return tuple(int(size) for size in sizes)


def fed_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that the user feeds: all inputs that are not also initializers."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in constants]


def description_of(proto: onnx.ModelProto, name: str) -> Mapping[str, Any]:
    """The description for wasmgraph in a model's metadata."""
    raw = next((p.value for p in proto.metadata_props if p.key == DESCRIPTION_KEY), "{}")
    try:
        description = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{name}: its {DESCRIPTION_KEY!r} metadata is not JSON: {error}.") from error
    if not isinstance(description, dict):
        raise ModelError(f"{name}: its {DESCRIPTION_KEY!r} metadata is not a JSON object.")
    return description


def bind_shapes(proto: onnx.ModelProto, shapes: Shapes) -> None:
    """Write ``shapes`` into the inputs of ``proto``. Unbound inputs that ``shapes`` does not name get the
    shape that the model's description proposes, if any. Every dimension must then have a value. If one
    input's shape binds a named dimension, the name is bound wherever it occurs.

    A declared size of 0 is valid: such a tensor is empty, like a cache before the first step. Some
    exporters write 0 for "unknown", so ``shapes`` may bind it to another size. A negative declared size
    counts as unknown.

    A batch of 1 may be bound to a larger batch. The sizes that the model declares for other tensors are
    then inferred anew. If the batch is built into the graph (a Reshape to a fixed size), shape inference
    fails.
    """
    inputs = {value.name: value for value in fed_inputs(proto)}
    proposed = description_of(proto, proto.graph.name or "the model").get("shapes", {})
    for name in shapes:
        if name not in inputs:
            raise ModelError(
                f"--shape binds {name!r}, which is no input; the inputs are {', '.join(inputs)}."
            )
    symbols: dict[str, tuple[int, str]] = {}
    for name, value in inputs.items():
        _note_symbols(value, shapes.get(name, ()), symbols)
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        unranked = not value.type.tensor_type.HasField("shape")
        declared = [_declared(dim, symbols) for dim in dims]
        unbound = [d for d in declared if not isinstance(d, int)]
        if name in shapes or ((unbound or unranked) and name in proposed):
            wanted = list(shapes[name] if name in shapes else proposed[name])
            if declared[:1] == [1] and wanted[:1] > [1]:
                declared[0] = "batch"
                _forget_batch(proto)
            contradicted = len(wanted) != len(declared) or any(
                isinstance(d, int) and d > 0 and d != w for d, w in zip(declared, wanted, strict=True)
            )
            if contradicted and not unranked:
                raise ModelError(f"--shape gives {name!r} the shape {wanted}; the model says {declared}.")
            _write(value, wanted)
        elif unranked:
            raise UnboundDimensionError(
                f"input {name!r} has no shape. Bind it, for example with --shape {name}=1,3,224,224"
                " (shapes={...} in Python)."
            )
        elif unbound:
            example = ",".join(str(d) if isinstance(d, int) else "1" for d in declared)
            raise UnboundDimensionError(
                f"input {name!r} has the shape {declared}, no value for {', '.join(map(str, unbound))}."
                f" Bind it, for example with --shape {name}={example} (shapes={{...}} in Python)."
            )
        else:
            _write(value, declared)


def _declared(dim: onnx.TensorShapeProto.Dimension, symbols: Mapping[str, tuple[int, str]]) -> int | str:
    """A dimension's value if it has one, otherwise its name."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    if dim.dim_param in symbols:
        return symbols[dim.dim_param][0]
    return str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"


def _note_symbols(
    value: onnx.ValueInfoProto, shape: Sequence[int], symbols: dict[str, tuple[int, str]]
) -> None:
    """Note the values that a shape binds names to. A name must have the same value everywhere."""
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
        if dim.dim_param in ("", "?"):  # exporters write "?" where there is no name
            continue
        other, where = symbols.setdefault(dim.dim_param, (int(size), value.name))
        if other != size:
            raise ModelError(
                f"--shape gives dimension {dim.dim_param!r} two values: {other} at {where!r},"
                f" {size} at {value.name!r}."
            )


def _write(value: onnx.ValueInfoProto, sizes: Sequence[int | str]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()  # a scalar has a shape too
    for size in sizes:
        shape.dim.add().dim_value = int(size)


def _forget_batch(proto: onnx.ModelProto) -> None:
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim[:1]:
            dim.Clear()
