"""Binding: gives every dimension of every input a value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from wasmgraph.artifact import DESCRIPTION_KEY
from wasmgraph.compiler.importing.frontend.schemas import all_nodes
from wasmgraph.dims import MOST, Dim, Size, names, parse, replaced
from wasmgraph.errors import ModelError, UnboundDimensionError, UsageError

# By input, its sizes: numbers, or texts that name open dimensions (``"seq"``, ``"past + seq"``).
Shapes = Mapping[str, Sequence[int | str]]
# By name, the bounds of an open dimension, both included, or the one value of a closed one.
Bounds = Mapping[str, int | tuple[int, int]]


def check_dims(dims: Any) -> tuple[dict[str, Dim], dict[str, int]]:
    """Validate a caller's bounds of dimensions; return those that are open, and the values of the others.

    Raises
    ------
    UsageError
        ``dims`` is not a mapping from names to a whole number, or to the least and the most.
    """
    if dims is None:
        return {}, {}
    if not isinstance(dims, Mapping):
        raise UsageError(
            f"dims are a mapping of names to bounds, such as {{'seq': (1, 512)}}; this is a"
            f" {type(dims).__name__}."
        )
    found: dict[str, Dim] = {}
    values: dict[str, int] = {}
    for name, given in dims.items():
        pair = list(given) if isinstance(given, (tuple, list, range)) else [given, given]
        whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in pair)
        if not isinstance(name, str) or not name or not whole or len(pair) != 2 or pair[0] < 0:
            raise UsageError(
                f"dims[{name!r}] is {given!r}; expected the least and the most that it may be, such as"
                " (1, 512), or its one value."
            )
        least, most = map(int, pair)
        if least > most:
            raise UsageError(
                f"dims[{name!r}] is from {least} to {most}: the first must not be above the second."
            )
        if most > MOST:
            raise UsageError(f"dims[{name!r}] may be {most}; the most that a dimension can be is {MOST}.")
        if least == most:
            values[name] = least
        else:
            found[name] = Dim(name, least, most)
    return found, values


def check_shapes(shapes: Any) -> dict[str, tuple[int | str, ...]]:
    """Validate a caller's shapes and return them as tuples.

    Raises
    ------
    UsageError
        ``shapes`` is not a mapping from names to sequences of non-negative integers and texts.
    """
    if shapes is None:
        return {}
    if not isinstance(shapes, Mapping):
        raise UsageError(
            f"shapes are a mapping of input names to shapes, such as {{'x': (1, 3)}}; this is a"
            f" {type(shapes).__name__}."
        )
    return {name: _shape(name, shape) for name, shape in shapes.items()}


def _shape(name: Any, shape: Any) -> tuple[int | str, ...]:
    sizes = shape.tolist() if isinstance(shape, np.ndarray) else shape
    listed = isinstance(sizes, Iterable) and not isinstance(sizes, (str, bytes, Mapping))
    sizes = list(sizes) if listed else []
    whole = all(
        (isinstance(size, str) and size.strip())
        or (isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0)
        for size in sizes
    )
    if not isinstance(name, str) or not listed or not whole:
        raise UsageError(
            f"shapes[{name!r}] is {shape!r}; expected the sizes of an input as whole numbers that are not"
            " negative, such as (1, 3, 224, 224), or as names of dimensions that dims bounds."
        )
    return tuple(size.strip() if isinstance(size, str) else int(size) for size in sizes)


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


def bind_shapes(
    proto: onnx.ModelProto,
    shapes: Shapes,
    dims: Mapping[str, Dim] | None = None,
    values: Mapping[str, int] | None = None,
) -> tuple[dict[str, Dim], dict[str, Dim]]:
    """Write ``shapes`` into the inputs of ``proto``; return the dimensions that stay open, and bounds of
    dimensions that are no input's, but may be computed by the graph. Unbound inputs
    that ``shapes`` does not name get the shape that the model's description proposes, if any. Every
    dimension must then have one of ``values`` or be one of ``dims``, which stay open. If one input's shape
    binds a named dimension, the name is bound wherever it occurs.

    A declared size of 0 is valid: such a tensor is empty, like a cache before the first step. Some
    exporters write 0 for "unknown", so ``shapes`` may bind it to another size. A negative declared size
    counts as unknown.

    A batch of 1 may be bound to a larger batch, or left open. The sizes that the model declares for other
    tensors are then inferred anew. If the batch is built into the graph (a Reshape to a fixed size), shape
    inference fails.
    """
    inputs = {value.name: value for value in fed_inputs(proto)}
    proposed = description_of(proto, proto.graph.name or "the model").get("shapes", {})
    for name in shapes:
        if name not in inputs:
            raise ModelError(
                f"--shape binds {name!r}, which is no input; the inputs are {', '.join(inputs)}."
            )
    naming = _Names(dims or {}, values or {})
    bound = {name: [naming.size(size) for size in shape] for name, shape in shapes.items()}
    for name, value in inputs.items():
        naming.note(value, bound.get(name, ()))
    used: set[str] = set()
    for name, value in inputs.items():
        declared = [naming.declared(dim) for dim in value.type.tensor_type.shape.dim]
        unranked = not value.type.tensor_type.HasField("shape")
        unbound = [d for d in declared if isinstance(d, str)]
        if name in shapes or ((unbound or unranked) and name in proposed):
            wanted: list[Size] = bound[name] if name in shapes else list(map(int, proposed[name]))
            if declared[:1] == [1] and wanted[:1] not in ([0], [1], []):
                declared[0] = "batch"
                _forget_batch(proto)
            contradicted = len(wanted) != len(declared) or any(
                isinstance(d, int) and d > 0 and d != w for d, w in zip(declared, wanted, strict=True)
            )
            if contradicted and not unranked:
                said = _written(wanted), _written(declared)
                raise ModelError(f"--shape gives {name!r} the shape {said[0]}; the model says {said[1]}.")
        elif unranked:
            raise UnboundDimensionError(
                f"input {name!r} has no shape. Bind it, for example with --shape {name}=1,3,224,224"
                " (shapes={...} in Python)."
            )
        elif unbound:
            example = ",".join("1" if isinstance(d, str) else str(d) for d in declared)
            raise UnboundDimensionError(
                f"input {name!r} has the shape {_written(declared)}, no value for {', '.join(unbound)}."
                f" Bind it, for example with --shape {name}={example} (shapes={{...}} in Python), or leave"
                f" it open: --dim {unbound[0]}=1..512 (dims={{...}})."
            )
        else:
            wanted = [size for size in declared if not isinstance(size, str)]
        _write(value, wanted)
        used |= {name for size in wanted for name in names(size)}
    asked = {n: d for n, d in naming.given.items() if n not in used | naming.met}
    unused = [name for name in asked if not may_be_computed(name, proto)]
    if unused:
        there = ", ".join(sorted(naming.met)) or "none"
        raise ModelError(
            f"--dim bounds {unused[0]!r}, which is no dimension of an input; the inputs' are {there}."
            f" Name one in a shape: --shape {next(iter(inputs), 'x')}=1,{unused[0]}."
        )
    return {name: dim for name, dim in naming.dims.items() if name in used}, asked


def may_be_computed(name: str, proto: onnx.ModelProto) -> bool:
    """Whether a name is that of a size of a node's result: see ``frontend/computed.py``."""
    result, found, number = name.rpartition("_count")
    if not found or not (number == "" or number.removeprefix("_").isdecimal()):
        return False
    return any(result in node.output for node in all_nodes(proto.graph))


