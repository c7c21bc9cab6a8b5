"""exp, log, log1p, tanh, erf and the logistic function, over all exponents, infinities and NaN."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from scipy import special

import wasmgraph as wg
from tests.conftest import model_of

# Largest errors in units in the last place, which below the least normal number is that number's.
FUNCTIONS = {
    "Exp": (np.exp, 1.0),
    "Log": (np.log, 0.9),
    "Tanh": (np.tanh, 1.4),
    "Erf": (special.erf, 1.3),
    "Sigmoid": (special.expit, 2.8),
    "Softplus": (lambda x: np.logaddexp(0, x), 1.8),
}
_LEAST = np.float32(2**-126)


def numbers() -> np.ndarray:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 1 << 15, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = [rng.uniform(-a, a, 1 << 14) for a in (0.7, 1.1, 9, 105)]
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1,
        -1,
        1e-45,
        88.72,
        88.73,
        -87.4,
        -103.9,
        -104.1,
        0.66,
        0.95,
        4,
    ]
    return np.concatenate([edges, bits, *near]).astype(np.float32)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, np.ndarray]]:
    """By target, every function of the numbers."""
    x = numbers()
    nodes = [helper.make_node(name, ["x"], [name]) for name in FUNCTIONS]
    model = model_of(nodes, {"x": [x.size]}, list(FUNCTIONS))
    results = {}
    for target in ("wasm32", "wasm32-simd128", "native"):
        with wg.load(wg.compile(model, target=target)) as session:
            results[target] = session.run({"x": x})
    return results


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "native"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_as_stated(found: dict[str, dict[str, np.ndarray]], name: str, target: str) -> None:
    function, most = FUNCTIONS[name]
    got = found[target][name]
    with np.errstate(all="ignore"):
        exact = function(numbers().astype(np.float64))
        rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(rounded))
    np.testing.assert_array_equal(got[np.isinf(rounded)], rounded[np.isinf(rounded)])
    finite = np.isfinite(rounded)
    assert np.isfinite(got[finite]).all()
    unit = np.spacing(np.maximum(np.abs(rounded[finite]), _LEAST)).astype(np.float64)
    assert (np.abs(got[finite] - exact[finite]) / unit).max() <= most
    np.testing.assert_array_equal(np.signbit(got[:2]), np.signbit(rounded[:2]))


def test_scalars_and_vectors_give_the_same_bits(found: dict[str, dict[str, np.ndarray]]) -> None:
    for name in FUNCTIONS:
        one, other = (found[target][name].view(np.uint32) for target in ("wasm32", "wasm32-simd128"))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "wasm32-simd128-threads", "native"])
def test_functions_of_functions_are_right(target: str) -> None:
    """tanh(log(1 + exp(x))) took minutes: TVM put a value in the place of each of its names. Padded, it is
    computed under a condition."""
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["a"]),
        helper.make_node("Log", ["a"], ["l"]),
        helper.make_node("Tanh", ["l"], ["t"]),
        helper.make_node("Mul", ["x", "t"], ["mish"]),
        helper.make_node("Pad", ["mish", "pads"], ["padded"]),
    ]
    constants = {"one": np.float32(1), "pads": np.array([0, 1, 2, 3], np.int64)}
    model = model_of(nodes, {"x": [5, 37]}, ["mish", "padded"], constants)
    x = np.random.default_rng(0).normal(0, 3, (5, 37)).astype(np.float32)
    with wg.load(wg.compile(model, target=target)) as session:
        found = session.run({"x": x})
    exact = x * np.tanh(np.log1p(np.exp(x.astype(np.float64))))
    np.testing.assert_allclose(found["mish"], exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["padded"], np.pad(exact, ((0, 2), (1, 3))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "native"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_may_be_repeated_shared_and_nested(name: str, target: str) -> None:
    nodes = [
        helper.make_node(name, ["x"], ["a"]),
        helper.make_node(name, ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Tanh", ["c"], ["d"]),
        helper.make_node("Add", ["d", "a"], ["e"]),
        helper.make_node("ReduceMax", ["e"], ["f"], axes=[1]),
    ]
    model = model_of(nodes, {"x": [7, 13]}, ["e", "f"])
    x = np.random.default_rng(0).uniform(0.1, 2, (7, 13)).astype(np.float32)
    with wg.load(wg.compile(model, target=target)) as session:
        found = session.run({"x": x})
    a = FUNCTIONS[name][0](x.astype(np.float64))
    exact = np.tanh(a * FUNCTIONS[name][0](a)) + a
    np.testing.assert_allclose(found["e"], exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["f"], exact.max(1, keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
@pytest.mark.parametrize("beyond", [3, (4 << 20) + 1])
def test_a_function_that_padding_guards_reads_nothing_outside(beyond: int, target: str) -> None:
    """Computed without its guard, it read outside of memory; under one guard for all places, it was 0 where
    another place needs it."""
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Pad", ["h", "pads"], ["p"]),
        helper.make_node("Pad", ["t", "more"], ["q"]),
        helper.make_node("Slice", ["q", "start", "end"], ["r"]),
        helper.make_node("Sub", ["p", "r"], ["y"]),
    ]
    constants = {
        "pads": np.array([0, 0, 2, beyond]),
        "more": np.array([0, 0, 2, beyond + 64]),
        "start": np.array([0, 0]),
        "end": np.array([5, beyond + 13]),
    }
    x = np.linspace(-1, 1, 39, dtype=np.float32).reshape(3, 13)
    with wg.load(wg.compile(model_of(nodes, {"x": [3, 13]}, ["y"], constants), target=target)) as session:
        (found,) = session.run({"x": x}).values()
    h = np.exp(np.exp(x.astype(np.float64)))
    np.testing.assert_allclose(found[:3, :13], h - np.tanh(h), rtol=1e-5, atol=1e-6)
    assert not found[3:].any()
    assert not found[:, 13:].any()


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "native"])
def test_functions_of_doubles_are_the_library_s(target: str) -> None:
    nodes = [helper.make_node("Erf", ["x"], ["e"]), helper.make_node("Softplus", ["x"], ["s"])]
    model = model_of(nodes, {"x": [5]}, ["e", "s"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    x = np.linspace(-2, 2, 5)
    with wg.load(wg.compile(model, target=target)) as session:
        found = session.run({"x": x})
    np.testing.assert_allclose(found["e"], special.erf(x), rtol=1e-14)
    np.testing.assert_allclose(found["s"], np.logaddexp(0, x), rtol=1e-14)
