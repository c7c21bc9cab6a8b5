"""Converters against onnxruntime, over shapes and options that ONNX's own cases do not have."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import agrees, model, several
from wasmgraph.errors import UnsupportedOperatorError

ML = {"ai.onnx.ml": 3}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@several
@given(
    kind=st.sampled_from(list(GATES)),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    lengths=st.booleans(),
    initial=st.booleans(),
    odd=st.booleans(),
    clip=st.booleans(),
)
def test_recurrent_layers(
    kind: str,
    direction: str,
    sizes: tuple[int, int, int, int],
    bias: bool,
    lengths: bool,
    initial: bool,
    odd: bool,
    clip: bool,
) -> None:
    steps, batch, width, hidden = sizes
    ways, gates = (2 if direction == "bidirectional" else 1), GATES[kind]
    constants = {
        "w": normal(ways, gates * hidden, width, seed=1),
        "r": normal(ways, gates * hidden, hidden, seed=2),
        "b": normal(ways, 2 * gates * hidden, seed=3),
        "lengths": (np.arange(batch) % steps + 1).astype(np.int32),
        "h": normal(ways, batch, hidden, seed=4),
        "c": normal(ways, batch, hidden, seed=5),
        "p": normal(ways, 3 * hidden, seed=6),
    }
    names = ["w", "r", "b" if bias else "", "lengths" if lengths else "", "h" if initial else ""]
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": hidden}
    if kind == "LSTM":
        names += ["c" if initial else "", "p" if odd else ""]
    elif kind == "GRU":
        attributes["linear_before_reset"] = int(odd)
    elif odd:
        attributes["activations"] = ["Relu"] * ways
    if clip:
        attributes["clip"] = 0.5
    outputs = ["y", "y_h", "y_c"][: 3 if kind == "LSTM" else 2]
    layer = helper.make_node(kind, ["x", *names], outputs, **attributes)
    used = {name: constants[name] for name in names if name}
    feeds = {"x": normal(steps, batch, width)}
    agrees(model([layer], feeds, outputs, used), feeds)


@several
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    largest=st.booleans(),
    integers=st.booleans(),
    data=st.data(),
)
def test_top_k_with_ties(shape: list[int], largest: bool, integers: bool, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    k = data.draw(st.integers(1, shape[axis]))
    x = np.random.default_rng(1).integers(-3, 3, shape).astype(np.int64 if integers else np.float32)
    top = helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=axis, largest=int(largest))
    agrees(model([top], {"x": x}, ["v", "i"], {"k": np.array([k])}), {"x": x})


@several
@given(
    length=st.integers(1, 9), exclusive=st.integers(0, 1), reverse=st.integers(0, 1), axis=st.integers(0, 1)
)
def test_cumulative_sums(length: int, exclusive: int, reverse: int, axis: int) -> None:
    x = normal(*((length, 3) if axis == 0 else (3, length)))
    total = helper.make_node("CumSum", ["x", "axis"], ["y"], exclusive=exclusive, reverse=reverse)
    agrees(model([total], {"x": x}, ["y"], {"axis": np.array(axis)}), {"x": x})


@several
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    coordinates=st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
    rounding=st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    sizes=st.tuples(st.integers(2, 9), st.integers(2, 9)),
)
def test_resize(mode: str, coordinates: str, rounding: str, sizes: tuple[int, int]) -> None:
    x = normal(1, 2, 5, 4)
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    resize = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    agrees(model([resize], {"x": x}, ["y"], {"sizes": np.array([1, 2, *sizes])}), {"x": x})


@several
@given(
    reduction=st.sampled_from(["none", "add", "mul", "max", "min"]),
    rows=st.integers(1, 4),
    whole=st.booleans(),
)
def test_scatter(reduction: str, rows: int, whole: bool) -> None:
    x, places = normal(4, 3), np.array([[3], [-4], [1], [2]])[:rows]
    if whole:
        node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
        feeds = {"x": x, "i": places, "u": normal(rows, 3, seed=1)}
    else:
        node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], reduction=reduction)
        feeds = {"x": x, "i": np.tile(places, (1, 2)), "u": normal(rows, 2, seed=1)}
    agrees(model([node], feeds, ["y"]), feeds)


# On a processor without VNNI onnxruntime adds two products of bytes in 16 bits, which saturate if
# weights are larger than this: it is then off by 49 of 255, and we are not.
_LARGEST = 63


@several
@given(
    kind=st.sampled_from([np.int8, np.uint8]),
    channels=st.integers(1, 5),
    each=st.booleans(),
    bias=st.booleans(),
    pad=st.integers(0, 1),
)
def test_quantised_convolutions(
    kind: type[np.generic], channels: int, each: bool, bias: bool, pad: int
) -> None:
    rng, limits = np.random.default_rng(2), np.iinfo(kind)
    outer = 4
    size = outer if each else 1
    constants = {
        "xs": np.array(0.05, np.float32),
        "xz": np.array(3, kind),
        "w": rng.integers(-_LARGEST, _LARGEST, (outer, channels, 3, 3)).astype(np.int8),
        "ws": rng.uniform(0.01, 0.05, size).astype(np.float32).reshape(() if not each else size),
        "wz": np.zeros(() if not each else size, np.int8),
        "ys": np.array(0.3, np.float32),
        "yz": np.array(7, kind),
        "b": rng.integers(-500, 500, outer).astype(np.int32),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", *(["b"] if bias else [])]
    conv = helper.make_node("QLinearConv", names, ["y"], pads=[pad] * 4)
    x = rng.integers(limits.min, limits.max, (1, channels, 6, 5)).astype(kind)
    used = {name: constants[name] for name in names[1:]}
    agrees(model([conv], {"x": x}, ["y"], used), {"x": x}, atol=1)  # onnxruntime's rounding of ties


def test_quantised_by_pairs_of_operators() -> None:
    """As most tools write int8 networks: between QuantizeLinear and DequantizeLinear."""
    constants = {
        "s": np.array(0.1, np.float32),
        "z": np.array(-5, np.int8),
        "w": np.random.default_rng(1).integers(-_LARGEST, _LARGEST, (8, 3, 3, 3)).astype(np.int8),
        "ws": np.linspace(0.01, 0.02, 8).astype(np.float32),
        "wz": np.zeros(8, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw"], ["c"], pads=[1] * 4),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    x = normal(1, 3, 7, 7)
    agrees(model(nodes, {"x": x}, ["y"], constants), {"x": x}, atol=1)


def tree(seed: int, features: int, depth: int) -> dict[str, list[Any]]:
    """Random complete trees, with their leaves' nodes."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, list[Any]] = {
        name: []
        for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    leaves: list[tuple[int, int]] = []
    for number in range(3):
        for n in range(2 ** (depth + 1) - 1):
            leaf = n >= 2**depth - 1
            row = (
                number,
                n,
                int(rng.integers(features)),
                float(np.float32(rng.normal())),
                "LEAF" if leaf else "BRANCH_LEQ",
                0 if leaf else 2 * n + 1,
                0 if leaf else 2 * n + 2,
            )
            for column, value in zip(nodes.values(), row, strict=True):
                column.append(value)
            if leaf:
                leaves.append((number, n))
    found = {f"nodes_{name}": column for name, column in nodes.items()}
    return found | {"leaves": leaves}


