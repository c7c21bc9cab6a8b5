"""The walk: what is known is computed, control flow is followed, functions are expanded, errors say
where.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import agrees, model, run
from wasmgraph.compiler import CompileLog
from wasmgraph.compiler.importing.frontend import half
from wasmgraph.compiler.importing.frontend.converters import control
from wasmgraph.compiler.importing.static_inputs import static_inputs
from wasmgraph.errors import ModelError, UnboundDimensionError, UnsupportedOperatorError

X = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, **attributes)


def test_a_kernel_is_not_taken_for_a_function_of_the_c_library() -> None:
    """A kernel called erf stood in for libm's erf: the module was invalid."""
    agrees(model([node("Erf", ["x"], ["y"])], {"x": X}, ["y"]), {"x": X})


def test_shapes_are_followed_through_arithmetic() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["n"]),
        node("Mul", ["n", "two"], ["m"]),
        node("Concat", ["m", "rest"], ["wanted"], axis=0),
        node("Reshape", ["x", "wanted"], ["y"]),
    ]
    constants = {"one": np.array([0]), "two": np.array([3]), "rest": np.array([-1])}
    made = model(nodes, {"x": X}, ["y"], constants)
    agrees(made, {"x": X})


def test_an_output_that_no_input_reaches_is_said_to_be_constant() -> None:
    made = model([node("Shape", ["x"], ["s"]), node("Relu", ["x"], ["y"])], {"x": X}, ["s", "y"])
    log = CompileLog()
    wg.compile(made, log=log)
    assert log.constant_outputs == ("s",)
    assert run(made, {"x": X})["s"].tolist() == [2, 3]


