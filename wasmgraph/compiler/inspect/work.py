"""The work of a kernel before any schedule, with which its time is compared."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.ir.expr import TensorLoad
from tvm.s_tir import Schedule
from tvm.s_tir.analysis import estimate_tir_flops

from wasmgraph.compiler.operators.few_bits import few_bits_of
from wasmgraph.compiler.operators.recurrent import layer_of
from wasmgraph.compiler.operators.sequential import is_sequential
from wasmgraph.compiler.schedule.blocks import axis_sizes, blocks, find, reduces
from wasmgraph.compiler.sizes import size_of
from wasmgraph.dims import Size, operation, product


def kernel_flops(kernel: tirx.PrimFunc) -> Size:
    """Floating-point operations of one call.

    A convolution counts as its *direct* algorithm would, whatever algorithm it got, so that GFLOP/s can be
    compared. Winograd can therefore exceed the roofline. Padding to whole tiles is not counted.
    """
    whole = layer_of(kernel) or few_bits_of(kernel)
    if whole is not None:
        return whole.flops
    if is_sequential(kernel):
        return 0
    mod = tvm.IRModule({"main": kernel})
    schedule = Schedule(mod)
    for name in ("conv2d", "dense"):
        result, acc = find(schedule, name), find(schedule, "acc")
        if result is None or acc is None:
            continue
        outputs = product(axis_sizes(schedule, result))
        reduced = product(axis_sizes(schedule, acc, spatial=False))
        window = 9 if find(schedule, "tiles") is not None else 1
        return 2 * outputs * reduced * window * max(1, len(_products(schedule.get(acc).body)))
    try:
        return int(estimate_tir_flops(mod))
    except (tvm.error.InternalError, ValueError):
        return _open_flops(schedule)  # loops whose extents are data or open: TVM cannot count them


def _open_flops(schedule: Schedule) -> Size:
    """Operations on floats of each block, as often as its axes say."""
    total: Size = 0
    for block in blocks(schedule):
        counted: list[tirx.PrimExpr] = []

        def note(operation: Any, counted: list[Any] = counted) -> Any:
            if str(operation.ty.dtype).startswith("float"):
                counted.append(operation)
            return operation

        kinds = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max, Call)
        tvm_ffi.structural_map(schedule.get(block).body, [(kinds, note)])
        try:
            turns = product(size_of(axis.dom.extent) for axis in schedule.get(block).iter_vars)
        except ValueError:
            continue  # as often as data says
        total = operation("+", total, operation("*", turns, len(counted)))
    return total


def is_product(kernel: tirx.PrimFunc) -> bool:
    """Whether a kernel is a matrix product or a convolution: it sums products of two tensors' elements."""
    if layer_of(kernel) is not None or few_bits_of(kernel) is not None:
        return True
    if is_sequential(kernel):
        return False
    schedule = Schedule(tvm.IRModule({"main": kernel}))
    return any(
        _sums_products(schedule.get(block).body) for block in blocks(schedule) if reduces(schedule, block)
    )


def _sums_products(body: tirx.Stmt) -> bool:
    products = _products(body)
    sides = [(_tensors(term.a), _tensors(term.b)) for term in products]
    # A square of differences has the same ones on both sides.
    return bool(products) and all(a and b and a.isdisjoint(b) for a, b in sides)


def _products(body: tirx.Stmt) -> list[tirx.Mul]:
    """The products that a turn of a sum adds: one, or of integers two (``operators/packing.py``)."""
    if not isinstance(body, tirx.BufferStore) or not isinstance(body.value, tirx.Add):
        return []
    term = body.value.b
    while isinstance(term, tirx.Cast):
        term = term.value
    terms = [term.a, term.b] if isinstance(term, tirx.Add) else [term]
    return terms if all(isinstance(one, tirx.Mul) for one in terms) else []


def _tensors(expression: tirx.PrimExpr) -> set[str]:
    found: set[str] = set()

    def note(load: TensorLoad) -> TensorLoad:
        found.add(str(load.source.name))
        return load

    tvm_ffi.structural_map(expression, [(TensorLoad, note)])
    return found