@pytest.mark.parametrize("how", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_tree_regressors(how: str) -> None:
    attributes = tree(1, 4, 3)
    leaves = attributes.pop("leaves")
    weights = np.random.default_rng(2).normal(0, 1, 2 * len(leaves)).astype(np.float32)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=2,
        aggregate_function=how,
        base_values=[0.5, -0.25],
        target_treeids=[t for t, _ in leaves for _ in range(2)],
        target_nodeids=[n for _, n in leaves for _ in range(2)],
        target_ids=[0, 1] * len(leaves),
        target_weights=weights.tolist(),
        **attributes,
    )
    x = normal(17, 4)
    agrees(model([node], {"x": x}, ["y"], opsets=ML), {"x": x})


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_tree_and_linear_classifiers(transform: str) -> None:
    """Of three classes: of two with a score each onnxruntime does not take the higher, as ONNX says."""
    classes = 3
    attributes = tree(3, 4, 2)
    leaves = attributes.pop("leaves")
    rng = np.random.default_rng(4)
    trees = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_int64s=[10 * c for c in range(classes)],
        post_transform=transform,
        class_treeids=[t for t, _ in leaves for _ in range(classes)],
        class_nodeids=[n for _, n in leaves for _ in range(classes)],
        class_ids=list(range(classes)) * len(leaves),
        class_weights=rng.uniform(0, 1, classes * len(leaves)).astype(np.float32).tolist(),
        **attributes,
    )
    linear = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label2", "scores2"],
        domain="ai.onnx.ml",
        classlabels_ints=[10 * c for c in range(classes)],
        post_transform=transform,
        coefficients=rng.normal(0, 1, 4 * classes).astype(np.float32).tolist(),
        intercepts=rng.normal(0, 1, classes).astype(np.float32).tolist(),
    )
    x = normal(17, 4)
    outputs = ["label", "scores", "label2", "scores2"]
    made = model([trees, linear], {"x": x}, outputs, opsets=ML)
    agrees(made, {"x": x})


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
def test_a_classifier_of_two_classes_by_one_score(transform: str) -> None:
    rng, attributes = np.random.default_rng(6), tree(5, 4, 2)
    leaves = attributes.pop("leaves")
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_int64s=[0, 1],
        class_treeids=[t for t, _ in leaves],
        class_nodeids=[n for _, n in leaves],
        class_ids=[0] * len(leaves),
        post_transform=transform,
        class_weights=rng.uniform(-0.3 * (transform != "NONE"), 0.3, len(leaves))
        .astype(np.float32)
        .tolist(),
        **attributes,
    )
    x = normal(17, 4)
    agrees(model([node], {"x": x}, ["label", "scores"], opsets=ML), {"x": x})


