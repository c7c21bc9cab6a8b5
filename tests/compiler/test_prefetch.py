"""What is fetched ahead, read off the lowered kernels by running their loops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tvm
import tvm_ffi
from onnx import helper
from tvm import tirx

from tests.conftest import model_of
from wasmgraph.compiler import codegen, passes, prefetch
from wasmgraph.compiler.importer import import_model
from wasmgraph.compiler.schedule import schedule_module
from wasmgraph.targets import get_target

CHANNELS, INNER = 96, 16


def kernel(target_name: str, size: int) -> tirx.PrimFunc:
    """A convolution of 4×7 outputs, ``size`` × ``size``, before loops are divided."""
    weights = np.ones((CHANNELS, INNER, size, size), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2] if size > 1 else [1, 1])
    high, wide = (4, 7) if size == 1 else (2 * 3 + size, 2 * 6 + size)
    model = model_of([node], {"x": [1, INNER, high, wide]}, ["y"], {"w": weights})
    target = get_target(target_name)
    described = codegen.tvm_target(target)
    with described:
        mod = tvm.ir.transform.Sequential(passes.relax_passes(target, True))(import_model(model, {}).module)
        mod, rules = schedule_module(mod, target)
        (name,) = (name for name, rule in rules.items() if "conv2d" in rule)
        settling, _ = codegen.lowering_passes()
        bound = tirx.transform.BindTarget(described)(tvm.IRModule({name: mod[name]}))
        return tvm.ir.transform.Sequential(settling)(bound)[name]


def turns(body: tirx.Stmt, known: list[tuple[tirx.Var, int]]) -> Iterator[tuple[int, list[int]]]:
    """Of each turn of the reduction: the first weight that it reads, and what it fetches."""
    if isinstance(body, tirx.For):
        if body.kind == tirx.ForKind.SERIAL:
            for turn in range(int(body.min), int(body.min) + int(body.extent)):
                yield from turns(body.body, [*known, (body.loop_var, turn)])
    elif isinstance(body, tirx.AttrStmt):
        yield from turns(body.body, known)
    elif isinstance(body, tirx.SeqStmt):
        fetched = [
            at(part.value.args[0].args[0].indices[0], known)
            for part in body.seq
            if isinstance(part, tirx.Evaluate)
        ]
        if fetched:
            found = prefetch._weights(body)
            assert found is not None
            yield at(prefetch._at_zero(found[0].indices[0], prefetch._loops(body)), known), fetched
        for part in body.seq:
            yield from turns(part, known)


def at(index: tvm.ir.Expr, known: list[tuple[tirx.Var, int]]) -> int:
    def value(variable: tirx.Var) -> tvm.ir.Expr:
        numbers = [n for v, n in known if v.same_as(variable)]
        return tirx.const(numbers[0], str(variable.ty.dtype)) if numbers else variable

    return int(tvm.sym.Analyzer().simplify(tvm_ffi.structural_map(index, [(tirx.Var, value)])))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("target", ["native", "native-128"])
def test_a_block_fetches_the_next_one(target: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_OUTGROWN", 0)
    block = get_target(target).tile_channels * INNER * size * size
    fetched: dict[int, set[int]] = {}
    for first, ahead in turns(kernel(target, size).body, []):
        fetched.setdefault(first // block, set()).update(i // 16 for i in ahead)
    assert sorted(fetched) == list(range(CHANNELS * INNER * size * size // block))
    for number, lines in fetched.items():
        behind = range((number + 1) * block // 16, (number + 2) * block // 16)
        assert lines <= set(behind)
        assert len(lines) >= 0.8 * len(behind)


def test_weights_that_the_cache_holds_are_not_fetched() -> None:
    assert not list(turns(kernel("native", 1).body, []))


def test_webassembly_cannot_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_OUTGROWN", 0)
    assert not list(turns(kernel("wasm32-simd128", 1).body, []))
