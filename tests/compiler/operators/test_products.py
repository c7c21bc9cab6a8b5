"""Matrix products of any rank, by known and by computed operands, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import wasmgraph as wg
from tests.conftest import model_of


def check(
    left: tuple[int, ...], right: tuple[int, ...], known: bool, target: str, *rules: str, more: bool = True
) -> None:
    """``MatMul``, and an addition and a maximum behind it that may be fused."""
    rng = np.random.default_rng(len(left))
    a, b = (rng.normal(0, 1, shape).astype(np.float32) for shape in (left, right))
    product = np.matmul(a, b)
    bias = rng.normal(0, 1, product.shape[-1:]).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["a", "b"], ["p" if more else "y"])]
    if more:
        nodes += [helper.make_node("Add", ["p", "bias"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
        product = np.maximum(product + bias, 0)
    inputs = {"a": list(left)} if known else {"a": list(left), "b": list(right)}
    constants = {"bias": bias, "b": b} if known else {"bias": bias}
    artifact = wg.compile(model_of(nodes, inputs, ["y"], constants), target=target)
    with wg.load(artifact) as session:
        y = session.run({name: {"a": a, "b": b}[name] for name in inputs})["y"]
    np.testing.assert_allclose(y, product, rtol=1e-4, atol=1e-4)
    used = {step.rule for step in artifact.manifest.steps}
    assert used & set(rules) or not rules, used


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "wasm32-simd128-threads", "native"])
@pytest.mark.parametrize("leading", [(), (5,), (2, 7), (2, 1, 3)])
def test_leading_dimensions_are_rows(leading: tuple[int, ...], target: str) -> None:
    check((*leading, 3, 9), (9, 21), True, target, "dense")


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "native"])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((4, 6), (6, 32)),
        ((2, 3, 5, 8), (2, 3, 8, 16)),
        ((3, 5, 8), (2, 1, 8, 32)),
        ((2, 3, 5, 8), (8, 32)),
        ((5, 8), (2, 3, 8, 64)),
    ],
)
def test_products_of_two_activations(left: tuple[int, ...], right: tuple[int, ...], target: str) -> None:
    check(left, right, False, target, "product")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(1, 19),
    st.integers(1, 12),
    st.integers(1, 35),
    st.lists(st.integers(1, 3), max_size=2),
    st.booleans(),
    st.booleans(),
)
def test_products_of_any_size(
    rows: int, inner: int, columns: int, batch: list[int], known: bool, more: bool
) -> None:
    right = (inner, columns) if known else (*batch[-1:], inner, columns)
    check((*batch, rows, inner), right, known, "wasm32-simd128", more=more)
