"""exp, log, log1p, tanh, erf and the logistic function of float32 as arithmetic, which can be vectorised.

A call of the C library computes one number at a time. These functions consist of additions,
multiplications, comparisons and shifts: a vector takes as many instructions as a scalar, and every engine
computes the same bits.

Range reductions are those of Cody & Waite, "Software Manual for the Elementary Functions" (1980).
Coefficients are minimax fits of this project: for exp of ``(e^r - 1 - r) / r^2`` over log(2)/2 on both
sides; for erf of ``erf(sqrt(s)) / sqrt(s) - 1`` up to 0.95^2 and of ``-log(erfc(t))`` from 0.95 to 4; for
tanh of ``tanh(sqrt(s)) / sqrt(s) - 1`` up to 0.66^2; for log of ``(log(1 + f) - f + f^2 / 2) / f^3`` from
sqrt(1/2) - 1 to sqrt(2) - 1. tests/compiler/lower/test_elementary.py holds the largest errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

_EXP = (
    0.4999999344745987,
    0.16666520627619896,
    0.04166838810553568,
    0.00836871731176843,
    0.0013814596584325772,
)
_ERF_NEAR = (
    *(0.1283791664085674, -0.3761263161362092, 0.11283663999124409, -0.026857705113183295),
    *(0.00519695207623068, -0.0008097703010442668, 8.185091057176508e-05),
)
_ERF_FAR = (
    *(0.00024470958398067867, 1.1274750018095763, 0.6375169823908924, 0.10364034837084506),
    *(-0.02208765302926425, 0.0030085400834820165, -0.00019242634894211475),
)
_TANH = (
    *(-7.1776678e-09, -0.33333213833864506, 0.13330081370914124),
    *(-0.05364050111253026, 0.020341198731758704, -0.005391826958465529),
)
_LOG = (
    *(0.33333331709343283, -0.25000821068427964, 0.2000122671366353, -0.16623356049396598),
    *(0.14201761002405755, -0.13160198004142992, 0.12761562914756455, -0.07634437987985283),
)
_LOG2_E = 1.4426950408889634
# log(2) in two parts; the first has so few bits that its product with any exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ROUNDER = 12582912.0  # 1.5 × 2^23: a sum with it has the addend, rounded to an integer, in its lowest bits
_ROUNDER_BITS = 0x4B400000
_ONE_BITS, _SIGN_BIT = 0x3F800000, -0x80000000

Expr = Any


class _Numbers:
    """float32 and int32 arithmetic over the lanes of an expression's dtype."""

    def __init__(self, dtype: str) -> None:
        self.float, self.int = dtype, dtype.replace("float", "int")
        self._bound: list[tuple[tirx.Var, Expr]] = []

    def f(self, value: float) -> Expr:
        return tirx.const(value, self.float)

    def i(self, value: int) -> Expr:
        return tirx.const(value, self.int)

    def let(self, value: Expr) -> Expr:
        """A name for a value that is used more than once."""
        variable = tirx.Var("t", value.ty)
        self._bound.append((variable, value))
        return variable

    def result(self, value: Expr) -> Expr:
        for variable, bound in reversed(self._bound):
            value = tirx.Let(variable, bound, value)
        return value

    def polynomial(self, x: Expr, coefficients: Sequence[float]) -> Expr:
        """By Horner's rule; coefficients from the constant one."""
        total = self.f(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            total = total * x + self.f(coefficient)
        return total

    def bits(self, x: Expr) -> Expr:
        return tirx.reinterpret(self.int, x)

    def number(self, bits: Expr) -> Expr:
        return tirx.reinterpret(self.float, bits)

    def magnitude(self, x: Expr) -> Expr:
        return self.number(tirx.bitwise_and(self.bits(x), self.i(0x7FFFFFFF)))

    def signed(self, magnitude: Expr, x: Expr) -> Expr:
        """A magnitude with the sign of ``x``."""
        sign = tirx.bitwise_and(self.bits(x), self.i(_SIGN_BIT))
        return self.number(tirx.bitwise_or(self.bits(magnitude), sign))

    def power_of_two(self, exponent: Expr) -> Expr:
        """2^exponent, from -126 to 127."""
        return self.number(tirx.shift_left(exponent + self.i(127), self.i(23)))

    def exp(self, x: Expr) -> Expr:
        # A comparison with NaN is false, so NaN is passed on.
        x = self.let(x)
        bounded = self.let(tirx.Select(x > self.f(89.0), self.f(89.0), x))
        value, exponent = self._exp_parts(tirx.Select(bounded < self.f(-104.0), self.f(-104.0), bounded))
        # A product that underflows takes a hundred cycles on x86, one with 0 does not; masked attention has
        # many exponents that vanish.
        value = tirx.Select(x < self.f(-104.0), self.f(0.0), value)
        # Two factors, each with half of the exponent: 2^128 is not a float32, and results may be subnormal.
        half = self.let(tirx.shift_right(exponent, self.i(1)))
        return value * self.power_of_two(half) * self.power_of_two(exponent - half)

    def moderate_exp(self, x: Expr) -> Expr:
        """exp of numbers from -87 to 88."""
        value, exponent = self._exp_parts(x)
        return value * self.power_of_two(exponent)

    def _exp_parts(self, x: Expr) -> tuple[Expr, Expr]:
        """A number, and the power of two by which to multiply it."""
        x = self.let(x)
        rounded = self.let(x * self.f(_LOG2_E) + self.f(_ROUNDER))
        n = self.let(rounded - self.f(_ROUNDER))
        r = self.let((x - n * self.f(_LN2_HIGH)) - n * self.f(_LN2_LOW))
        value = (self.polynomial(r, _EXP) * r) * r + r + self.f(1.0)
        return value, self.let(self.bits(rounded) - self.i(_ROUNDER_BITS))

    def sigmoid(self, x: Expr) -> Expr:
        x = self.let(x)
        small = self.let(self.exp(self.f(0.0) - self.magnitude(x)))
        share = self.f(1.0) / (self.f(1.0) + small)
        return tirx.Select(x < self.f(0.0), small * share, share)

    def tanh(self, x: Expr) -> Expr:
        x = self.let(x)
        t = self.let(self.magnitude(x))
        square = self.let(x * x)
        near = t + t * self.polynomial(square, _TANH)
        bounded = tirx.Select(t > self.f(10.0), self.f(10.0), t)
        far = self.f(1.0) - self.f(2.0) / (self.moderate_exp(bounded + bounded) + self.f(1.0))
        return self.signed(tirx.Select(t < self.f(0.66), near, far), x)

    def erf(self, x: Expr) -> Expr:
        x = self.let(x)
        t = self.let(self.magnitude(x))
        square = self.let(x * x)
        near = t + t * self.polynomial(square, _ERF_NEAR)
        bounded = self.let(tirx.Select(t > self.f(4.0), self.f(4.0), t))
        far = self.f(1.0) - self.moderate_exp(self.f(0.0) - self.polynomial(bounded, _ERF_FAR))
        return self.signed(tirx.Select(t < self.f(0.95), near, far), x)

    def log(self, x: Expr) -> Expr:
        x = self.let(x)
        small = x < self.f(1.17549435e-38)
        scaled = self.let(tirx.Select(small, x * self.f(8388608.0), x))
        # The mantissa is from √½ to √2: subtracting the bits of √½ lowers the exponent by one for mantissas
        # below √½.
        shifted = self.let(self.bits(scaled) - self.i(0x3F3504F3))
        exponent = tirx.shift_right(shifted, self.i(23))
        mantissa = self.number(tirx.bitwise_and(shifted, self.i(0x007FFFFF)) + self.i(0x3F3504F3))
        f = self.let(mantissa - self.f(1.0))
        e = self.let(tirx.Cast(self.float, exponent) - tirx.Select(small, self.f(23.0), self.f(0.0)))
        square = self.let(f * f)
        tail = self.polynomial(f, _LOG) * (square * f) + e * self.f(_LN2_LOW) - square * self.f(0.5)
        value = self.let((f + tail) + e * self.f(_LN2_HIGH))
        infinity, nan = self.f(float("inf")), self.f(float("nan"))
        value = tirx.Select(x < infinity, value, x)  # infinity and NaN
        value = tirx.Select(tirx.EQ(x, self.f(0.0)), self.f(float("-inf")), value)
        return tirx.Select(x < self.f(0.0), nan, value)

    def log1p(self, x: Expr) -> Expr:
        """log(1 + x). What the sum loses in rounding is added, times the logarithm's slope there."""
        x = self.let(x)
        total = self.let(self.f(1.0) + x)
        lost = (x - (total - self.f(1.0))) / total
        lost = tirx.Select(x > self.f(-1.0), lost, self.f(0.0))
        lost = tirx.Select(x < self.f(float("inf")), lost, self.f(0.0))
        return tirx.Select(tirx.EQ(x, self.f(0.0)), x, self.log(total) + lost)  # keeps the sign of zero


_FUNCTIONS: dict[str, Callable[[_Numbers, Expr], Expr]] = {
    "tirx.exp": _Numbers.exp,
    "tirx.log": _Numbers.log,
    "tirx.log1p": _Numbers.log1p,
    "tirx.tanh": _Numbers.tanh,
    "tirx.erf": _Numbers.erf,
    "tirx.sigmoid": _Numbers.sigmoid,
}


def as_arithmetic(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A kernel whose elementary functions of float32 are arithmetic, where a value has only one of them."""

    def one(value: Expr) -> Expr:
        calls = _calls(value)
        return _replaced(value, calls[0], lambda: _arithmetic(calls[0])) if len(calls) == 1 else value

    function = function.with_body(tvm_ffi.structural_map(function.body, [(Call, _of_the_library)]))
    return _with_values(function, lambda value: ([], one(value)))


def _of_the_library(call: Call) -> Call:
    """Of numbers that are not float32, a call of the C library, where LLVM has no function of vectors."""
    name = call.op.name if isinstance(call.op, tvm.ir.Op) else ""
    if name not in ("tirx.erf", "tirx.log1p") or str(call.ty.dtype).startswith("float32"):
        return call
    return tirx.call_pure_extern(str(call.ty.dtype), name.removeprefix("tirx."), call.args[0])


def many_as_arithmetic(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A vectorised kernel whose remaining elementary functions are arithmetic too, each into a local
    variable, which LLVM turns into a register.

    Within one expression, functions of functions would take a time exponential in their depth: minutes for
    tanh(log(1 + exp(x))). TVM replaces names by their values where it analyses an expression for LLVM; a
    variable in memory ends its analysis.
    """
    return _with_values(function, _apart)


def _with_values(
    function: tirx.PrimFunc, rewrite: Callable[[Expr], tuple[list[tirx.Stmt], Expr]]
) -> tirx.PrimFunc:
    """Rewrite every value that is stored or bound; statements go in front of it."""

    def renewed(statement: Any, build: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
        before, value = rewrite(statement.value)
        if value.same_as(statement.value):
            return statement
        return tirx.SeqStmt([*before, build(value)]) if before else build(value)

    def store(old: tirx.BufferStore) -> tirx.Stmt:
        return renewed(old, lambda value: tirx.BufferStore(old.buffer, value, old.indices))

    def bind(old: tirx.Bind) -> tirx.Stmt:
        return renewed(old, lambda value: tirx.Bind(old.var, value))

    rewriters = [(tirx.BufferStore, store), (tirx.Bind, bind)]
    return function.with_body(tvm_ffi.structural_map(function.body, rewriters))


def _apart(value: Expr) -> tuple[list[tirx.Stmt], Expr]:
    """Statements that compute a value's elementary functions, and the value."""
    before, choices = list[tirx.Stmt](), list[tuple[tirx.Var, Expr]]()
    for choice in _outermost_choices(value):
        # What one branch reads may be outside of a tensor if the other is taken.
        condition, *branches = choice.args
        sides = [_apart(branch) for branch in branches]
        held = [s for side, _ in sides for s in side if isinstance(s, tirx.AllocBuffer)]
        stores = [[s for s in side if not isinstance(s, tirx.AllocBuffer)] for side, _ in sides]
        yes, no = (tirx.SeqStmt(each) if len(each) > 1 else each[0] if each else None for each in stores)
        if yes is None and no is None:
            continue
        if yes is None:
            yes, no, condition = no, None, tirx.Not(condition)
        before += [*held, tirx.IfThenElse(condition, yes, no)]
        chosen = tirx.if_then_else(choice.args[0], *(branch for _, branch in sides))
        choices.append((tirx.Var("chosen", choice.ty), chosen))
        value = _replaced(value, choice, partial(lambda name: name, choices[-1][0]))
    after: list[tirx.Stmt] = []
    while calls := _calls(value):
        call = calls[0]
        lanes = call.ty.dtype.lanes
        variable = tirx.decl_buffer((lanes,), "float32", "elementary", scope="local")
        place = [tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), lanes)] if lanes > 1 else [0]
        result = _settled(_arithmetic(call), choices)
        after += [tirx.AllocBuffer(variable), tirx.BufferStore(variable, result, place)]
        value = _replaced(value, call, partial(tirx.BufferLoad, variable, place))
    return [*before, *after], _settled(value, choices)


def _settled(value: Expr, choices: list[tuple[tirx.Var, Expr]]) -> Expr:
    """Put choices in the place of the names that stand for them."""

    def rewrite(variable: tirx.Var) -> Expr:
        return next((chosen for name, chosen in choices if variable.same_as(name)), variable)

    return tvm_ffi.structural_map(value, [(tirx.Var, rewrite)])


def _is_choice(call: Call) -> bool:
    return isinstance(call.op, tvm.ir.Op) and call.op.name.endswith(".if_then_else")


def _outermost_choices(value: Expr) -> list[Call]:
    choices = _distinct([call for call in _within(value) if _is_choice(call)])
    return [c for c in choices if not any(c is not o and _holds(o, c) for o in choices)]


def _holds(tree: Expr, call: Call) -> bool:
    return any(tvm_ffi.structural_equal(other, call) for other in _within(tree) if other is not tree)


def _within(tree: Expr) -> list[Call]:
    calls: list[Call] = []

    def note(call: Call) -> Call:
        calls.append(call)
        return call

    tvm_ffi.structural_map(tree, [(Call, note)])
    return calls


def _calls(value: Expr) -> list[Call]:
    """The elementary functions of a value, arguments before the functions that take them."""
    return _distinct([call for call in _within(value) if _elementary(call)])


def _distinct(calls: list[Call]) -> list[Call]:
    found: list[Call] = []
    for call in calls:
        if not any(tvm_ffi.structural_equal(call, other) for other in found):
            found.append(call)
    return found


def _elementary(call: Call) -> bool:
    named = isinstance(call.op, tvm.ir.Op) and call.op.name in _FUNCTIONS
    return named and str(call.ty.dtype).startswith("float32")


def _arithmetic(call: Call) -> Expr:
    numbers = _Numbers(str(call.ty.dtype))
    return numbers.result(_FUNCTIONS[call.op.name](numbers, call.args[0]))


def _replaced(tree: Expr, call: Call, result: Callable[[], Expr]) -> Expr:
    """Each place of the call gets a result of its own: a name must not be bound twice."""

    def rewrite(other: Call) -> Expr:
        return result() if tvm_ffi.structural_equal(other, call) else other

    return tvm_ffi.structural_map(tree, [(Call, rewrite)])
