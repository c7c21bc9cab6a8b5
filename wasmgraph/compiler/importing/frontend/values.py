"""The values on the edges of an ONNX graph during import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax, te, tirx

from wasmgraph.compiler import sizes
from wasmgraph.compiler.constants import constant
from wasmgraph.dims import Expression, Shape, Size, is_closed
from wasmgraph.errors import ModelError
from wasmgraph.tensors import Array

# A tensor that is known at compile time (numpy), one that is computed when the graph runs (Relax), a
# sequence, or None for an input that is not given.
Value: TypeAlias = "Array | relax.Expr | list[Value] | None"


class ComputedError(ModelError):
    """A value that must be known at compile time is computed when the graph runs."""

    def __init__(self, value: Value) -> None:
        super().__init__("an input that decides shapes is computed from data; it must be a constant")
        self.value = value


@dataclass(frozen=True)
class IndexCheck:
    """The range of a node's indices: ``low`` to ``high``, both included. ``low`` is ``-high - 1`` or 0.

    An index has a *code* that grows with its distance from the range. For an index >= 0 the code is twice
    the index. For a negative index it is ``2 * (high + low - index) + 1``. The code is above :attr:`limit`
    if the index is out of range. The distance ``~index`` or ``index`` is cut off at 2**60.
    """

    node: str
    operator: str
    low: Size
    high: Size

    @property
    def limit(self) -> Size:
        """The largest code of an index in range."""
        return 2 * self.high + 1

    @property
    def accepts(self) -> str:
        """The range in words."""
        return f"it must be from {self.low} to {self.high}"

    @property
    def accepts_any(self) -> bool:
        """Whether there is any index in range, or may be."""
        return not isinstance(self.high, int) or bool(self.low <= self.high)

    def code(self, index: Any) -> Any:
        """The code of an int64 expression."""
        sign = index >> tirx.const(63, "int64")
        distance = tirx.Min(index ^ sign, tirx.const(1 << 60, "int64"))
        moved = distance + (sign & sizes.number(self.high + self.low + 1, "int64"))
        return moved * tirx.const(2, "int64") - sign


# Dtypes of tensors at the border of a graph. Inside, float16 is float32 (see Walk.enter).
DTYPES = (
    *("float32", "float64", "float16", "bool"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
)


class Sizes(np.ndarray):
    """A known tensor of integers, of which some depend on dimensions: an array of sizes (objects)."""


def size_array(values: Any) -> Array:
    """Sizes as a known tensor: int64, or :class:`Sizes` if one depends on dimensions."""
    array = np.asarray(values, object)
    if is_closed(list(array.reshape(-1))):
        return array.astype(np.int64)
    return array.view(Sizes)


def is_known(value: Value) -> bool:
    """Whether a value, or every item of a sequence, is known at compile time; an absent value counts as
    known."""
    if isinstance(value, list):
        return all(map(is_known, value))
    return value is None or isinstance(value, np.ndarray)


def shape_of(value: Value) -> Shape:
    """The shape of a tensor."""
    if isinstance(value, np.ndarray):
        return tuple(value.shape)
    return typed_shape(value.ty)  # type: ignore[union-attr]


def dtype_of(value: Value) -> str:
    """The dtype of a tensor, by its numpy name."""
    if isinstance(value, Sizes):
        return "int64"
    return str(value.dtype if isinstance(value, np.ndarray) else value.ty.dtype)  # type: ignore[union-attr]


def typed_shape(ty: tvm.ir.Type) -> Shape:
    """The shape of a tensor's Relax type.

    Raises
    ------
    ModelError
        ``ty`` is not a tensor type, or its shape depends on data.
    """
    if isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr):
        try:
            return sizes.shape_of(ty)
        except ValueError:
            pass
    raise ModelError(f"a tensor's shape depends on data ({ty}), which a compiled graph cannot have")


def has_no_elements(shape: Iterable[Size]) -> bool:
    """Whether a size is 0 for all values of its dimensions."""
    return any(isinstance(size, int) and size == 0 for size in shape)


def expression(value: Value) -> relax.Expr:
    """Return a tensor as a Relax expression; a known tensor becomes a constant of its own dtype, sizes that
    depend on dimensions are computed when the graph runs."""
    if isinstance(value, Sizes):
        return _computed_sizes(value)
    if not isinstance(value, np.ndarray):
        return value
    return constant(value)


def _computed_sizes(value: Sizes) -> relax.Expr:
    builder = relax.BlockBuilder.current()
    flat: Sequence[Size] = list(value.reshape(-1))

    def compute(taken: list[tirx.PrimExpr]) -> te.Tensor:
        return te.compute((len(taken),), lambda i: sizes.chosen(i, taken), name="sizes")

    shape = relax.ShapeExpr([sizes.extent(size) for size in flat])
    found = builder.emit(sizes.call_te(builder, compute, shape, primfunc_name_hint="sizes"))
    return builder.emit(relax.op.reshape(found, value.shape))


def scalar(value: Value, default: Any = None) -> Any:
    """A known tensor of one element as a Python number; ``default`` if the value is absent.

    Raises
    ------
    OpenSizeError
        It depends on a dimension.
    """
    if value is None:
        return default
    found = required(value).reshape(-1)[0]
    return int(found) if isinstance(found, Expression) else found.item()


def integers(value: Value) -> list[int]:
    """A known tensor as a flat list of integers.

    Raises
    ------
    OpenSizeError
        One depends on a dimension.
    """
    return [int(v) for v in required(value).reshape(-1)]


def size_list(value: Value) -> list[Size]:
    """A known tensor as a flat list of sizes."""
    return [v if isinstance(v, Expression) else int(v) for v in required(value).reshape(-1)]


def required(value: Value) -> Array:
    """Return a tensor that must be known at compile time, because shapes depend on it."""
    if isinstance(value, np.ndarray):
        return value
    raise ComputedError(value)
