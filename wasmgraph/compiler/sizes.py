"""Shapes of TVM's tensors as sizes of :mod:`wasmgraph.dims`, and back: the one place that translates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, te, tirx

from wasmgraph.dims import Expression, Operator, Shape, Size, is_closed, names, operation, product, replaced

_OPERATORS: tuple[tuple[type, Operator], ...] = (
    (tirx.Add, "+"),
    (tirx.Sub, "-"),
    (tirx.Mul, "*"),
    (tirx.FloorDiv, "//"),
    (tirx.Div, "//"),  # which lowering makes of it where nothing is negative
    (tirx.Min, "min"),
    (tirx.Max, "max"),
)
# Of a block, then of its kernel: as text, how many indices past the end of which dimension of a tensor it
# may read. What it finds there is ignored.
READS_PAST = "wasmgraph_reads_past"
_DTYPE = "int64"  # of TVM's shapes


def size_of(extent: Any) -> Size:
    """What an extent is: a number, or arithmetic over the variables that dimensions are.

    Raises
    ------
    ValueError
        It is computed in another way.
    """
    if isinstance(extent, Expression):
        return extent
    if isinstance(extent, (int, tirx.IntImm)):
        return int(extent)
    if isinstance(extent, tirx.Var):
        return Expression.of(str(extent.name))  # TVM's strings are of a class of their own
    if isinstance(extent, tirx.Cast):
        return size_of(extent.value)
    if isinstance(extent, tirx.FloorMod):
        left, right = size_of(extent.a), size_of(extent.b)
        return operation("-", left, operation("*", operation("//", left, right), right))
    if isinstance(extent, tirx.RShift):
        return operation("//", size_of(extent.a), 1 << int(extent.b))
    for kind, operator in _OPERATORS:
        if isinstance(extent, kind):
            sides: Any = extent
            return operation(operator, size_of(sides.a), size_of(sides.b))
    raise ValueError(f"{extent} is not a size")


@cache
def _variable(name: str) -> tirx.Var:
    return tirx.Var(name, _DTYPE)


class _NotAmongOperandsError(Exception):
    """A kernel under construction uses a dimension on which no shape of its operands depends."""


_Variables = Mapping[str, tirx.Var]
# Of the function that is being built: its own variables, and whether it has no others.
_function: ContextVar[tuple[_Variables, bool]] = ContextVar("function", default=({}, False))


def variable(name: str) -> tirx.Var:
    """The variable that a dimension is in the shapes of the function that is being built. TVM's passes and
    builders give each function variables of its own, under the same names."""
    own, only = _function.get()
    if only and name not in own:
        raise _NotAmongOperandsError(name)
    return own[name] if name in own else _variable(name)


@contextmanager
def _naming(
    shapes: Iterable[Iterable[Any]], only: bool, further: _Variables | None = None
) -> Iterator[None]:
    own = dict(further or {})
    for size in [size for shape in shapes for size in shape]:
        if isinstance(size, tvm.ir.Expr):
            own |= {v.name: v for v in tirx.analysis.undefined_vars(size)}
    token = _function.set((own, only))
    try:
        yield
    finally:
        _function.reset(token)


def own_variables(sizes: Iterable[Size]) -> AbstractContextManager[None]:
    """In this block, which builds a kernel, sizes are written with variables of its own."""
    own = {name: tirx.Var(name, _DTYPE) for size in sizes for name in names(size)}
    return _naming([], False, own)


def naming(*tensors: relax.Expr) -> AbstractContextManager[None]:
    """In this block, sizes are written with the variables in the shapes of ``tensors``."""
    fields = [field for t in tensors for field in (t.fields if isinstance(t, relax.Tuple) else [t])]
    types = [field.ty for field in fields if isinstance(field, tvm.ir.Expr)]
    return _naming(
        [ty.shape.values for ty in types if isinstance(ty, relax.TensorType) and ty.shape], False
    )


def call_te(
    builder: relax.BlockBuilder, compute: Callable[..., Any], *operands: Any, **options: Any
) -> relax.Call:
    """A call of the kernel that a function of TE tensors gives. In that function, sizes are the kernel's
    own variables; those on which no shape of its operands depends become parameters."""
    further: list[str] = []

    def inside(*given: Any, **named: Any) -> Any:
        given, values = given[: len(operands)], given[len(operands) :]
        more = dict(zip(further, [value for shape in values for value in shape], strict=True))
        shapes = [each.shape if isinstance(each, te.Tensor) else each for each in given]
        with _naming([shape for shape in shapes if not isinstance(shape, int)], True, more):
            return compute(*given, **named)

    while True:
        more = [relax.ShapeExpr([_variable(name) for name in further])] if further else []
        try:
            return builder.call_te(inside, *operands, *more, **options)
        except _NotAmongOperandsError as error:
            further.append(str(error))


def extent(size: Size) -> tirx.PrimExpr:
    """A size as TVM writes it."""
    if isinstance(size, int):
        return tirx.IntImm(_DTYPE, size)
    if size.operator is None:
        return variable(size.operands[0])
    left, right = map(extent, size.operands)
    if size.operator == "*" and isinstance(left, tirx.IntImm):
        left, right = right, left  # as TVM writes the shapes that it infers
    if size.operator == "//":
        return tirx.FloorDiv(left, right)
    if size.operator == "min":
        return tirx.Min(left, right)
    if size.operator == "max":
        return tirx.Max(left, right)
    return {"+": tirx.Add, "-": tirx.Sub, "*": tirx.Mul}[size.operator](left, right)


def number(size: Size, dtype: str) -> tirx.PrimExpr:
    """A size among the numbers that a kernel computes with."""
    return tirx.const(size, dtype) if isinstance(size, int) else tirx.Cast(dtype, extent(size))


def chosen(place: tirx.PrimExpr, items: Sequence[Any]) -> Any:
    """The item at a place that a kernel computes, which is one of theirs."""
    found = items[-1]
    for n, item in reversed(list(enumerate(items[:-1]))):
        found = tirx.Select(place == n, item, found)
    return found


# By this protocol TVM takes a size wherever it takes a number. It is added here, because `dims` does not
# know TVM.
Expression.__tvm_ffi_object__ = extent  # type: ignore[attr-defined]
Expression.foreign = staticmethod(extent)


def sizes(extents: Iterable[Any]) -> Shape:
    """Extents as sizes."""
    return tuple(map(size_of, extents))


def shape_of(tensor: relax.Expr | tvm.ir.Type) -> Shape:
    """The shape of a tensor, or of its type."""
    ty = tensor if isinstance(tensor, tvm.ir.Type) else tensor.ty
    return sizes(ty.shape.values)


def numbers(extents: Iterable[Any]) -> tuple[int, ...]:
    """Extents all of which are numbers, as those of weights are."""
    return tuple(int(extent) for extent in extents)


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """The shape of an expression whose dimensions are all numbers."""
    return numbers(expr.ty.shape.values)


def is_tensor(parameter: tirx.Var) -> bool:
    """Whether a kernel's parameter is a tensor, not a number."""
    return not isinstance(parameter.ty, tvm.ir.PrimType)


def is_open(kernel: tirx.PrimFunc) -> bool:
    """Whether a size of a kernel's tensors depends on a dimension."""
    return not all(is_closed(sizes(b.shape)) for b in kernel.params if is_tensor(b))


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element of a TVM dtype; a boolean takes one."""
    bits: int = tvm.DataType(dtype).bits * tvm.DataType(dtype).lanes
    return max(1, bits // 8)


def buffer_bytes(buffer: tirx.Buffer, defined: Mapping[str, Size] | None = None) -> Size:
    """Size of a buffer, over the variables that are not ``defined`` by others."""
    count = product(sizes(buffer.shape))
    while defined and not defined.keys().isdisjoint(names(count)):
        count = replaced(count, defined)
    return operation("*", count, dtype_bytes(str(buffer.dtype)))


def definitions(body: tirx.Stmt) -> dict[str, Size]:
    """The sizes that statements bind to variables."""
    found: dict[str, Size] = {}

    def note(bind: tirx.stmt.Bind) -> tirx.stmt.Bind:
        with suppress(ValueError):
            found[bind.var.name] = size_of(bind.value)
        return bind

    tvm_ffi.structural_map(body, [(tirx.stmt.Bind, note)])
    return found