class _Names:
    """What is known of named dimensions: bounds, values, and the sizes to which shapes bind them."""

    def __init__(self, dims: Mapping[str, Dim], values: Mapping[str, int]) -> None:
        self.dims, self.values = dims, values
        self.met: set[str] = set()  # in the shapes that the model declares
        self._bound: dict[str, tuple[Size, str]] = {}

    @property
    def given(self) -> dict[str, Dim]:
        """The bounds of all of them."""
        return {**self.dims, **{name: Dim(name, value, value) for name, value in self.values.items()}}

    def size(self, written: int | str) -> Size:
        """A size of a caller's shape.

        Raises
        ------
        UnboundDimensionError
            It names a dimension without bounds.
        """
        if isinstance(written, int):
            return written
        found = parse(written, {*self.dims, *self.values})
        for name in names(found):
            self.met.add(name)
            if name not in self.dims and name not in self.values:
                raise UnboundDimensionError(
                    f"a shape names the dimension {name!r}, which has no bounds. Give them: --dim"
                    f" {name}=1..512 (dims={{{name!r}: (1, 512)}} in Python)."
                )
        return self._closed(found)

    def _closed(self, size: Size) -> Size:
        """The size with the dimensions that have a value replaced by it."""
        return replaced(size, self.values)

    def note(self, value: onnx.ValueInfoProto, shape: Sequence[Size]) -> None:
        """Note the sizes that a shape binds names to. A name must have the same one everywhere."""
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            if dim.dim_param in ("", "?"):  # exporters write "?" where there is no name
                continue
            other, where = self._bound.setdefault(dim.dim_param, (size, value.name))
            if other != size:
                raise ModelError(
                    f"--shape gives dimension {dim.dim_param!r} two values: {other} at {where!r},"
                    f" {size} at {value.name!r}."
                )

    def declared(self, dim: onnx.TensorShapeProto.Dimension) -> Size | str:
        """A dimension's size if it is known, otherwise its name."""
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            return int(dim.dim_value)
        if dim.dim_param:
            self.met.add(dim.dim_param)
        if dim.dim_param in self._bound:
            return self._bound[dim.dim_param][0]
        found = parse(dim.dim_param, {*self.dims, *self.values}) if dim.dim_param else None
        if found is not None and names(found) <= {*self.dims, *self.values}:
            return self._closed(found)
        return str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"


def _written(shape: Sequence[Size | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _write(value: onnx.ValueInfoProto, sizes: Sequence[Size]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()  # a scalar has a shape too
    for size in sizes:
        if isinstance(size, int):
            shape.dim.add().dim_value = size
        else:
            shape.dim.add().dim_param = str(size)


def _forget_batch(proto: onnx.ModelProto) -> None:
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim[:1]:
            dim.Clear()