def test_strings_are_refused() -> None:
    node = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_strings=["cat", "dog"],
        coefficients=[0.5] * 8,
        intercepts=[0.0, 0.0],
    )
    made = model([node], {"x": normal(2, 4)}, ["scores"], opsets=ML)
    with pytest.raises(UnsupportedOperatorError, match="strings; give it integers"):
        wg.compile(made)


@several
@given(length=st.sampled_from([1, 2, 12, 15, 37, 64]), used=st.integers(1, 40), onesided=st.integers(0, 1))
def test_fourier_transforms(length: int, used: int, onesided: int) -> None:
    x = normal(2, used, 1)
    dft = helper.make_node("DFT", ["x", "n", "axis"], ["y"], onesided=onesided)
    agrees(model([dft], {"x": x}, ["y"], {"n": np.array(length), "axis": np.array(1)}), {"x": x}, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64])
def test_arithmetic_in_every_dtype(dtype: type[np.generic]) -> None:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Greater", ["sum", "b"], ["more"]),
        helper.make_node("Where", ["more", "sum", "a"], ["y"]),
    ]
    feeds = {"a": np.arange(12).reshape(3, 4).astype(dtype), "b": np.array([[3]]).astype(dtype)}
    made = model(nodes, feeds, ["y", "more"])
    from onnx.reference import ReferenceEvaluator

    from tests.compiler.importing.frontend.conftest import run

    found = run(made, feeds)
    for name, wanted in zip(["y", "more"], ReferenceEvaluator(made).run(None, feeds), strict=True):
        assert found[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found[name], wanted)


