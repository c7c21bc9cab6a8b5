"""Operators on known sizes of which some depend on dimensions: the arithmetic by which exporters compute
shapes. Whatever is not here is computed when the graph runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from onnx import helper

from wasmgraph.compiler.importing.frontend.schemas import domain_of
from wasmgraph.compiler.importing.frontend.values import Sizes, Value, integers, is_known, size_array
from wasmgraph.dims import Size, operation
from wasmgraph.errors import OpenSizeError
from wasmgraph.tensors import Array

_INTEGERS = (
    *(onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.INT16),
    *(onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
)
_Attributes = Mapping[str, Any]


def fold_sizes(node: onnx.NodeProto, inputs: Sequence[Value], opset: int) -> list[Value] | None:
    """The outputs of a node whose inputs are known and hold sizes; None if it must be computed when the
    graph runs."""
    fold = _FOLDS.get(node.op_type)
    if fold is None or domain_of(node) or not all(map(is_known, inputs)):
        return None
    if not all(v is None or (isinstance(v, np.ndarray) and v.dtype.kind in "Oib") for v in inputs):
        return None
    try:
        found = fold({a.name: helper.get_attribute_value(a) for a in node.attribute}, *inputs)
    except OpenSizeError:
        return None  # what bounds do not decide is decided when the graph runs
    if found is None:
        return None
    results = found if isinstance(found, list) else [found]
    return [_settled(result) for result in results]


def _settled(result: Any) -> Array:
    array = np.asarray(result)
    return array if array.dtype.kind == "b" else size_array(array)


def _elementwise(function: Callable[[Any, Any], Any], dtype: type = object) -> Callable[..., Any]:
    def fold(_: _Attributes, *terms: Array) -> Array:
        one = np.frompyfunc(function, 2, 1)
        return np.asarray(reduce(one, [np.asarray(term, object) for term in terms]), dtype)

    return fold


def _quotient(left: Size, right: Size) -> Size:
    """ONNX's integer division truncates, which is the floor of what is not negative."""
    if left < 0 or right <= 0:
        raise OpenSizeError(f"{left} divided by {right}")
    return operation("//", left, right)


def _modulo(attributes: _Attributes, left: Array, right: Array) -> Array:
    """ONNX's remainder has the divisor's sign, or that of what is divided with ``fmod``."""

    def one(a: Size, b: Size) -> Size:
        if b <= 0 or (attributes.get("fmod", 0) and a < 0):
            raise OpenSizeError(f"the remainder of {a} and {b}")
        return a - operation("//", a, b) * b

    return np.asarray(_elementwise(one)(attributes, left, right))


def _axes(attributes: _Attributes, given: Array | None, rank: int) -> list[int]:
    axes = integers(given) if given is not None else list(attributes.get("axes", range(rank)))
    return [axis % rank for axis in axes]


def _cast(attributes: _Attributes, data: Array) -> Array | None:
    to = attributes["to"]
    if to == onnx.TensorProto.BOOL:
        return np.asarray(np.frompyfunc(lambda size: size != 0, 1, 1)(data), bool)
    return data if to in _INTEGERS else None


def _concat(attributes: _Attributes, *parts: Array) -> Array:
    return np.concatenate([np.asarray(part, object) for part in parts], attributes["axis"])


def _gather(attributes: _Attributes, data: Array, indices: Array) -> Array | None:
    if isinstance(indices, Sizes):
        return None
    return np.asarray(np.take(data, indices.astype(np.int64), attributes.get("axis", 0)), object)