def branch(name: str, kind: str, *more: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    return helper.make_graph([node(kind, ["x", *more], ["out"])], name, [], [output])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("condition", [True, False])
def test_if_takes_a_branch_or_chooses_between_both(known: bool, condition: bool) -> None:
    chosen = node("If", ["c"], ["y"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg"))
    c = {"c": np.array(condition)}
    feeds = {"x": X} | ({} if known else c)
    agrees(model([chosen], feeds, ["y"], c if known else None), feeds)


def loop_body(condition: str = "go") -> onnx.GraphProto:
    """Doubles, and gives the turn's number times the state."""
    value = helper.make_tensor_value_info
    nodes = [
        node("Add", ["state", "state"], ["new"]),
        node("Cast", ["turn"], ["number"], to=TensorProto.FLOAT),
        node("Mul", ["number", "new"], ["scan"]),
        node("Less", ["turn", "most"], ["go"]),
        node("ReduceSum", ["new"], ["sum"], keepdims=0),
        node("Less", ["sum", "limit"], ["depends"]),
    ]
    inputs = [
        value("turn", TensorProto.INT64, []),
        value("was", TensorProto.BOOL, []),
        value("state", TensorProto.FLOAT, [2, 3]),
    ]
    outputs = [
        value(condition, TensorProto.BOOL, []),
        value("new", TensorProto.FLOAT, [2, 3]),
        value("scan", TensorProto.FLOAT, [2, 3]),
    ]
    numbers = {"most": np.array(2), "limit": np.array(1e9, np.float32)}
    constants = [numpy_helper.from_array(v, k) for k, v in numbers.items()]
    return helper.make_graph(nodes, "body", inputs, outputs, constants)


def test_a_loop_is_walked_until_its_condition_ends_it() -> None:
    loop = node("Loop", ["count", "yes", "x"], ["last", "all"], body=loop_body())
    constants = {"count": np.array(9), "yes": np.array(True)}
    made = model([loop], {"x": X}, ["last", "all"], constants)
    agrees(made, {"x": X})
    assert run(made, {"x": X})["all"].shape == (3, 2, 3)


def test_a_loop_that_ends_on_data_or_never_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = node("Loop", ["", "", "x"], ["last", "all"], name="spin", body=loop_body("depends"))
    with pytest.raises(UnsupportedOperatorError, match=r"node 'spin' \(Loop\).*condition.*data"):
        wg.compile(model([loop], {"x": X}, ["last"]))
    monkeypatch.setattr(control, "MOST_TURNS", 40)
    forever = node("Loop", ["", "", "x"], ["last", "all"], name="spin", body=loop_body("was"))
    with pytest.raises(UnsupportedOperatorError, match="more than 40 times"):
        wg.compile(model([forever], {"x": X}, ["last"]))


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_in_either_direction(backwards: int) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", ["sum", "row"], ["new"]), node("Identity", ["new"], ["each"])],
        "body",
        [value("sum", TensorProto.FLOAT, [2]), value("row", TensorProto.FLOAT, [2])],
        [value("new", TensorProto.FLOAT, [2]), value("each", TensorProto.FLOAT, [2])],
    )
    scan = node(
        "Scan",
        ["zero", "x"],
        ["last", "all"],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_input_directions=[backwards],
        scan_output_directions=[backwards],
    )
    made = model([scan], {"x": X}, ["last", "all"], {"zero": np.zeros(2, np.float32)})
    agrees(made, {"x": X})


def test_functions_of_a_model_with_attributes_of_their_own() -> None:
    inner = node("LeakyRelu", ["a"], ["b"])
    kind = onnx.AttributeProto.FLOAT
    inner.attribute.append(onnx.AttributeProto(name="alpha", type=kind, ref_attr_name="slope"))
    function = helper.make_function(
        "my.ops", "Twice", ["a"], ["c"], [inner, node("Add", ["b", "b"], ["c"])],
        [helper.make_opsetid("", 21)], ["slope"],
    )  # fmt: skip
    call = helper.make_node("Twice", ["x"], ["y"], domain="my.ops", slope=0.5)
    made = model([call], {"x": X}, ["y"], opsets={"my.ops": 1}, functions=[function])
    made.graph.output[0].type.CopyFrom(made.graph.input[0].type)
    agrees(made, {"x": X})


def test_what_is_missing_in_branches_and_functions_is_named_as_well() -> None:
    chosen = node(
        "If",
        ["c"],
        ["y"],
        then_branch=branch("a", "RandomNormalLike"),
        else_branch=branch("b", "RandomUniformLike"),
    )
    made = model([chosen], {"x": X, "c": np.array(True)}, ["y"])
    with pytest.raises(UnsupportedOperatorError, match=r"RandomNormalLike at .*; RandomUniformLike at"):
        wg.compile(made)


def test_a_shape_that_depends_on_data_is_refused_at_its_node() -> None:
    made = model([node("ConstantOfShape", ["x"], ["y"], name="fill")], {"x": np.array([2, 3])}, ["y"])
    with pytest.raises(
        UnboundDimensionError,
        match=r"test: node 'fill' \(ConstantOfShape\).*depends on data.*--dim y_count",
    ):
        wg.compile(made)


def test_a_sequence_as_an_output_is_refused() -> None:
    made = model([node("SequenceConstruct", ["x"], ["y"])], {"x": X}, ["y"])
    with pytest.raises(ModelError, match="'y' is a sequence"):
        wg.compile(made)


def test_a_dtype_that_no_input_can_have_is_refused() -> None:
    made = model([node("Relu", ["x"], ["y"])], {"x": X}, ["y"])
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(ModelError, match="'x' is a tensor of bfloat16; .* can be of float32"):
        wg.compile(made)


def test_tensors_without_elements() -> None:
    nodes = [node("Slice", ["x", "a", "a"], ["none"]), node("Concat", ["none", "x"], ["y"], axis=0)]
    agrees(model(nodes, {"x": X}, ["y"], {"a": np.array([1])}), {"x": X})


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_every_float16_survives_and_float32_is_rounded_to_it(target: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint64).astype(np.uint32)
    near = every.astype(np.float32) * np.float32(1 + 2**-11)  # ties, and what is close to them
    wide = np.concatenate([bits.view(np.float32), near])
    nodes = [node("Identity", ["h"], ["same"]), node("Cast", ["w"], ["cast"], to=TensorProto.FLOAT16)]
    found = run(model(nodes, {"h": every, "w": wide}, ["same", "cast"]), {"h": every, "w": wide}, target)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = wide.astype(np.float16)
    for got, wanted in ((found["same"], every), (found["cast"], expected)):
        numbers = ~np.isnan(wanted)
        assert np.isnan(got[~numbers]).all()
        np.testing.assert_array_equal(got[numbers].view(np.uint16), wanted[numbers].view(np.uint16))
    assert half.decode.__doc__


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
def test_extremes_of_infinities(kind: str) -> None:
    """TVM begins a maximum with the least finite number."""
    limit = -np.inf if kind == "ReduceMax" else np.inf
    x = np.full((3, 4), limit, np.float32)
    agrees(model([node(kind, ["x", "axes"], ["y"])], {"x": x}, ["y"], {"axes": np.array([1])}), {"x": x})


def test_static_inputs_are_those_that_decide_shapes() -> None:
    feeds = {"x": X, "k": np.array([1]), "n": np.array([2]), "i": np.array([0])}
    nodes = [
        node("Add", ["n", "n"], ["twice"]),
        node("Tile", ["i", "twice"], ["many"]),
        node("TopK", ["x", "k"], ["v", "p"]),
        node("Shape", ["x"], ["s"]),
        node("Expand", ["v", "s"], ["y"]),
    ]
    assert static_inputs(model(nodes, feeds, ["y", "many", "p"])) == {"k", "n"}


def test_what_comes_of_a_tuple_meets_a_constant() -> None:
    """A normalisation that nothing folds gives one of a tuple; TVM's Mul takes that for a constant."""
    x = np.random.default_rng(0).normal(0, 1, (1, 3, 4, 4)).astype(np.float32)
    channels = {name: np.array([0.5, 1, 2], np.float32) for name in ("scale", "bias", "mean", "var")}
    nodes = [
        node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["n"]),
        node("Mul", ["n", "factor"], ["m"]),
        node("Add", ["m", "n"], ["y"]),
    ]
    factor = {"factor": np.full((3, 1, 1), 1.5, np.float32)}
    agrees(model(nodes, {"x": x}, ["y"], {**channels, **factor}), {"x": x})


def test_shapes_that_do_not_broadcast_are_refused_in_words() -> None:
    """The message showed TVM's description of its operator."""
    graph = helper.make_graph(
        [
            node("Shape", ["x"], ["rows"], end=1),
            node("Slice", ["table", "zero", "rows"], ["part"]),
            node("Add", ["x", "part"], ["y"], name="places"),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.zeros((5, 3), np.float32), "table"),
            numpy_helper.from_array(np.array([0]), "zero"),
        ],
    )
    wrong = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"'places' \(Add\): the first input shape") as told:
        wg.compile(wrong, shapes={"x": (6, 3)})
    assert "dim 0 is 6 and the second input shape at dim 0 is 5" in str(told.value)
    assert "ir.Op" not in str(told.value)
