"""Sizes that are numbers, names, or arithmetic over names: what a shape is made of.

A *dimension* is a name with bounds (:class:`Dim`). A *size* is an ``int``, or an :class:`Expression` over
dimensions. Arithmetic on sizes keeps one form of each: a sum of products, in which what cancels is gone.

As JSON, a number is a number, a dimension is its name, and an operation is a list of the operator and its
two operands: ``["*", 2, "seq"]``. A host in any language evaluates that in a few lines.
"""

from __future__ import annotations

import ast
import operator as python
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import gcd, sqrt
from numbers import Integral
from typing import Any, ClassVar, Literal, TypeAlias

from wasmgraph.errors import OpenSizeError

Operator = Literal["+", "-", "*", "//", "min", "max"]
_OPERATORS = ("+", "-", "*", "//", "min", "max")
MOST = (1 << 31) - 1  # that a dimension can be: a kernel takes it as an int32
_DEEPEST = 64  # operations within operations that are read from a file


@dataclass(frozen=True)
class Dim:
    """A dimension whose value is known when a graph runs: its name, and the least and the most that it may
    be, both included."""

    name: str
    least: int
    most: int

    def __post_init__(self) -> None:
        if type(self.name) is not str or type(self.least) is not int or type(self.most) is not int:
            raise TypeError(f"a dimension {self.name!r} from {self.least!r} to {self.most!r}")
        if not self.name or not 0 <= self.least <= self.most:
            raise ValueError(f"a dimension {self.name!r} from {self.least} to {self.most}")

    def __str__(self) -> str:
        return f"{self.name}={self.least}..{self.most}"


_bound: ContextVar[Mapping[str, Dim] | None] = ContextVar("bound", default=None)


@contextmanager
def bounded(dims: Mapping[str, Dim]) -> Iterator[None]:
    """While sizes are compared in this block, each dimension is known to lie in its bounds. A comparison
    that these do not decide raises :class:`OpenSizeError`."""
    token = _bound.set(dims)
    try:
        yield
    finally:
        _bound.reset(token)


