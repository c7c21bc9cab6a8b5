from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from tests.compiler.importing.frontend.conftest import agrees, model, run, several
from wasmgraph.errors import ModelError

node = helper.make_node
sizes = st.sampled_from([0, 1, 3])


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@several
@given(sizes, sizes, sizes)
def test_operators_over_empty_tensors(m: int, n: int, k: int) -> None:
    """Shapes with zeros in every place; what onnxruntime makes of them."""
    feeds = {
        "a": draw(m, n),
        "b": draw(m, 1),
        "w": draw(n, k),
        "d": draw(3, 2),
        "row": draw(1, k),
        "cache": draw(2, m, 3),
        "new": draw(2, 1, 3),
        "image": draw(n, 2, 5, 5),
        "places": np.arange(m)[:, None],
        "updates": draw(m, 2),
        "yes": np.ones((m, 1), bool),
    }
    ints = {
        "1": 1,
        "[0]": [0],
        "[1]": [1],
        "[k, 0]": [k, 0],
        "[m, n]": [m, n],
        "[0, n]": [0, n],
        "k": [min(k, 2)],
        "[k, 2-k]": [min(k, 2), 2 - min(k, 2)],
        "pads": [0, 1, 0, 2],
    }
    constants = {name: np.array(value, np.int64) for name, value in ints.items()}
    constants |= {"weights": draw(4, 2, 3, 3), "scale": draw(n) + 1, "one": np.array(1, np.float32)}
    nodes = [
        node("Concat", ["cache", "new"], ["concat"], axis=1),
        node("Concat", ["a", "a"], ["twice"], axis=0),
        node("MatMul", ["a", "w"], ["matmul"]),
        node("Gemm", ["a", "w", "row"], ["gemm"]),
        node("Einsum", ["a", "w"], ["einsum"], equation="ij,jk->ki"),
        node("Add", ["a", "b"], ["add"]),
        node("Max", ["a", "b"], ["max"]),
        node("Where", ["yes", "a", "b"], ["where"]),
        node("Softmax", ["a"], ["softmax"], axis=-1),
        node("Relu", ["a"], ["relu"]),
        node("Pad", ["a", "pads", "one"], ["pad"]),
        node("Reshape", ["a", "[0, n]"], ["reshape"]),
        node("Transpose", ["cache"], ["transpose"], perm=[1, 2, 0]),
        node("Expand", ["b", "[m, n]"], ["expand"]),
        node("Tile", ["d", "[k, 0]"], ["tile"]),
        node("Slice", ["a", "k", "[1]", "[0]"], ["slice"]),
        node("Split", ["d", "[k, 2-k]"], ["part", "rest"], axis=1),
        node("TopK", ["d", "k"], ["top", "where_top"]),
        node("Gather", ["d", "places"], ["gather"], axis=0),
        node("GatherND", ["d", "places"], ["gathernd"]),
        node("ScatterND", ["d", "places", "updates"], ["scatternd"]),
        node("ScatterElements", ["d", "places", "b"], ["scatter"], axis=0),
        node("CumSum", ["a", "1"], ["cumsum"]),
        node("LayerNormalization", ["a", "scale"], ["layernorm"]),
        node("Conv", ["image", "weights"], ["conv"]),
        node("MaxPool", ["image"], ["pool"], kernel_shape=[2, 2]),
        node("Shape", ["cache"], ["shape"]),
        node("Cast", ["places"], ["cast"], to=1),
        *(
            node(f"Reduce{kind}", ["cache", "[1]"], [f"reduce{kind}"], keepdims=0)
            for kind in ("Sum", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare", "Mean")
        ),
    ]
    if not n:  # onnxruntime refuses to normalise nothing
        nodes = [made for made in nodes if made.op_type != "LayerNormalization"]
    outputs = [output for made in nodes for output in made.output]
    agrees(model(nodes, feeds, outputs, constants), feeds)


def test_a_recurrent_layer_without_steps_keeps_its_state() -> None:
    feeds = {"x": np.zeros((0, 2, 3), np.float32), "h": draw(1, 2, 4), "c": draw(1, 2, 4) * 2}
    constants = {"w": draw(1, 16, 3), "r": draw(1, 16, 4), "w3": draw(1, 12, 3), "r3": draw(1, 12, 4)}
    nodes = [
        node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y", "yh", "yc"], hidden_size=4),
        node("GRU", ["x", "w3", "r3"], ["g", "gh"], hidden_size=4),
    ]
    found = run(model(nodes, feeds, ["y", "yh", "yc", "g", "gh"], constants), feeds, "native")
    assert found["y"].shape == found["g"].shape == (0, 1, 2, 4)
    np.testing.assert_array_equal(found["yh"], feeds["h"])
    np.testing.assert_array_equal(found["yc"], feeds["c"])
    np.testing.assert_array_equal(found["gh"], np.zeros((1, 2, 4)))


@pytest.mark.parametrize(
    ("operator", "more", "attributes"),
    [
        ("ArgMax", [], {"axis": 1}),
        ("Gather", ["i"], {"axis": 1}),
        ("GatherElements", ["i"], {"axis": 1}),
    ],
)
def test_nothing_is_read_from_a_tensor_without_elements(
    operator: str, more: list, attributes: dict
) -> None:
    feeds = {"x": np.zeros((2, 0), np.float32), "i": np.zeros((2, 1), np.int64)}
    made = model([node(operator, ["x", *more], ["y"], **attributes)], feeds, ["y"])
    with pytest.raises(ModelError, match=rf"'y' \({operator}\): it takes elements of .* \[2, 0\]"):
        run(made, feeds)
