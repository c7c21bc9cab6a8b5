"""NaN, infinities, zero divisors and numbers that do not fit, on every target: many operators in one graph,
and the same answers as onnxruntime, or as numpy where onnxruntime depends on the order of elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import model, run, several
from wasmgraph.runtimes.base import Session

ALL_TARGETS = (
    *("wasm32", "wasm32-simd128", "wasm32-relaxed-simd", "wasm32-simd128-threads"),
    *("native", "native-128"),
)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Arrays = dict[str, np.ndarray]
Outcome = tuple[Arrays, Arrays]  # what the graph gave, and what onnxruntime gave
NAN, INF = np.nan, np.inf

ROWS, COLUMNS = 4, 6
floats = st.one_of(st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0]), st.floats(-9, 9, width=32))
matrices = hnp.arrays(np.float32, (ROWS, COLUMNS), elements=floats)


class Network:
    """Nodes without attributes of their own, each with outputs named after its operator."""

    def __init__(self, **constants: np.ndarray) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.outputs: list[str] = []
        self.constants = constants

    def add(self, operator: str, *inputs: str, label: str = "", count: int = 1, **more: object) -> None:
        """One node; its outputs are ``label``, ``label:1`` ..."""
        label = label or operator
        names = [f"{label}:{i}" if i else label for i in range(count)]
        self.nodes.append(helper.make_node(operator, inputs, names, **more))
        self.outputs += names

    def model(self, feeds: Arrays) -> onnx.ModelProto:
        """The model of inputs like these."""
        return model(self.nodes, feeds, self.outputs, self.constants)


def float_network() -> Network:
    net = Network(
        low=np.array(-1, np.float32),
        high=np.array(3, np.float32),
        four=np.array([4]),
        last=np.array([1]),
        slope=np.array([0.5], np.float32),
        weights=np.eye(COLUMNS, dtype=np.float32)[:, :, None, None],
        image=np.array([1, COLUMNS, 2, ROWS // 2]),
    )
    for operator in (
        *("Relu", "Sign", "Elu", "Selu", "Celu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Softplus"),
        *("Shrink", "Abs", "Sigmoid", "Tanh", "Round", "Softmax", "LogSoftmax"),
    ):
        net.add(operator, "x")
    net.add("PRelu", "x", "slope")
    net.add("Clip", "x", "low", "high")
    net.add("Clip", "x", "", "high", label="Clip above")
    for operator in ("Max", "Min"):
        net.add(operator, "x", "y")
        net.add(operator, "y", "x", label=f"{operator} swapped")
        net.add(operator, "low", "x", label=f"{operator} of a constant")
    for operator in ("ReduceMax", "ReduceMin"):
        net.add(operator, "x", "last")
        net.add(operator, "x", label=f"{operator} of all")
    for operator in ("ArgMax", "ArgMin"):
        net.add(operator, "x", axis=1)
        net.add(operator, "x", axis=0, label=f"{operator} of columns", keepdims=0)
        net.add(operator, "x", axis=1, label=f"last {operator}", select_last_index=1)
    net.add("ReduceLogSumExp", "x", "last")
    net.add("Hardmax", "x")
    net.add("TopK", "x", "four", count=2)
    net.add("TopK", "x", "four", count=2, largest=0, label="TopK smallest")
    net.nodes.append(helper.make_node("Reshape", ["x", "image"], ["picture"]))
    net.nodes.append(helper.make_node("Conv", ["picture", "weights"], ["convolved"]))
    net.add("Relu", "convolved", label="Relu of a convolution")
    net.add("Clip", "convolved", "low", "high", label="Clip of a convolution")
    net.add("MaxPool", "picture", kernel_shape=[2, 2])
    net.add("MaxPool", "picture", kernel_shape=[1, 2], pads=[0, 1, 0, 0], label="MaxPool padded", count=2)
    net.add("GlobalMaxPool", "picture")
    return net


def by_numpy(x: np.ndarray) -> Arrays:
    """What is NaN, or where NaN is, as numpy and PyTorch have it."""

    def last(arg: object, data: np.ndarray) -> np.ndarray:
        return COLUMNS - 1 - arg(data[:, ::-1], axis=1)[:, None]  # type: ignore[operator]

    picture = x.reshape(1, COLUMNS, 2, ROWS // 2)
    wide = np.pad(picture, [(0, 0)] * 3 + [(1, 0)], constant_values=-INF)
    pairs = np.stack([wide[..., :-1], wide[..., 1:]])
    found: Arrays = {
        "Clip above": np.minimum(x, np.float32(3)),  # for onnxruntime -inf is below no limit
        "MaxPool": picture.max((2, 3), keepdims=True),
        "MaxPool padded": pairs.max(0),
        "GlobalMaxPool": picture.max((2, 3), keepdims=True),
        "Hardmax": np.eye(COLUMNS, dtype=np.float32)[x.argmax(1)],
    }
    for name, arg, reduce in (("Max", np.argmax, np.max), ("Min", np.argmin, np.min)):
        found[f"Reduce{name}"] = reduce(x, axis=1, keepdims=True)
        found[f"Reduce{name} of all"] = reduce(x, keepdims=True)
        found[f"Arg{name}"] = arg(x, axis=1)[:, None]
        found[f"Arg{name} of columns"] = arg(x, axis=0)
        found[f"last Arg{name}"] = last(arg, x)
    return found


@pytest.fixture(scope="module", params=ALL_TARGETS)
def floating(request: pytest.FixtureRequest) -> Iterator[tuple[Session, onnxruntime.InferenceSession]]:
    made = float_network().model({name: np.zeros((ROWS, COLUMNS), np.float32) for name in "xy"})
    reference = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    with wg.load(wg.compile(made, target=request.param)) as session:
        yield session, reference


@several
@given(x=matrices, y=matrices)
def test_nan_and_infinities_go_where_numpy_and_onnxruntime_let_them(
    floating: tuple[Session, onnxruntime.InferenceSession], x: np.ndarray, y: np.ndarray
) -> None:
    session, reference = floating
    found = session.run({"x": x, "y": y})
    names = [output.name for output in reference.get_outputs()]
    expected = dict(zip(names, reference.run(None, {"x": x, "y": y}), strict=True)) | by_numpy(x)
    del expected["MaxPool padded:1"]  # of equal elements onnxruntime names another
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5, err_msg=name)


WHOLE = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
EDGES = np.array(
    [
        *(NAN, INF, -INF, -0.0, 1.9, -1.9, 127, 128, 255, 256, 300.7, -129, 65536, 2**31 - 1, 2**31),
        *(-(2**31), -(2**31) - 1, 2**32, 3e10, -3e10, 2.0**62, 2.0**63, -(2.0**63), 1.5 * 2**63),
        *(2.0**64, 1e30, -1e30),
    ]
)


def truncated(value: float, dtype: str) -> int:
    """An integer of that dtype, as docs/operators.md says it."""
    bits = 64 if dtype in ("uint32", "int64", "uint64") else 32
    whole = 0 if value != value else int(np.clip(value, -(2.0**70), 2.0**70))
    most = 2**64 - 1 if dtype == "uint64" else 2 ** (bits - 1) - 1
    held = min(max(whole, -(2 ** (bits - 1))), most)
    return int(np.array(held % 2 ** (8 * np.dtype(dtype).itemsize), np.uint64).astype(dtype))


@pytest.mark.parametrize("target", ALL_TARGETS)
def test_a_cast_to_integers_is_the_same_on_every_target_and_while_compiling(target: str) -> None:
    net = Network(f32=EDGES.astype(np.float32), f64=EDGES, one=np.array(1, np.float32))
    for dtype in WHOLE:
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        for kind in ("f32", "f64"):
            net.add("Cast", f"given {kind}", to=to, label=f"{kind} {dtype}")
            net.add("Cast", kind, to=to, label=f"folded {kind} {dtype}")
    feeds = {"given f32": EDGES.astype(np.float32), "given f64": EDGES}
    for name, got in run(net.model(feeds), feeds, target).items():
        kind, dtype = name.removeprefix("folded ").split()
        data = EDGES.astype(np.float32).astype(np.float64) if kind == "f32" else EDGES
        wanted = np.array([truncated(value, dtype) for value in data], dtype)
        np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_quantisation_saturates_and_nan_is_nought() -> None:
    net = Network(scale=np.array(0.5, np.float32))
    for dtype, kind in (("uint8", TensorProto.UINT8), ("int8", TensorProto.INT8)):
        net.add("QuantizeLinear", "x", "scale", label=dtype, output_dtype=kind)
    data = np.array([NAN, INF, -INF, 1e30, -1e30, 3, -3], np.float32)
    found = run(net.model({"x": data}), {"x": data})
    assert found["uint8"].tolist() == [0, 255, 0, 255, 0, 6, 0]
    assert found["int8"].tolist() == [0, 127, -128, 127, -128, 6, -6]


def divisions() -> Network:
    net = Network()
    for dtype in WHOLE:
        for operator, more in (("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1})):
            label = f"{dtype} {'fmod' if more else operator}"
            net.add(operator, f"x {dtype}", f"y {dtype}", label=label, **more)
    return net


def divided(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """numpy's, which gives 0 for a divisor of 0; but quotients are rounded towards zero."""
    if kind != "Div":
        return np.fmod(x, y) if kind == "fmod" else np.mod(x, y)
    rest = np.fmod(x, y)
    return np.where(y == 0, 0, (x - rest) // y).astype(x.dtype)


@pytest.fixture(scope="module", params=ALL_TARGETS)
def dividing(request: pytest.FixtureRequest) -> Iterator[Session]:
    feeds = {f"{side} {dtype}": np.zeros(8, dtype) for dtype in WHOLE for side in "xy"}
    with wg.load(wg.compile(divisions().model(feeds), target=request.param)) as session:
        yield session


@several
@given(data=st.data())
def test_integer_division_never_traps(dividing: Session, data: st.DataObject) -> None:
    feeds = {}
    for spec in dividing.inputs:
        limits = np.iinfo(spec.dtype)
        extremes = st.sampled_from([0, 1, limits.min, limits.max, *([-1] if limits.min else [])])
        elements = st.one_of(extremes, st.integers(limits.min, limits.max))
        feeds[spec.name] = data.draw(hnp.arrays(spec.dtype, 8, elements=elements))
    for name, got in dividing.run(feeds).items():
        dtype, kind = name.split()
        wanted = divided(kind, feeds[f"x {dtype}"], feeds[f"y {dtype}"])
        np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_a_division_of_constants_neither_ends_the_process_nor_is_refused() -> None:
    least = np.iinfo(np.int32).min
    net = Network(
        x=np.array([least, 7, -7], np.int32), y=np.array([-1, 0, 2], np.int32), z=np.array([0], np.int32)
    )
    net.add("Div", "x", "y")
    net.add("Mod", "x", "z")
    net.add("Div", "given", "y", label="by a constant")
    feeds = {"given": np.array([least, 7, -7], np.int32)}
    found = run(net.model(feeds), feeds)
    assert found["Div"].tolist() == found["by a constant"].tolist() == [least, 0, -3]
    assert found["Mod"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_a_branch_that_guards_a_division_may_not_trap(target: str) -> None:
    quotient = helper.make_node("Div", ["x", "y"], ["quotient"])
    zero = helper.make_node("Identity", ["x"], ["unchanged"])
    kind = partial(helper.make_tensor_value_info, elem_type=TensorProto.INT32, shape=[1])
    nodes = [
        helper.make_node("Not", ["nought"], ["divides"]),
        helper.make_node(
            "If",
            ["divides"],
            ["z"],
            then_branch=helper.make_graph([quotient], "then", [], [kind("quotient")]),
            else_branch=helper.make_graph([zero], "else", [], [kind("unchanged")]),
        ),
    ]
    feeds = {"x": np.array([7], np.int32), "y": np.array([0], np.int32), "nought": np.array([True])}
    assert run(model(nodes, feeds, ["z"]), feeds, target)["z"] == [7]
    feeds |= {"y": np.array([2], np.int32), "nought": np.array([False])}
    assert run(model(nodes, feeds, ["z"]), feeds, target)["z"] == [3]
