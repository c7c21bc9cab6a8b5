"""Networks are NHWC inside: transposes stand at their ends alone, and values stay right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import wasmgraph as wg
from tests.compiler.test_schedule import check, several
from tests.conftest import model_of
from wasmgraph.compiler.relax.layout import _matching_runs
from wasmgraph.compiler.schedule import FALLBACK, RULES

CHANNELS = 6


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def shuffled() -> list[onnx.NodeProto]:
    """A channel shuffle of three groups."""
    return [
        node("Reshape", ["c", "parted"], "s1"),
        node("Transpose", ["s1"], "s2", perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["s2", "joined"], "m"),
    ]


# Each takes "c", [1, 6, 4, 5], to "m", and may use the constants below.
MIDDLES: dict[str, list[onnx.NodeProto]] = {
    "bias and activation": [node("Add", ["c", "bias"], "b"), node("LeakyRelu", ["b"], "m")],
    "scalar": [node("Mul", ["c", "half"], "m")],
    "residual": [node("Sigmoid", ["c"], "s"), node("Add", ["c", "s"], "m")],
    "gate": [
        node("ReduceMean", ["c"], "g", axes=[2, 3], keepdims=1),
        node("Sigmoid", ["g"], "h"),
        node("Mul", ["h", "c"], "m"),
    ],
    "concatenation": [node("Relu", ["c"], "r"), node("Concat", ["c", "r"], "m", axis=1)],
    "split": [
        helper.make_node("Split", ["c", "sizes"], ["p", "q"], axis=1),
        node("Concat", ["q", "p"], "m", axis=1),
    ],
    "shuffle": shuffled(),
    "softmax": [node("Softmax", ["c"], "m", axis=1)],
    "max pooling": [node("MaxPool", ["c"], "m", kernel_shape=[2, 2], pads=[0, 1, 1, 0])],
    "average pooling": [node("AveragePool", ["c"], "m", kernel_shape=[2, 3])],
}
CONSTANTS = {
    "w": np.random.default_rng(0).normal(0, 1, (CHANNELS, 3, 1, 1)).astype(np.float32),
    "bias": np.arange(CHANNELS, dtype=np.float32).reshape(1, CHANNELS, 1, 1),
    "half": np.float32(0.5),
    "sizes": np.array([2, 4]),
    "parted": np.array([1, 3, 2, 4, 5]),
    "joined": np.array([1, CHANNELS, 4, 5]),
}


def network(middle: list[onnx.NodeProto]) -> onnx.ModelProto:
    used = {name for n in middle for name in n.input}
    channels = 2 * CHANNELS if middle == MIDDLES["concatenation"] else CHANNELS
    constants = {name: CONSTANTS[name] for name in CONSTANTS if name in used | {"w"}}
    constants["v"] = np.random.default_rng(1).normal(0, 1, (3, channels, 1, 1)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], "c"), *middle, node("Conv", ["m", "v"], "y")]
    return model_of(nodes, {"x": [1, 3, 4, 5]}, ["y"], constants)


@pytest.mark.parametrize("name", MIDDLES)
def test_transposes_stand_at_the_ends_alone(name: str) -> None:
    model = network(MIDDLES[name])
    check(model, "wasm32-simd128", *RULES, FALLBACK)
    steps = [step.operator for step in wg.compile(model).manifest.steps]
    allowed = 3 if name == "shuffle" else 2  # a channel shuffle is one transpose
    assert sum("transpose" in operator for operator in steps) <= allowed, steps
    assert all("transpose" not in operator for operator in steps[1:-1]) or name == "shuffle", steps


def test_a_sum_of_many_is_fused_into_its_producer() -> None:
    middle = [node("Relu", ["c"], "r"), node("Sum", ["c", "r", "bias"], "m")]
    model = network(middle)
    check(model, "wasm32-simd128", *RULES)
    assert len(wg.compile(model).manifest.steps) == 4  # two convolutions between two transposes


@several
@given(
    st.permutations(range(4)),
    st.lists(st.integers(1, 3), min_size=4, max_size=4),
    st.sampled_from(["join", "part", "same"]),
    st.integers(0, 2),
)
def test_reshapes_between_transposes(order: list[int], sizes: list[int], kind: str, where: int) -> None:
    """A transpose moved behind a reshape leaves the values where they were."""
    moved = [sizes[i] for i in order]
    if kind == "join":
        target = [*moved[:where], moved[where] * moved[where + 1], *moved[where + 2 :]]
    elif kind == "part":
        target = [*moved[:where], 1, *moved[where:]]
    else:
        target = moved
    nodes = [
        node("Transpose", ["x"], "t", perm=order),
        node("Neg", ["t"], "n"),
        node("Reshape", ["n", "shape"], "r"),
        node("Exp", ["r"], "y"),
    ]
    model = model_of(nodes, {"x": sizes}, ["y"], {"shape": np.array(target)})
    check(model, "wasm32-simd128", *RULES, FALLBACK)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms())
def test_matching_runs_hold_equally_many_elements(sizes: list[int], random: Any) -> None:
    total = int(np.prod(sizes))
    divisor = random.choice([d for d in range(1, total + 1) if total % d == 0])
    after = [divisor, total // divisor]
    groups = _matching_runs(sizes, after)
    if total == 1:
        assert groups is None
        return
    assert groups is not None
    for one, other in groups:
        assert np.prod([sizes[i] for i in one]) == np.prod([after[i] for i in other])
    assert [i for one, _ in groups for i in one] == [i for i, size in enumerate(sizes) if size != 1]
