"""The values on the edges of an ONNX graph during import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax, tirx

from wasmgraph.compiler.constants import constant
from wasmgraph.compiler.sizes import numbers
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
    low: int
    high: int

    @property
    def limit(self) -> int:
        """The largest code of an index in range."""
        return 2 * self.high + 1

    @property
    def accepts(self) -> str:
        """The range in words."""
        return f"it must be from {self.low} to {self.high}"

    @property
    def accepts_any(self) -> bool:
        """Whether there is any index in range."""
        return self.low <= self.high

    def code(self, index: Any) -> Any:
        """The code of an int64 expression."""
        sign = index >> tirx.const(63, "int64")
        distance = tirx.Min(index ^ sign, tirx.const(1 << 60, "int64"))
        moved = distance + (sign & tirx.const(self.high + self.low + 1, "int64"))
        return moved * tirx.const(2, "int64") - sign


# Dtypes of tensors at the border of a graph. Inside, float16 is float32 (see Walk.enter).
DTYPES = (
    *("float32", "float64", "float16", "bool"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
)


def is_known(value: Value) -> bool:
    """Whether a value, or every item of a sequence, is known at compile time; an absent value counts as
    known."""
    if isinstance(value, list):
        return all(map(is_known, value))
    return value is None or isinstance(value, np.ndarray)


def shape_of(value: Value) -> tuple[int, ...]:
    """The static shape of a tensor."""
    if isinstance(value, np.ndarray):
        return tuple(value.shape)
    return static_shape(value.ty)  # type: ignore[union-attr]


def dtype_of(value: Value) -> str:
    """The dtype of a tensor, by its numpy name."""
    return str(value.dtype if isinstance(value, np.ndarray) else value.ty.dtype)  # type: ignore[union-attr]


def static_shape(ty: tvm.ir.Type) -> tuple[int, ...]:
    """The shape of a tensor's Relax type.

    Raises
    ------
    ModelError
        ``ty`` is not a tensor type, or its shape is not static, which means that it depends on data.
    """
    if (
        isinstance(ty, relax.TensorType)
        and isinstance(ty.shape, relax.ShapeExpr)
        and all(isinstance(d, tvm.tirx.IntImm) for d in ty.shape.values)
    ):
        return numbers(ty.shape.values)
    raise ModelError(f"a tensor's shape depends on data ({ty}), which a compiled graph cannot have")


def expression(value: Value) -> relax.Expr:
    """Return a tensor as a Relax expression; a known tensor becomes a constant of its own dtype."""
    if not isinstance(value, np.ndarray):
        return value
    return constant(value)


def scalar(value: Value, default: Any = None) -> Any:
    """A known tensor of one element as a Python number; ``default`` if the value is absent."""
    if value is None:
        return default
    return required(value).reshape(-1)[0].item()


def integers(value: Value) -> list[int]:
    """A known tensor as a flat list of integers."""
    return [int(v) for v in required(value).reshape(-1)]


def required(value: Value) -> Array:
    """Return a tensor that must be known at compile time, because shapes depend on it."""
    if isinstance(value, np.ndarray):
        return value
    raise ComputedError(value)
