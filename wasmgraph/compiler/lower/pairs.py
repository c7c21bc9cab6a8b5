"""Stage 6: sums of two products of 16-bit integers become the instruction that computes them.

Every vector unit multiplies vectors of int16, and adds neighbouring products, in one instruction. A sum
over pairs of channels is written (``operators/packing.py``) as ``sum + (x[k]·w[k, 0] + x[k + 1]·w[k, 1])``;
here x is two neighbours, broadcast together, and w a vector whose lanes alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.sym import Analyzer

from wasmgraph.targets import Target

Expr = Any
# The intrinsic, by the kind of target and the bytes of a vector.
_DOTS = {
    ("wasm", 16): "llvm.wasm.dot",
    ("native", 16): "llvm.x86.sse2.pmadd.wd",
    ("native", 32): "llvm.x86.avx2.pmadd.wd",
    ("native", 64): "llvm.x86.avx512.pmaddw.d.512",
}


class _Product(NamedTuple):
    """A broadcast number, by a vector of weights."""

    number: TensorLoad
    weights: TensorLoad
    ramp: tirx.Ramp


def multiply_pairs(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """Rewrite the sums of a function whose loops are vectorised."""
    dot = _DOTS.get((target.kind, target.vector_bytes))
    if dot is None:
        return function
    analyzer = Analyzer()

    def rewrite(store: tirx.BufferStore) -> tirx.BufferStore:
        kind = tvm.DataType(str(store.value.ty.dtype))
        if kind.lanes == 1 or str(kind).split("x")[0] != "int32" or kind.lanes % target.lanes:
            return store
        terms = _terms(store.value)
        products = [_product(term, analyzer) for term in terms]
        left = [n for n, product in enumerate(products) if product is not None]
        sums: list[Expr] = []
        for first in left:
            for second in left:
                one, other = products[first], products[second]
                if one and other and _side_by_side(one, other, analyzer):
                    sums.append(_dot(dot, one, kind.lanes, target.lanes))
                    products[first] = products[second] = None
                    terms[first] = terms[second] = None
        if not sums:
            return store
        value = None
        for term in [*(t for t in terms if t is not None), *sums]:
            value = term if value is None else value + term
        return tirx.BufferStore(store.buffer, value, store.indices)

    return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.BufferStore, rewrite)]))


def _terms(value: Expr) -> list[Expr]:
    if isinstance(value, tirx.Add):
        return [*_terms(value.a), *_terms(value.b)]
    return [value]


def _product(term: Expr, analyzer: Analyzer) -> _Product | None:
    if not isinstance(term, tirx.Mul):
        return None
    for one, other in ((term.a, term.b), (term.b, term.a)):
        number, weights = _inside(one), _inside(other)
        if not (isinstance(number, TensorLoad) and isinstance(weights, TensorLoad)):
            continue
        ramp = analyzer.simplify(weights.indices[0])
        whole = isinstance(ramp, tirx.Ramp) and isinstance(ramp.stride, tirx.IntImm)
        if whole and int(ramp.stride) == 2 and str(number.ty.dtype) == "int16":
            return _Product(number, weights, ramp)
    return None


def _inside(value: Expr) -> Expr:
    """What casts and a broadcast enclose."""
    while isinstance(value, (tirx.Cast, tirx.Broadcast)):
        value = value.value
    return value


def _side_by_side(one: _Product, other: _Product, analyzer: Analyzer) -> bool:
    return (
        one.number.source.same_as(other.number.source)
        and one.weights.source.same_as(other.weights.source)
        and _is_one(other.number.indices[0] - one.number.indices[0], analyzer)
        and _is_one(other.ramp.base - one.ramp.base, analyzer)
    )


def _is_one(difference: Expr, analyzer: Analyzer) -> bool:
    found = analyzer.simplify(difference)
    return isinstance(found, tirx.IntImm) and int(found) == 1


def _dot(intrinsic: str, first: _Product, lanes: int, own: int) -> Expr:
    """The dot products, ``own`` lanes at a time."""
    number = first.number
    pair = number.source[(tirx.Ramp(number.indices[0], tirx.const(1, number.indices[0].ty.dtype), 2),)]
    both = tirx.Broadcast(tirx.reinterpret("int32", pair), own)
    data = tirx.reinterpret(f"int16x{2 * own}", both)
    parts: Sequence[Expr] = []
    base = first.ramp.base
    for part in range(lanes // own):
        place = tirx.Ramp(base + 2 * own * part, tirx.const(1, base.ty.dtype), 2 * own)
        weights = first.weights.source[(place,)]
        if str(weights.ty.dtype).startswith("int8"):
            weights = tirx.Cast(f"int16x{2 * own}", weights)
        parts = [*parts, tirx.call_llvm_pure_intrin(f"int32x{own}", intrinsic, data, weights)]
    return parts[0] if len(parts) == 1 else tirx.Shuffle(parts, list(range(lanes)))