@dataclass(frozen=True, eq=False)
class Expression:
    """A size that depends on dimensions: a name alone (``operator`` is None), or an operation on two sizes.

    Arithmetic on it gives sizes: ``2 * Expression.of("seq") + 1``. Outside :func:`bounded`, two expressions
    are equal if they are written alike. Inside, comparisons hold for all values of the dimensions, or raise
    :class:`OpenSizeError`.
    """

    operator: Operator | None
    operands: tuple[Any, ...]

    # How another library writes a size; arithmetic with what is of that library is that library's.
    foreign: ClassVar[Callable[[Expression], Any] | None] = None

    @staticmethod
    def of(name: str) -> Expression:
        """The dimension of that name."""
        return Expression(None, (name,))

    def __add__(self, other: Any) -> Any:
        return _applied("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return _applied("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return _applied("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return _applied("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return _applied("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return _applied("*", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return _applied("//", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _applied("//", other, self)

    def __mod__(self, other: Any) -> Any:
        return _applied("%", self, other)

    def __rmod__(self, other: Any) -> Any:
        return _applied("%", other, self)

    def __neg__(self) -> Any:
        return 0 - self

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Integral):
            other = int(other)
        if not isinstance(other, int | Expression):
            return NotImplemented
        if _key(self) == _key(other):
            return True
        if _bound.get() is None:
            return False
        least, most = _range(self - other)
        if least > 0 or most < 0:
            return False
        raise OpenSizeError(f"whether {self} is {other} depends on {_listed(self, other)}")

    def __hash__(self) -> int:
        return hash(_key(self))

    def __lt__(self, other: Any) -> Any:
        return _applied("<", self, other)

    def __gt__(self, other: Any) -> Any:
        return _applied("<", other, self)

    def __le__(self, other: Any) -> Any:
        return _applied("<=", self, other)

    def __ge__(self, other: Any) -> Any:
        return _applied("<=", other, self)

    def __bool__(self) -> bool:
        return self != 0

    def __index__(self) -> int:
        raise OpenSizeError(f"the size {self} must be a number here, and depends on {_listed(self)}")

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

# A sum of products, as a mapping from the factors of each product to its coefficient. A factor is the key
# of an expression that is no sum and no product.
_Sum: TypeAlias = dict[tuple[Any, ...], int]


def _key(size: Any) -> Any:
    """A size as tuples, which compare without asking for bounds."""
    if not isinstance(size, Expression):
        return size
    if size.operator is None:
        return size.operands[0]
    return (size.operator, *map(_key, size.operands))


def _of_key(key: Any) -> Size:
    if isinstance(key, int):
        return key
    if isinstance(key, str):
        return Expression.of(key)
    return Expression(key[0], tuple(map(_of_key, key[1:])))


def _listed(*sizes: Size) -> str:
    return " and ".join(sorted(frozenset().union(*map(names, sizes))))


def _terms(size: Size) -> _Sum:
    if isinstance(size, int):
        return {(): size} if size else {}
    if size.operator in ("+", "-", "*"):
        left, right = map(_terms, size.operands)
        if size.operator == "*":
            return _times(left, right)
        return _plus(left, right, 1 if size.operator == "+" else -1)
    return {(_key(size),): 1}


def _plus(left: _Sum, right: _Sum, sign: int = 1) -> _Sum:
    found = dict(left)
    for factors, coefficient in right.items():
        found[factors] = found.get(factors, 0) + sign * coefficient
    return {factors: c for factors, c in found.items() if c}


def _times(left: _Sum, right: _Sum) -> _Sum:
    found: _Sum = {}
    for one, by in left.items():
        found = _plus(
            found, {tuple(sorted((*one, *other), key=repr)): by * c for other, c in right.items()}
        )
    return found


def _size(terms: _Sum) -> Size:
    """The sum as a size: products of more factors first, subtractions last."""
    found: Size | None = None
    ordered = sorted(terms.items(), key=lambda term: (term[1] < 0, -len(term[0]), repr(term[0])))
    for factors, coefficient in ordered:
        by: Size = abs(coefficient) if found is not None else coefficient
        terms_of = [_of_key(key) for key in factors]
        product = terms_of.pop(0) if terms_of and by == 1 else by
        for factor in terms_of:
            product = Expression("*", (product, factor))
        sign: Operator = "+" if coefficient > 0 else "-"
        found = product if found is None else Expression(sign, (found, product))
    return 0 if found is None else found


def _quotient(terms: _Sum, by: _Sum) -> _Sum | None:
    """What times ``by`` gives ``terms``; None if there is none."""
    found: _Sum = {}
    rest = dict(terms)
    lead, coefficient = max(by.items(), key=lambda term: (len(term[0]), repr(term[0])))
    while rest:
        factors, c = max(rest.items(), key=lambda term: (len(term[0]), repr(term[0])))
        left = list(factors)
        for factor in lead:
            if factor not in left:
                return None
            left.remove(factor)
        if c % coefficient:
            return None
        step: _Sum = {tuple(left): c // coefficient}
        found = _plus(found, step)
        rest = _plus(rest, _times(step, by), -1)
        if len(found) > len(terms):
            return None
    return found


def _divided(left: Size, right: Size) -> Size:
    """``left // right``. What divides without a rest is taken out: ``(6 * n + 5) // 3`` is
    ``2 * n + 5 // 3``."""
    terms, by = _terms(left), _terms(right)
    exact = _quotient(terms, by)
    if exact is not None:
        return _size(exact)
    whole: _Sum = {}
    if len(by) == 1:
        for factors, coefficient in terms.items():
            part = _quotient({factors: coefficient}, by)
            whole = _plus(whole, part or {})
    rest = _plus(terms, _times(whole, by), -1)
    if isinstance(right, int) and set(rest) <= {()}:  # a number is left
        return _size(_plus(whole, _terms(rest.get((), 0) // right)))
    if isinstance(right, int):
        common = gcd(right, *rest.values())
        rest, right = {factors: c // common for factors, c in rest.items()}, right // common
    if not isinstance(right, int) or right < 0:
        return operation("+", _size(whole), Expression("//", (_size(rest), right)))
    inner = _inner_quotient(rest)
    if inner is not None:  # (n // 2 + 1) // 16 is (n + 2) // 32
        size, by_too = inner
        joined = operation("+", size, rest.get((), 0) * by_too)
        return operation("+", _size(whole), _divided(joined, right * by_too))
    # -(-n // 4), (n + 3) // 4 and (n - 1) // 4 + 1 round a quotient up: the last is the form that is kept,
    # because TVM finds it too when it looks for the tile of the last of n rows.
    sign = 1
    if all(c < 0 for factors, c in rest.items() if factors):
        sign, rest = -1, _plus(_times(rest, {(): -1}), {(): right - 1})
    extra, number = divmod(rest.pop((), 0), right)
    if number == right - 1:
        extra, number = extra + 1, -1
    quotient = Expression("//", (_size(_plus(rest, {(): number})), right))
    return operation("+", _size(whole), operation("*", sign, operation("+", quotient, extra)))


def _inner_quotient(terms: _Sum) -> tuple[Size, int] | None:
    """Of a sum of one quotient and a number: what is divided, and by which number."""
    factors = [factors for factors in terms if factors]
    if len(factors) != 1 or len(factors[0]) != 1 or terms[factors[0]] != 1:
        return None
    (factor,) = factors[0]
    if not isinstance(factor, tuple) or factor[0] != "//":
        return None
    _, divided, by = factor
    return (_of_key(divided), by) if isinstance(by, int) and by > 0 else None


_PYTHON: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": python.add,
    "-": python.sub,
    "*": python.mul,
    "//": python.floordiv,
    "%": python.mod,
    "<": python.lt,
    "<=": python.le,
}


def _applied(operator: str, left: Any, right: Any) -> Any:
    sides = [int(side) if isinstance(side, Integral) else side for side in (left, right)]
    if all(isinstance(side, int | Expression) for side in sides):
        left, right = sides
        if operator == "<":
            return _less(left, right)
        if operator == "<=":
            return not _less(right, left)
        if operator == "%":
            return operation("-", left, operation("*", operation("//", left, right), right))
        return operation(operator, left, right)  # type: ignore[arg-type]
    if Expression.foreign is None:
        return NotImplemented
    written = [Expression.foreign(side) if isinstance(side, Expression) else side for side in sides]
    return _PYTHON[operator](*written)


def operation(operator: Operator, left: Size, right: Size) -> Size:
    """``left operator right``, in the one form that a size has.

    Raises
    ------
    ZeroDivisionError
        A division by the number 0.
    """
    if isinstance(right, int) and right == 0 and operator == "//":
        raise ZeroDivisionError("a size is divided by 0")
    if isinstance(left, int) and isinstance(right, int):
        return _apply(operator, left, right)
    if operator == "//":
        return _divided(left, right)
    if operator in ("min", "max"):
        return _extreme(operator, left, right)
    return _size(_terms(Expression(operator, (left, right))))


def _extreme(operator: Operator, left: Size, right: Size) -> Size:
    if _key(left) == _key(right):
        return left
    if _bound.get() is not None:
        least, most = _range(operation("-", left, right))
        if least >= 0:
            return left if operator == "max" else right
        if most <= 0:
            return right if operator == "max" else left
    first, second = sorted((left, right), key=lambda side: repr(_key(side)))
    return Expression(operator, (first, second))


def _range(size: Size) -> tuple[int, int]:
    """The bounds of a size in :func:`bounded`; none outside."""
    dims = _bound.get() or {}
    try:
        return bounds(size, dims)
    except (KeyError, ZeroDivisionError):
        return -(1 << 62), 1 << 62


def _less(left: Size, right: Size) -> bool:
    least, most = _range(operation("-", right, left))
    if least > 0:
        return True
    if most <= 0:
        return False
    # Interval arithmetic does not know that min(n, 30) is at most n.
    if isinstance(right, Expression) and right.operator in ("min", "max"):
        return _quantified(right.operator == "min", [(left, side) for side in right.operands], left, right)
    if isinstance(left, Expression) and left.operator in ("min", "max"):
        return _quantified(left.operator == "max", [(side, right) for side in left.operands], left, right)
    raise OpenSizeError(f"whether {left} is less than {right} depends on {_listed(left, right)}")


def _quantified(every: bool, pairs: Sequence[tuple[Size, Size]], left: Size, right: Size) -> bool:
    """Whether the first is less than the second in every pair, or in any."""
    open_ = False
    for pair in pairs:
        try:
            if _less(*pair) != every:
                return not every
        except OpenSizeError:
            open_ = True
    if open_:
        raise OpenSizeError(f"whether {left} is less than {right} depends on {_listed(left, right)}")
    return every


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
    ZeroDivisionError
        A divisor is 0.
    """
    if isinstance(size, int):
        return size
    if size.operator is None:
        return values[size.operands[0]]
    left, right = (evaluate(side, values) for side in size.operands)
    return _apply(size.operator, left, right)


def replaced(size: Size, values: Mapping[str, Size]) -> Size:
    """The size with some dimensions replaced by sizes."""
    if isinstance(size, int):
        return size
    if size.operator is None:
        return values.get(size.operands[0], size)
    left, right = (replaced(side, values) for side in size.operands)
    return operation(size.operator, left, right)


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


def most(size: Size) -> int:
    """The most that a size can be in :func:`bounded`."""
    return bounds(size, _bound.get() or {})[1]


def is_number(size: Size, number: int) -> bool:
    """Whether a size is that number, whatever the dimensions are."""
    return isinstance(size, int) and size == number


def divides(number: int, size: Size) -> bool:
    """Whether a number divides a size, whatever the dimensions are."""
    return all(coefficient % number == 0 for coefficient in _terms(size).values())


def is_zero(size: Size) -> bool:
    """Whether a size is the number 0."""
    return isinstance(size, int) and size == 0


def is_one(size: Size) -> bool:
    """Whether a size is the number 1: only then a dimension broadcasts, or can be left out."""
    return isinstance(size, int) and size == 1


def same(left: Size, right: Size) -> bool:
    """Whether two sizes are written alike: what cannot be told apart whatever the dimensions are."""
    return bool(_key(left) == _key(right))


def typical(size: Size) -> int:
    """A number for decisions of speed: the size where each dimension is the geometric mean of its bounds,
    in :func:`bounded`."""
    dims = _bound.get() or {}
    return evaluate(
        size, {d.name: max(d.least, round(sqrt(max(1, d.least) * d.most))) for d in dims.values()}
    )


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes: how many elements a tensor has."""
    found: Size = 1
    for size in sizes:
        found = operation("*", found, size)
    return found


def solved(
    sizes: Iterable[tuple[Size, int]], dims: Iterable[str], known: Mapping[str, int]
) -> dict[str, int]:
    """The values of dimensions under which sizes are the given numbers, as far as these determine them;
    ``known`` values stay. A size determines a dimension alone, or in a sum with known ones."""
    values = dict(known)
    open_names = frozenset(dims)
    waiting = list(sizes)
    while waiting:
        left = []
        for size, number in waiting:
            unknown = names(size) & (open_names - values.keys())
            if not unknown:
                continue
            terms = _terms(replaced(size, values))
            rest = {factors: c for factors, c in terms.items() if factors}
            ((factors, coefficient),) = rest.items() if len(rest) == 1 else [((), 0)]
            if len(factors) == 1 and isinstance(factors[0], str):
                values[factors[0]] = (number - terms.get((), 0)) // coefficient
            else:
                left.append((size, number))
        if len(left) == len(waiting):
            break
        waiting = left
    return values


def broadcast(*shapes: Sequence[Size]) -> Shape:
    """The shape to which shapes broadcast. A size that may be 1 but is not the number 1 does not broadcast:
    it must be the same size everywhere, or meet 1.

    Raises
    ------
    ValueError
        Two sizes differ.
    OpenSizeError
        Whether two sizes are equal depends on dimensions.
    """
    rank = max(map(len, shapes), default=0)
    found: list[Size] = []
    for axis in range(-rank, 0):
        size: Size = 1
        for shape in shapes:
            own = shape[axis] if -axis <= len(shape) else 1
            if is_one(own):
                continue
            if not is_one(size) and own != size:
                raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
            size = own
        found.append(size)
    return tuple(found)


def parse(text: str, dims: Iterable[str]) -> Size:
    """The size that a text writes: the name of a dimension, or arithmetic over names of ``dims`` and whole
    numbers such as ``past + seq``. What is neither is a name."""
    known = frozenset(dims)
    if text not in known:
        try:
            found = _parsed(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return Expression.of(text)
        if names(found) <= known:
            return found
    return Expression.of(text)


_WRITTEN: Mapping[type, Operator] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//"}


def _parsed(tree: ast.expr) -> Size:
    if isinstance(tree, ast.Name):
        return Expression.of(tree.id)
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return tree.value
    if isinstance(tree, ast.BinOp) and type(tree.op) in _WRITTEN:
        return operation(_WRITTEN[type(tree.op)], _parsed(tree.left), _parsed(tree.right))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and len(tree.args) == 2:
        left, right = map(_parsed, tree.args)
        if tree.func.id == "min":
            return operation("min", left, right)
        if tree.func.id == "max":
            return operation("max", left, right)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return operation("-", 0, _parsed(tree.operand))
    raise ValueError(ast.dump(tree))


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
    if depth < _DEEPEST and isinstance(data, list) and len(data) == 3 and data[0] in _OPERATORS:
        left, right = (from_json(side, depth + 1) for side in data[1:])
        if isinstance(left, int) and isinstance(right, int):
            raise ValueError(f"a size is {data!r}, which is a number")
        if data[0] == "//" and isinstance(right, int) and right == 0:
            raise ValueError("a size is divided by 0")
        # As written: to multiply out what a hostile file says would take for ever.
        return Expression(data[0], (left, right))
    raise TypeError(f"a size is {data!r}")
