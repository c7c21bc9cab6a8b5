"""Products and convolutions of 8-bit integers, on every target, against exact integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import several
from wasmgraph.wasm.wasmcode import SIMD, opcodes
from wasmgraph.wasm.wasmfile import read_module

TARGETS = ("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "native", "native-128")
DTYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
DOT = (SIMD, 0xBA)  # i32x4.dot_i16x8_s


def drawn(rng: np.random.Generator, dtype: str, shape: Any, extreme: bool) -> np.ndarray:
    """Integers of a dtype; with ``extreme``, only its least and its greatest."""
    limits = np.iinfo(dtype)
    if extreme:
        return rng.choice(np.array([limits.min, limits.max], dtype), shape)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def compiled(node: onnx.NodeProto, data: np.ndarray, constants: dict[str, np.ndarray], target: str) -> Any:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "integers",
        [value("x", DTYPES[str(data.dtype)], data.shape)],
        [value("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return wg.compile(model, target=target)


def run(artifact: Any, data: np.ndarray) -> np.ndarray:
    with wg.load(artifact) as session:
        return session.run({"x": data})["y"]


def product(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    exact = np.matmul(data.astype(np.int64), weight.astype(np.int64))
    return exact.astype(np.int32)  # which wraps as sums in int32 do


@several
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from(list(DTYPES)),
    st.sampled_from(list(DTYPES)),
    st.booleans(),
    st.integers(0, 1 << 30),
)
@pytest.mark.parametrize("target", TARGETS)
def test_a_product_is_exact(
    target: str, rows: int, inner: int, columns: int, left: str, right: str, extreme: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data, weight = drawn(rng, left, (rows, inner), extreme), drawn(rng, right, (inner, columns), extreme)
    zero, own = drawn(rng, left, (), extreme), drawn(rng, right, columns, extreme)
    node = helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"])
    artifact = compiled(node, data, {"w": weight, "zx": zero, "zw": own}, target)
    centred = data.astype(np.int64) - int(zero), weight.astype(np.int64) - own.astype(np.int64)
    assert np.array_equal(run(artifact, data), product(*centred))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("inner", [64, 4096])
def test_extremes_of_long_sums(target: str, inner: int) -> None:
    """The greatest numbers there are, all of one sign: -255 · -255 · K."""
    node = helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"])
    data, weight = np.zeros((2, inner), np.uint8), np.zeros((inner, 16), np.uint8)
    most = np.uint8(255)
    artifact = compiled(node, data, {"w": weight, "zx": most, "zw": most}, target)
    assert (run(artifact, data) == 255 * 255 * inner).all()


def convolved(data: np.ndarray, weight: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """In float64, in which these sums are exact."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "reference",
        [value(n, TensorProto.DOUBLE, None) for n in ("x", "w")],
        [value("y", TensorProto.DOUBLE, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    feeds = {"x": data.astype(np.float64), "w": weight.astype(np.float64)}
    return onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0].astype(np.int32)


@several
@given(
    st.sampled_from([(1, 3, 8), (1, 8, 16), (2, 2, 4), (4, 4, 4), (6, 6, 6), (2, 6, 10)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
    st.integers(0, 1),
    st.booleans(),
    st.integers(0, 1 << 30),
)
@pytest.mark.parametrize("target", TARGETS)
def test_a_convolution_is_exact(
    target: str, channels: tuple[int, int, int], size: int, stride: int, pad: int, extreme: bool, seed: int
) -> None:
    groups, inner, outer = channels
    rng = np.random.default_rng(seed)
    data = drawn(rng, "uint8", (1, inner, 7, 6), extreme)
    weight = drawn(rng, "int8", (outer, inner // groups, size, size), extreme)
    zero = drawn(rng, "uint8", (), extreme)
    attributes = {"group": groups, "strides": [stride] * 2, "pads": [pad] * 4}
    node = helper.make_node("ConvInteger", ["x", "w", "zx"], ["y"], **attributes)
    artifact = compiled(node, data, {"w": weight, "zx": zero}, target)
    expected = convolved(data.astype(np.int64) - int(zero), weight, attributes)
    assert np.array_equal(run(artifact, data), expected)


def test_products_use_the_instruction_for_pairs() -> None:
    rng = np.random.default_rng(3)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    data, weight = drawn(rng, "uint8", (8, 64), False), drawn(rng, "int8", (64, 32), False)
    artifact = compiled(node, data, {"w": weight}, "wasm32-simd128")
    with artifact.path.open("rb") as stream:
        assert opcodes(stream, read_module(stream))[DOT] >= 8