def _slice(
    attributes: _Attributes,
    data: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    begin = integers(starts) if starts is not None else list(attributes["starts"])
    end = integers(ends) if ends is not None else list(attributes["ends"])
    along = integers(axes) if axes is not None else list(attributes.get("axes", range(len(begin))))
    by = integers(steps) if steps is not None else [1] * len(begin)
    for axis, *bound in zip(along, begin, end, by, strict=True):
        places = range(*slice(*bound).indices(data.shape[axis]))
        data = np.take(data, np.array(places, np.int64), axis)
    return data


def _unsqueeze(attributes: _Attributes, data: Array, axes: Array | None = None) -> Array:
    chosen = integers(axes) if axes is not None else list(attributes["axes"])
    return np.expand_dims(np.asarray(data, object), tuple(chosen))


def _squeeze(attributes: _Attributes, data: Array, axes: Array | None = None) -> Array:
    chosen = None if axes is None and "axes" not in attributes else _axes(attributes, axes, data.ndim)
    return np.squeeze(data, None if chosen is None else tuple(chosen))


def _reshape(_: _Attributes, data: Array, shape: Array) -> Array:
    wanted = integers(shape)
    return data.reshape([data.shape[n] if size == 0 else size for n, size in enumerate(wanted)])


def _reducing(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def fold(attributes: _Attributes, data: Array, axes: Array | None = None) -> Array:
        along = tuple(_axes(attributes, axes, data.ndim))
        one = np.frompyfunc(function, 2, 1)
        found = data.view(np.ndarray)
        for axis in sorted(along, reverse=True):
            found = one.reduce(found, axis=axis, keepdims=True)
        return np.asarray(found if attributes.get("keepdims", 1) else np.squeeze(found, along), object)

    return fold


def _where(_: _Attributes, condition: Array, yes: Array, no: Array) -> Array | None:
    if isinstance(condition, Sizes):
        return None
    return np.where(condition.astype(bool), np.asarray(yes, object), np.asarray(no, object))


def _expand(_: _Attributes, data: Array, shape: Array) -> Array:
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(integers(shape))))


def _range(_: _Attributes, start: Array, limit: Array, delta: Array) -> Array | None:
    """A range of a known length, such as ``n`` to ``n + 3``."""
    begin, end, step = (np.asarray(v, object).reshape(-1)[0] for v in (start, limit, delta))
    count = end - begin
    if not isinstance(count, int) or not isinstance(step, int):
        return None
    return np.array([begin + step * n for n in range(max(0, -(-count // step)))], object)


def _split(attributes: _Attributes, data: Array, sizes: Array | None = None) -> list[Array] | None:
    axis = attributes.get("axis", 0)
    lengths = integers(sizes) if sizes is not None else list(attributes.get("split", []))
    if not lengths:
        return None
    return np.split(data, np.cumsum(lengths)[:-1], axis)


_FOLDS: Mapping[str, Callable[..., Any]] = {
    "Abs": lambda _, data: np.frompyfunc(lambda size: size if size >= 0 else -size, 1, 1)(data),
    "Add": _elementwise(lambda a, b: a + b),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _elementwise(_quotient),
    "Equal": _elementwise(lambda a, b: a == b, bool),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _elementwise(lambda a, b: a > b, bool),
    "GreaterOrEqual": _elementwise(lambda a, b: a >= b, bool),
    "Identity": lambda _, data: data,
    "Less": _elementwise(lambda a, b: a < b, bool),
    "LessOrEqual": _elementwise(lambda a, b: a <= b, bool),
    "Max": _elementwise(lambda a, b: operation("max", a, b)),
    "Min": _elementwise(lambda a, b: operation("min", a, b)),
    "Mod": _modulo,
    "Mul": _elementwise(lambda a, b: a * b),
    "Neg": lambda _, data: np.frompyfunc(lambda size: -size, 1, 1)(data),
    "Range": _range,
    "ReduceMax": _reducing(lambda a, b: operation("max", a, b)),
    "ReduceMin": _reducing(lambda a, b: operation("min", a, b)),
    "ReduceProd": _reducing(lambda a, b: a * b),
    "ReduceSum": _reducing(lambda a, b: a + b),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b),
    "Transpose": lambda attributes, data: np.transpose(data, attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
