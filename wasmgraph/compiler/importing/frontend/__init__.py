"""Stage 2, second half: converts a bound ONNX model to a Relax module.

``graph.py`` walks the graph; ``converters/`` has one file for each family of operators that TVM's
frontend lacks or does not convert as ONNX defines them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import tvm
from onnx import helper
from tvm import relax

from wasmgraph.compiler.importing.frontend import converters, half  # noqa: F401  (importing converters registers them)
from wasmgraph.compiler.importing.frontend.computed import Computed, FurtherDimsError, declared_shapes
from wasmgraph.compiler.importing.frontend.graph import Walk
from wasmgraph.compiler.importing.frontend.registry import missing
from wasmgraph.compiler.importing.frontend.schemas import known
from wasmgraph.compiler.importing.frontend.values import (
    DTYPES,
    IndexCheck,
    Sizes,
    Value,
    dtype_of,
    expression,
    shape_of,
)
from wasmgraph.compiler.sizes import variable
from wasmgraph.compiler.tvm_private import end_blocks
from wasmgraph.dims import Dim, Shape, bounded, parse
from wasmgraph.errors import ModelError, WasmgraphError
from wasmgraph.tensors import Array, TensorSpec

Converted = tuple[
    tvm.IRModule,
    tuple[TensorSpec, ...],
    tuple[TensorSpec, ...],
    tuple[str, ...],
    tuple[IndexCheck, ...],
    tuple[str, ...],
    tuple[Dim, ...],
]


def convert(
    proto: onnx.ModelProto,
    name: str,
    weights: Mapping[str, Array] | None = None,
    dims: Mapping[str, Dim] | None = None,
    asked: Mapping[str, Dim] | None = None,
) -> Converted:
    """Convert a model whose inputs' shapes are bound: numbers, or expressions over ``dims``. ``name`` is
    for error messages; ``weights`` are tensors that are stored outside ``proto``; ``asked`` are bounds of
    dimensions that the graph computes.

    Returns
    -------
    The module, the specs of its inputs and outputs, the names of outputs that are constants, and the
    checks of indices, for each of which ``main`` returns a code (int64 ``[1]``) after its outputs, the
    names of dimensions that the graph computes, whose values ``main`` returns after these, and all
    dimensions.

    Raises
    ------
    UnsupportedOperatorError
        The model uses an operator, or a variant of it, that has no implementation.
    ModelError
        The model is inconsistent, its shapes depend on data, or an input or output is not a tensor.
    """
    asked = asked or {}
    apart: list[str] = []  # names of the dimensions that the walk finds the graph to compute
    while True:
        opened = dict(dims or {})
        try:
            with bounded(opened):
                found = _converted(proto, name, weights or {}, opened, asked, apart)
            break
        except FurtherDimsError as error:
            apart += error.names
    if unused := [dim for dim in asked if dim not in opened]:
        raise ModelError(
            f"{name}: --dim bounds {unused[0]!r}, which the graph does not compute; it computes"
            f" {', '.join(found[5]) or 'none'}."
        )
    return found


def _converted(
    proto: onnx.ModelProto,
    name: str,
    weights: Mapping[str, Array],
    opened: dict[str, Dim],
    asked: Mapping[str, Dim],
    apart: list[str],
) -> Converted:
    """What one walk finds.

    Raises
    ------
    FurtherDimsError
        The graph computes dimensions that are not set ``apart``: ``main`` must begin with their names.
    """
    inputs, declared = check_border(proto, name, opened)
    builder = relax.BlockBuilder()
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
    functions = {(f.domain, f.name): f for f in proto.functions}
    walk = Walk(builder, opsets, functions, Computed(opened, asked, apart, declared_shapes(proto.graph)))
    params = [relax.Var(f"input{i}", relax.TensorType(s.shape, s.dtype)) for i, s in enumerate(inputs)]
    if apart:
        variables = [variable(name) for name in walk.computed.reserved]
        params.append(relax.Var("computed", relax.ShapeType(variables)))
    try:
        with builder.function("main", params=params):
            with builder.dataflow():
                scope = {name: known(array) for name, array in weights.items()}
                scope |= {spec.name: walk.enter(var) for spec, var in zip(inputs, params, strict=False)}
                found = walk.graph(proto.graph, scope, opsets)
                results = [_leave(v, o, walk) for v, o in zip(found, declared.items(), strict=True)]
                said = (*(found for _, found in walk.checks), *walk.computed.counts.values())
                fields = [expression(value) for value in (*results, *said)]
                value = builder.emit_output(fields[0] if len(fields) == 1 else relax.Tuple(fields))
            builder.emit_func_output(value)
    except WasmgraphError as error:
        error.args = (f"{name}: {error}.",)
        raise
    finally:
        end_blocks(builder)
    outputs = tuple(TensorSpec(o, shape_of(v), dtype_of(v)) for o, v in zip(declared, results, strict=True))
    values = zip(declared, results, strict=True)
    constant = tuple(o for o, v in values if isinstance(v, np.ndarray) and not isinstance(v, Sizes))
    checks, counts = tuple(check for check, _ in walk.checks), tuple(walk.computed.counts)
    if walk.computed.further:
        raise FurtherDimsError(walk.computed.further)
    return builder.get(), tuple(inputs), outputs, constant, checks, counts, tuple(opened.values())


def check_border(
    proto: onnx.ModelProto, name: str, dims: Collection[str] = ()
) -> tuple[list[TensorSpec], dict[str, str]]:
    """Return the specs of the inputs that are fed, and the outputs' dtypes; shapes may depend on ``dims``.

    Raises
    ------
    ModelError
        An input or output is not a tensor, or has a dtype that inputs and outputs cannot have.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [
        TensorSpec(v.name, _shape(v, dims), _dtype(v, name))
        for v in proto.graph.input
        if v.name not in constants
    ]
    return inputs, {v.name: _dtype(v, name) for v in proto.graph.output}


def _shape(value: onnx.ValueInfoProto, dims: Collection[str]) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    return tuple(parse(d.dim_param, dims) if d.dim_param else int(d.dim_value) for d in sizes)


def _leave(value: Value, declared: tuple[str, str], walk: Walk) -> Value:
    """Convert an output to the dtype that the model declares: float16 is computed in float32."""
    name, dtype = declared
    if value is None or isinstance(value, list):
        raise ModelError(f"its output {name!r} is a sequence or absent; outputs must be tensors")
    if dtype == "float16":
        if isinstance(value, np.ndarray):
            return value.astype(dtype)
        return walk.te(half.encode, value, name="to_half")
    return value


def _dtype(value: onnx.ValueInfoProto, name: str) -> str:
    kind = value.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        what = kind.removesuffix("_type").replace("_", " ")
        raise ModelError(f"{name}: {value.name!r} is a {what}; inputs and outputs must be tensors.")
    tensor = value.type.tensor_type
    known = tensor.elem_type in helper.get_all_tensor_dtypes() and tensor.elem_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if known else "undefined"
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    if dtype not in DTYPES:
        raise ModelError(
            f"{name}: {value.name!r} is a tensor of {kind}; inputs and outputs can be of"
            f" {', '.join(DTYPES)}."
        )
    return dtype


__all__ = ["check_border", "convert", "missing"]