def attention(heads: int = 2, width: int = 8, length: int = 5) -> onnx.ModelProto:
    """A transformer's block as PyTorch exports it: projections, attention, normalisation, GELU."""
    constants = {
        "wq": normal(width, 3 * width, seed=1),
        "wo": normal(width, width, seed=2),
        "w1": normal(width, 4 * width, seed=3),
        "w2": normal(4 * width, width, seed=4),
        "g": np.ones(width, np.float32),
        "b": np.zeros(width, np.float32),
        "apart": np.array([1, length, 3, heads, width // heads]),
        "together": np.array([1, length, width]),
        "scale": np.array((width // heads) ** -0.5, np.float32),
        "first": np.array(0),
        "second": np.array(1),
        "third": np.array(2),
        "half": np.array(0.5, np.float32),
        "one": np.array(1, np.float32),
        "root": np.array(2**-0.5, np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n1"]),
        helper.make_node("MatMul", ["n1", "wq"], ["qkv"]),
        helper.make_node("Reshape", ["qkv", "apart"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4]),
        helper.make_node("Gather", ["t", "first"], ["q"]),
        helper.make_node("Gather", ["t", "second"], ["k"]),
        helper.make_node("Gather", ["t", "third"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "together"], ["joined"]),
        helper.make_node("MatMul", ["joined", "wo"], ["out"]),
        helper.make_node("Add", ["x", "out"], ["res"]),
        helper.make_node("LayerNormalization", ["res", "g", "b"], ["n2"]),
        helper.make_node("MatMul", ["n2", "w1"], ["up"]),
        helper.make_node("Mul", ["up", "root"], ["e"]),
        helper.make_node("Erf", ["e"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["plus"]),
        helper.make_node("Mul", ["up", "plus"], ["gelu2"]),
        helper.make_node("Mul", ["gelu2", "half"], ["gelu"]),
        helper.make_node("MatMul", ["gelu", "w2"], ["down"]),
        helper.make_node("Add", ["res", "down"], ["y"]),
    ]
    return model(nodes, {"x": normal(1, length, width)}, ["y"], constants)


@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "native"])
def test_a_transformers_block(target: str) -> None:
    agrees(attention(), {"x": normal(1, 5, 8)}, target)


@several
@given(
    rank=st.integers(1, 2),
    group=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=2),
    kernel=st.lists(st.integers(1, 5), min_size=2, max_size=2),
    strides=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    dilation=st.integers(1, 2),
    data=st.data(),
)
def test_transposed_convolutions(
    rank: int,
    group: int,
    channels: tuple[int, int],
    sizes: list[int],
    kernel: list[int],
    strides: list[int],
    dilation: int,
    data: st.DataObject,
) -> None:
    inner, outer = channels
    pads, extra = [], []
    for size, k, s in zip(sizes[:rank], kernel, strides, strict=False):
        whole = s * (size - 1) + (k - 1) * dilation + 1
        before = data.draw(st.integers(0, min(k - 1, whole - 1)))
        pads.append((before, data.draw(st.integers(0, min(k - 1, whole - 1 - before)))))
        extra.append(data.draw(st.integers(0, s - 1)))
    layer = helper.make_node(
        "ConvTranspose",
        ["x", "w", *(["b"] if data.draw(st.booleans()) else [])],
        ["y"],
        group=group,
        strides=strides[:rank],
        dilations=[dilation] * rank,
        pads=[before for before, _ in pads] + [after for _, after in pads],
        output_padding=extra,
    )
    x = normal(2, inner * group, *sizes[:rank])
    weights = {
        "w": normal(inner * group, outer, *kernel[:rank], seed=1),
        "b": normal(outer * group, seed=2),
    }
    used = {name: value for name, value in weights.items() if name in layer.input}
    agrees(model([layer], {"x": x}, ["y"], used), {"x": x})


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_cubic_resize_of_integers_rounds_as_the_reference_does(dtype: type) -> None:
    """It was truncated; onnxruntime has no kernel for it."""
    x = np.random.default_rng(0).integers(0, 120, (1, 1, 4, 4)).astype(dtype)
    resize = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="cubic")
    proto = model([resize], {"x": x}, ["y"], {"sizes": np.array([1, 1, 7, 5])})
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    for target in ("native", "wasm32-simd128"):
        with wg.load(wg.compile(proto, target=target)) as session:
            np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


def test_a_slope_beyond_numbers_leaves_positive_elements_alone() -> None:
    """inf · 0 made them NaN."""
    x = np.array([[-2.0, -0.0, 0.0, 3.0, np.inf, np.nan]], np.float32)
    slopes = np.array([np.inf, np.nan, np.inf, np.nan, np.inf, 2], np.float32)
    node = helper.make_node("PRelu", ["x", "s"], ["y"])
    agrees(model([node], {"x": x}, ["y"], {"s": slopes}), {"x": x})


@pytest.mark.parametrize(
    ("kind", "what"), [("Pad", "pads"), ("Split", "split"), ("CumSum", "axis"), ("ReduceSum", "axes")]
)
def test_a_computed_input_that_decides_shapes_is_named(
    kind: str, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    x, by = normal(2, 3), np.array([1, 1, 1, 1] if kind == "Pad" else [1, 1] if kind == "Split" else [1])
    by = by[0] if kind == "CumSum" else by
    outputs = ["y", "z"] if kind == "Split" else ["y"]
    node = helper.make_node(kind, ["x", "by"], outputs, name="here")
    proto = model([node], {"x": x, "by": np.asarray(by, np.int64)}, outputs)
    with pytest.raises(UnsupportedOperatorError, match=f"'here'.*{kind} takes its '{what}' from data"):
        wg.compile(proto, target="native")
    gc.collect()
    assert "BlockBuilder" not in capfd.readouterr().err


@pytest.mark.parametrize("exponent", [1, 2, 3, 4, 0.5, -1, 2.5])
def test_powers_of_known_exponents(exponent: float) -> None:
    x = np.array([[-2.5, -0.0, 0.0, 1e20, 3.0, np.inf, -np.inf, np.nan]], np.float32)
    node = helper.make_node("Pow", ["x", "e"], ["y"])
    for constant in (np.float32(exponent), np.full((1,), exponent, np.float32)):
        agrees(model([node], {"x": x}, ["y"], {"e": constant}), {"x": x})
