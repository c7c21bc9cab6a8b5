"""Sizes that are numbers, names, or arithmetic over names: what a shape is made of.

A *dimension* is a name with bounds (:class:`Dim`). A *size* is an ``int``, or an :class:`Expression` over
dimensions. Shapes of today's graphs are closed: all of their sizes are numbers.

As JSON, a number is a number, a dimension is its name, and an operation is a list of the operator and its
two operands: ``["*", 2, "seq"]``. A host in any language evaluates that in a few lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Operator = Literal["+", "-", "*", "//", "min", "max"]
_DEEPEST = 64  # operations within operations that are read from a file


@dataclass(frozen=True)
class Dim:
    """A dimension whose value is known when a graph runs: its name, and the least and the most that it may
    be, both included."""

    name: str
    least: int
    most: int

    def __post_init__(self) -> None:
        if not self.name or not 0 <= self.least <= self.most:
            raise ValueError(f"a dimension {self.name!r} from {self.least} to {self.most}")

    def __str__(self) -> str:
        return f"{self.name}={self.least}..{self.most}"


@dataclass(frozen=True)
class Expression:
    """A size that depends on dimensions: a name alone (``operator`` is None), or an operation on two sizes.

    Arithmetic on it gives expressions: ``2 * Expression.of("seq") + 1``. Numbers give numbers.
    """

    operator: Operator | None
    operands: tuple[Any, ...]

    @staticmethod
    def of(name: str) -> Expression:
        """The dimension of that name."""
        return Expression(None, (name,))

    def __add__(self, other: Size) -> Size:
        return operation("+", self, other)

    def __radd__(self, other: Size) -> Size:
        return operation("+", other, self)

    def __sub__(self, other: Size) -> Size:
        return operation("-", self, other)

    def __rsub__(self, other: Size) -> Size:
        return operation("-", other, self)

    def __mul__(self, other: Size) -> Size:
        return operation("*", self, other)

    def __rmul__(self, other: Size) -> Size:
        return operation("*", other, self)

    def __floordiv__(self, other: Size) -> Size:
        return operation("//", self, other)

    def __str__(self) -> str:
        if self.operator is None:
            return str(self.operands[0])
        left, right = (
            f"({side})" if isinstance(side, Expression) and side.operator is not None else str(side)
            for side in self.operands
        )
        return (
            f"{self.operator}({left}, {right})"
            if self.operator.isalpha()
            else f"{left}{self.operator}{right}"
        )


Size: TypeAlias = int | Expression
Shape: TypeAlias = tuple[Size, ...]


def operation(operator: Operator, left: Size, right: Size) -> Size:
    """``left operator right``: a number where both are, the other operand beside a neutral element.

    Raises
    ------
    ZeroDivisionError
        A division by the number 0.
    """
    if operator == "//" and right == 0:
        raise ZeroDivisionError("a size is divided by 0")
    if isinstance(left, int) and isinstance(right, int):
        return _apply(operator, left, right)
    if right == (0 if operator in "+-" else 1) and operator not in ("min", "max"):
        return left
    if left == {"+": 0, "*": 1}.get(operator):
        return right
    if operator in ("min", "max") and left == right:
        return left
    return Expression(operator, (left, right))


def _apply(operator: Operator, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if operator == "//":
        return left // right
    return min(left, right) if operator == "min" else max(left, right)


def names(size: Size) -> frozenset[str]:
    """The dimensions that a size depends on."""
    if isinstance(size, int):
        return frozenset()
    if size.operator is None:
        return frozenset(size.operands)
    return names(size.operands[0]) | names(size.operands[1])


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The number that a size is under ``values`` of its dimensions.

    Raises
    ------
    KeyError
        A dimension has no value.
    """
    if isinstance(size, int):
        return size
    if size.operator is None:
        return values[size.operands[0]]
    left, right = (evaluate(side, values) for side in size.operands)
    return _apply(size.operator, left, right)


def bounds(size: Size, dims: Mapping[str, Dim]) -> tuple[int, int]:
    """The least and the most that a size can be (interval arithmetic: the true range lies within).

    Raises
    ------
    KeyError
        A dimension is not among ``dims``.
    ZeroDivisionError
        A divisor may be 0.
    """
    if isinstance(size, int):
        return size, size
    if size.operator is None:
        dim = dims[size.operands[0]]
        return dim.least, dim.most
    left, right = (bounds(side, dims) for side in size.operands)
    if size.operator == "//" and right[0] <= 0 <= right[1]:
        raise ZeroDivisionError(f"{size} may be divided by 0")
    corners = [_apply(size.operator, a, b) for a in left for b in right]
    return min(corners), max(corners)


def is_closed(shape: Sequence[Size]) -> bool:
    """Whether all sizes of a shape are numbers."""
    return all(isinstance(size, int) for size in shape)


def to_json(size: Size) -> Any:
    """A size as JSON holds it."""
    if isinstance(size, int):
        return size
    if size.operator is None:
        return size.operands[0]
    return [size.operator, *map(to_json, size.operands)]


def from_json(data: Any, depth: int = 0) -> Size:
    """The size that JSON holds.

    Raises
    ------
    TypeError, ValueError
        It holds something else.
    """
    if type(data) is int:
        return data
    if isinstance(data, str) and data:
        return Expression.of(data)
    if depth < _DEEPEST and isinstance(data, list) and len(data) == 3:
        operator = data[0]
        if operator in ("+", "-", "*", "//", "min", "max"):
            left, right = (from_json(side, depth + 1) for side in data[1:])
            try:
                return operation(operator, left, right)
            except ZeroDivisionError as error:
                raise ValueError(str(error)) from error
    raise TypeError(f"a size is {data!r}")
