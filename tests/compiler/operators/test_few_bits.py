"""MatMulNBits: weights of four and eight bits, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import several
from wasmgraph.compiler.operators.few_bits import FewBits

TARGETS = ("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "native", "native-128")


def product(
    rows: int | str, inner: int, columns: int, bits: int, block: int, zeros: bool, seed: int
) -> onnx.ModelProto:
    rng, blocks = np.random.default_rng(seed), -(-inner // block)
    constants = {
        "b": rng.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.1, columns * blocks).astype(np.float32),
    }
    if zeros:
        constants["z"] = rng.integers(0, 256, columns * -(-blocks * bits // 8)).astype(np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        K=inner,
        N=columns,
        bits=bits,
        block_size=block,
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "few_bits",
        [value("x", TensorProto.FLOAT, [rows, inner])],
        [value("y", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def expected(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@several
@given(
    st.integers(1, 11),
    st.integers(1, 100),
    st.integers(1, 40),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32]),
    st.booleans(),
    st.integers(0, 1 << 30),
)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_agrees(
    target: str, rows: int, inner: int, columns: int, bits: int, block: int, zeros: bool, seed: int
) -> None:
    model = product(rows, inner, columns, bits, block, zeros, seed)
    x = np.random.default_rng(seed).normal(0, 1, (rows, inner)).astype(np.float32)
    artifact = wg.compile(model, target=target)
    assert [step.rule for step in artifact.manifest.steps] == ["few-bits"]
    with wg.load(artifact) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], expected(model, x), rtol=1e-4, atol=1e-4)


def test_rows_may_be_open() -> None:
    model = product("n", 64, 24, 4, 32, True, 1)
    with wg.load(wg.compile(model, dims={"n": (0, 9)})) as session:
        for rows in (1, 4, 7, 9):
            x = np.random.default_rng(rows).normal(0, 1, (rows, 64)).astype(np.float32)
            found = session.run({"x": x})["y"]
            np.testing.assert_allclose(found, expected(model, x), rtol=1e-4, atol=1e-4)
        assert session.run({"x": np.zeros((0, 64), np.float32)})["y"].shape == (0, 24)


def test_there_may_be_no_rows() -> None:
    with wg.load(wg.compile(product(0, 64, 24, 4, 32, True, 1))) as session:
        assert session.run({"x": np.zeros((0, 64), np.float32)})["y"].shape == (0, 24)


def test_weights_keep_their_bits() -> None:
    artifact = wg.compile(product(1, 256, 256, 4, 32, False, 2))
    assert artifact.manifest.param_bytes < 256 * 256 // 2 + 256 * 8 * 4 + 1024


@several
@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from([4, 8]), st.integers(0, 1 << 30))
def test_packing_is_undone(columns: int, inner: int, bits: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, (columns, inner)).astype(np.uint8)
    what = FewBits(1, inner, columns, bits, 16, False)
    words = what.packed(numbers).view(np.uint32)
    for column in range(columns):
        for k in range(inner):
            word = words[column // 16, k // what.step, column % 16]
            assert (int(word) >> (bits * (k % what.step))) & ((1 << bits) - 1) == numbers[column, k]
