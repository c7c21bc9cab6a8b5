"""Division and remainder. For integers they are defined for every divisor, so that nothing traps: a branch
that is not taken is computed too (``control.py``).

As in numpy, x / 0 = 0, x mod 0 = 0, and the smallest integer divided by -1 is itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import elementwise
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of


def _harmless(divisor: Value) -> bool:
    """Whether a divisor is known, and no division by it traps."""
    return isinstance(divisor, np.ndarray) and not np.isin(divisor, (0, -1)).any()


def _divisor(x: Any, y: Any, dtype: str) -> Any:
    """Replace a divisor on which the processor traps by 1."""
    zero, unit = tirx.const(0, dtype), tirx.const(1, dtype)
    traps = y == zero
    if dtype.startswith("int"):
        least = tirx.const(np.iinfo(dtype).min, dtype)
        # Compare bits with xor: TVM's simplifier assumes that no int32 equals the smallest one.
        traps = tirx.any(traps, tirx.all(y == -unit, (x ^ least) == zero))
    return tirx.Select(traps, unit, y)


@converts("Div")
def div(op: Operator, dividend: Value, divisor: Value) -> Any:
    """Integer division rounds towards zero."""
    dtype = dtype_of(dividend)
    if dtype.startswith("float") or _harmless(divisor):
        return op.tvm(dividend, divisor)

    def one(x: Any, y: Any) -> Any:
        zero = tirx.const(0, dtype)
        return tirx.Select(y == zero, zero, tirx.truncdiv(x, _divisor(x, y, dtype)))

    return elementwise(op, one, dividend, divisor)


@converts("Mod")
def mod(op: Operator, dividend: Value, divisor: Value) -> Any:
    """The remainder with the divisor's sign, or with ``fmod`` the dividend's; numpy's mod and fmod."""
    dtype, fmod = dtype_of(dividend), bool(op.attr("fmod", 0))
    if not dtype.startswith("float"):
        if _harmless(divisor):
            return op.tvm(dividend, divisor)
        rest_of = tirx.truncmod if fmod else tirx.floormod
        return elementwise(op, lambda x, y: rest_of(x, _divisor(x, y, dtype)), dividend, divisor)
    if fmod:
        return op.tvm(dividend, divisor)

    def one(x: Any, y: Any) -> Any:
        zero = tirx.const(0, dtype)
        rest = tirx.call_pure_extern(dtype, "fmod" if dtype == "float64" else "fmodf", x, y)
        apart = tirx.Select(y < zero, rest > zero, rest < zero)
        moved = tirx.Select(apart, rest + y, rest)
        return tirx.Select(moved == zero, tirx.copysign(zero, y), moved)

    return elementwise(op, one, dividend, divisor)
