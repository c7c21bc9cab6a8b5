"""What is fetched ahead, read off the lowered kernels by running their loops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tvm
import tvm_ffi
from onnx import helper
from tvm import tirx
from tvm.ir.expr import TensorLoad

from tests.compiler.lower.test_codegen import lower
from tests.compiler.test_schedule import check
from tests.conftest import model_of
from wasmgraph.compiler.lower import prefetch
from wasmgraph.targets import get_target

CHANNELS, INNER = 96, 16
WHOLE = (CHANNELS, INNER, 1, 1)


def kernel(
    target_name: str, weights: tuple[int, ...], high: int, wide: int, groups: int = 1
) -> tirx.PrimFunc:
    """A convolution of ``high`` × ``wide`` outputs, its loops settled."""
    size = weights[2]
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], group=groups)
    shape = [1, weights[1] * groups, 2 * (high - 1) + size, 2 * (wide - 1) + size]
    model = model_of([node], {"x": shape}, ["y"], {"w": np.ones(weights, np.float32)})
    mod = lower(model, target_name, finish=False)
    (found,) = (f for g, f in mod.functions.items() if "conv2d" in g.name_hint)
    return found


def turns(body: tirx.Stmt, known: list[tuple[tirx.Var, int]]) -> Iterator[tuple[int, list[int]]]:
    """Of each turn of the reduction: the first weight that it reads, and what it fetches."""
    if isinstance(body, tirx.For):
        if body.kind == tirx.ForKind.SERIAL:
            for turn in range(int(body.min), int(body.min) + int(body.extent)):
                yield from turns(body.body, [*known, (body.loop_var, turn)])
    elif isinstance(body, tirx.AttrStmt):
        yield from turns(body.body, known)
    elif isinstance(body, tirx.SeqStmt):
        fetched = [part.value.args[0].args[0] for part in body.seq if isinstance(part, tirx.Evaluate)]
        if fetched:
            weights = fetched[0].source
            inner = prefetch._loops(body)
            (read,) = {
                at(prefetch._at_zero(load.indices[0], inner), known)
                for load in prefetch._within(body, TensorLoad)
                if load.source.same_as(weights) and any(lane(load, loop) for loop in inner)
            }
            yield read, [at(load.indices[0], known) for load in fetched]
        for part in body.seq:
            yield from turns(part, known)


def lane(load: TensorLoad, loop: tirx.For) -> bool:
    return prefetch._mentions(load.indices[0], loop.loop_var)


def at(index: tvm.ir.Expr, known: list[tuple[tirx.Var, int]]) -> int:
    def value(variable: tirx.Var) -> tvm.ir.Expr:
        numbers = [n for v, n in known if v.same_as(variable)]
        return tirx.const(numbers[0], str(variable.ty.dtype)) if numbers else variable

    return int(tvm.sym.Analyzer().simplify(tvm_ffi.structural_map(index, [(tirx.Var, value)])))


@pytest.mark.parametrize("target", ["native", "native-128"])
@pytest.mark.parametrize(
    ("size", "high", "wide"), [(1, 4, 7), (1, 7, 7), (1, 5, 3), (1, 10, 11), (3, 4, 7), (3, 3, 13)]
)
def test_the_tiles_of_a_block_fetch_the_next_one(
    target: str, size: int, high: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_OUTGROWN", 0)
    width = get_target(target).tile_channels
    block = width * INNER * size * size
    fetched: dict[int, list[int]] = {}
    lowered = kernel(target, (CHANNELS, INNER, size, size), high, wide)
    for first, ahead in turns(lowered.body, []):
        fetched.setdefault(first // block, []).extend(ahead)
    assert sorted(fetched) == list(range(CHANNELS * INNER * size * size // block))
    for number, indices in fetched.items():
        begin, end = (number + 1) * block, (number + 2) * block
        assert min(indices) == begin
        assert set(range(begin // 16, end // 16)) <= {index // 16 for index in indices}
        # Tiles whose share was rounded up end a little behind the block.
        assert max(indices) < end + block / width


@pytest.mark.parametrize("target", ["native", "native-128"])
def test_a_depthwise_convolution_fetches_weights_not_pixels(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_OUTGROWN", 0)
    lowered = kernel(target, (CHANNELS, 1, 3, 3), 9, 11, groups=CHANNELS)
    found = list(turns(lowered.body, []))
    assert found
    assert max(index for _, ahead in found for index in ahead) < 2 * CHANNELS * 9


def test_weights_that_the_cache_holds_are_not_fetched() -> None:
    assert not list(turns(kernel("native", WHOLE, 4, 7).body, []))


def test_webassembly_cannot_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_OUTGROWN", 0)
    assert not list(turns(kernel("wasm32-simd128", WHOLE, 4, 7).body, []))


@pytest.mark.parametrize("target", ["native", "native-128"])
@pytest.mark.parametrize("rule", ["pointwise-conv2d", "direct-conv2d", "winograd-conv2d", "dense"])
def test_kernels_that_fetch_are_right(rule: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_OUTGROWN", 0)
    algorithm = "winograd-4" if rule == "winograd-conv2d" else "direct"
    monkeypatch.setattr("wasmgraph.compiler.operators.convolution.choose", lambda *_: algorithm)
    rng = np.random.default_rng(0)
    size = 1 if rule == "pointwise-conv2d" else 3
    if rule == "dense":
        nodes, shape = [helper.make_node("MatMul", ["x", "w"], ["y"])], [5, 70]
        weights = rng.normal(size=(70, 45)).astype(np.float32)
    else:
        nodes, shape = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[size // 2] * 4)], [1, 19, 9, 11]
        weights = rng.normal(size=(45, 19, size, size)).astype(np.float32)
    check(model_of(nodes, {"x": shape}, ["y"], {"w": weights}), target, rule)
