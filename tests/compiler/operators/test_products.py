"""Matrix products of any rank, by known and by computed operands, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import agrees, model
from tests.conftest import model_of
from wasmgraph.compiler.operators.packing import few_rows_block
from wasmgraph.targets import get_target


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
        ((4, 6), (6, 13)),
        ((3, 2, 4), (3, 4, 50)),
        ((7,), (7, 9)),
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


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "native"])
@pytest.mark.parametrize("right", [(8, 1), (8,), (2, 8, 1)])
def test_a_known_matrix_on_the_left_of_a_column(right: tuple[int, ...], target: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (5, 8)).astype(np.float32), rng.normal(0, 1, right).astype(np.float32)
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    artifact = wg.compile(model_of([node], {"b": list(right)}, ["y"], {"a": a}), target=target)
    with wg.load(artifact) as session:
        np.testing.assert_allclose(session.run({"b": b})["y"], np.matmul(a, b), rtol=1e-4, atol=1e-4)
    assert "dense" in {step.rule for step in artifact.manifest.steps}


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "native"])
@pytest.mark.parametrize("known", [True, False])
def test_products_of_integers(known: bool, target: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-(2**31), 2**31, shape).astype(np.int32) for shape in ((2, 3, 7), (7, 11)))
    given = {"a": a} if known else {"a": a, "b": b}
    proto = model([helper.make_node("MatMul", ["a", "b"], ["y"])], given, ["y"], {"b": b} if known else {})
    artifact = wg.compile(proto, target=target)
    with wg.load(artifact) as session:
        np.testing.assert_array_equal(session.run(given)["y"], a @ b)  # modulo 2^32
    assert {step.rule for step in artifact.manifest.steps} & {"dense", "product"}


EQUATIONS = {
    "bij,bkj->bik": ((2, 5, 6), (2, 3, 6)),
    "bhid,bhjd->bhij": ((2, 3, 4, 6), (2, 3, 5, 6)),
    "bqhd,bkhd->bhqk": ((2, 4, 3, 6), (2, 5, 3, 6)),
    "bhqk,bkhd->bqhd": ((2, 3, 4, 5), (2, 5, 3, 6)),
    "ijk,kl->lij": ((2, 3, 4), (4, 5)),
    "ab,bc->ca": ((2, 3), (3, 4)),
    "ab,cb->ac": ((2, 3), (4, 3)),
    "abc,cd->ad": ((2, 3, 4), (4, 5)),
    "i,i->": ((4,), (4,)),
    "ij,ij->i": ((3, 4), (3, 4)),
    "i,j->ij": ((3,), (4,)),
    "ii,ij->j": ((3, 3), (3, 4)),
    "...ij,...jk->...ik": ((2, 3, 4), (2, 4, 5)),
    "ij , jk": ((3, 4), (4, 5)),
    "ij,jk->ik": ((3, 1), (4, 5)),
}


@pytest.mark.parametrize(
    ("equation", "known"), [*((e, False) for e in EQUATIONS), ("bij,bkj->bik", True), ("ab,cb->ac", True)]
)
def test_einsum(equation: str, known: bool) -> None:
    left, right = EQUATIONS[equation]
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 1, shape).astype(np.float32) for shape in (left, right))
    given = {"a": a} if known else {"a": a, "b": b}
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation=equation)
    agrees(model([node], given, ["y"], {"b": b} if known else {}), given)


@pytest.mark.parametrize("equation", list(EQUATIONS)[:8])
def test_an_einsum_that_is_a_product_is_scheduled_as_one(equation: str) -> None:
    left, right = EQUATIONS[equation]
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation=equation)
    artifact = wg.compile(model_of([node], {"a": list(left), "b": list(right)}, ["y"]))
    assert {step.rule for step in artifact.manifest.steps if step.product} == {"product"}


@pytest.mark.parametrize("target", ["wasm32-simd128", "wasm32-relaxed-simd", "wasm32-simd128-threads"])
@pytest.mark.parametrize("rows", [2, 3, 8, 16, 17])
def test_few_rows_have_tiles_of_half_the_channels(rows: int, target: str) -> None:
    """Their weights come from memory, and more of the arithmetic overlaps with it."""
    check((rows, 9), (9, 40), True, target, "dense")
    assert few_rows_block(rows, get_target(target)) == (8 if 2 < rows <= 16 else None)
    assert few_rows_block(rows, get_target("native")) is None
