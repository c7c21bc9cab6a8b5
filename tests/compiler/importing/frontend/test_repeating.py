"""Loops whose body is converted once, against onnxruntime, which runs them as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import agrees, model, run, several
from wasmgraph.compiler.importing.frontend.converters import control
from wasmgraph.errors import IndexRangeError, UnsupportedOperatorError

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


def body(
    nodes: Sequence[onnx.NodeProto],
    state: Sequence[tuple[str, str, int, Sequence[int]]],
    rows: Sequence[tuple[str, int, Sequence[int]]] = (),
    again: str = "was",
) -> onnx.GraphProto:
    """A body of Loop: ``state`` has names of inputs and outputs, element types and shapes."""
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [*nodes, node("Identity", [again], ["again"])],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("was", TensorProto.BOOL, []),
            *(value(name, kind, shape) for name, _, kind, shape in state),
        ],
        [
            value("again", TensorProto.BOOL, []),
            *(value(name, kind, shape) for _, name, kind, shape in state),
            *(value(name, kind, shape) for name, kind, shape in rows),
        ],
    )


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
CONSTANTS = {"weight": np.random.default_rng(0).normal(0, 0.5, (3, 3)).astype(np.float32)}


@several
@given(
    turns=st.sampled_from([0, 1, 5, 6, 40]),
    target=st.sampled_from(["wasm32-simd128", "native", "wasm32-simd128-threads"]),
)
def test_state_and_scan_outputs(turns: int, target: str) -> None:
    """A product, the turn's number, a value from outside the loop, and a row a turn."""
    inside = body(
        [
            node("MatMul", ["a", "weight"], ["p"]),
            node("Tanh", ["p"], ["t"]),
            node("Cast", ["turn"], ["number"], to=FLOAT),
            node("Add", ["t", "number"], ["s"]),
            node("Add", ["s", "outside"], ["next"]),
            node("ReduceSum", ["next"], ["row"], keepdims=0),
        ],
        [("a", "next", FLOAT, [2, 3])],
        [("row", FLOAT, []), ("next", FLOAT, [2, 3])],
    )
    nodes = [
        node("Exp", ["x"], ["outside"]),
        node("Loop", ["count", "", "x"], ["last", "rows", "all"], body=inside),
        node("Add", ["last", "outside"], ["sum"]),
    ]
    made = model(nodes, {"x": X}, ["last", "rows", "all", "sum"], {**CONSTANTS, "count": np.array(turns)})
    agrees(made, {"x": X}, target)


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_states_that_change_places(target: str) -> None:
    """Each next state is another's place; one is passed on, one starts from a constant."""
    inside = body(
        [node("Add", ["c", "a"], ["c2"])],
        [
            ("a", "b", FLOAT, [2, 3]),
            ("b", "c", FLOAT, [2, 3]),
            ("c", "c2", FLOAT, [2, 3]),
            ("d", "d", FLOAT, [2, 3]),
        ],
        [("a", FLOAT, [2, 3])],
    )
    loop = node("Loop", ["count", "", "x", "y", "one", "x"], ["p", "q", "r", "s", "all"], body=inside)
    constants = {"count": np.array(7), "one": np.ones((2, 3), np.float32)}
    made = model([loop], {"x": X, "y": X[::-1] * 2}, ["p", "q", "r", "s", "all"], constants)
    agrees(made, {"x": X, "y": X[::-1] * 2}, target)


def test_a_loop_in_a_loop() -> None:
    inner = body(
        [node("Mul", ["v", "half"], ["m"]), node("Add", ["m", "u"], ["v2"])],
        [("v", "v2", FLOAT, [2, 3])],
        [("v2", FLOAT, [2, 3])],
    )
    outer = body(
        [
            node("Loop", ["six", "", "u"], ["deep", "inner_rows"], body=inner),
            node("ReduceMax", ["inner_rows"], ["row"], keepdims=0),
            node("Tanh", ["deep"], ["u2"]),
        ],
        [("u", "u2", FLOAT, [2, 3])],
        [("row", FLOAT, [])],
    )
    loop = node("Loop", ["nine", "", "x"], ["last", "rows"], body=outer)
    constants = {"six": np.array(6), "nine": np.array(9), "half": np.float32(0.5)}
    made = model([loop], {"x": X}, ["last", "rows"], constants)
    for target in ("wasm32-simd128", "native"):
        agrees(made, {"x": X}, target)


@pytest.mark.parametrize("limit", [-100.0, 3.0, 50.0])
@pytest.mark.parametrize("target", ["wasm32-simd128", "wasm32-simd128-threads", "native"])
def test_data_end_a_loop(target: str, limit: float) -> None:
    """While the sum is below a limit, but at most twenty times."""
    inside = body(
        [
            node("Add", ["a", "one"], ["next"]),
            node("ReduceSum", ["next"], ["sum"], keepdims=0),
            node("Less", ["sum", "limit"], ["below"]),
        ],
        [("a", "next", FLOAT, [2, 3])],
        again="below",
    )
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Less", ["s", "limit"], ["start"]),
        node("Loop", ["count", "start", "x"], ["last"], body=inside),
    ]
    feeds = {"x": X, "limit": np.array(limit, np.float32)}
    constants = {"count": np.array(20), "one": np.ones(1, np.float32)}
    agrees(model(nodes, feeds, ["last"], constants), feeds, target)


@pytest.mark.parametrize("turns", [0, 1, 9])
def test_data_say_how_often(turns: int) -> None:
    inside = body([node("Mul", ["a", "factor"], ["next"])], [("a", "next", FLOAT, [2, 3])])
    loop = node("Loop", ["count", "", "x"], ["last"], body=inside)
    feeds = {"x": X, "count": np.array(turns)}
    made = model([loop], feeds, ["last"], {"factor": np.float32(1.5)})
    for target in ("wasm32-simd128", "native"):
        agrees(made, feeds, target)


def scan(axis_in: int, back_in: int, axis_out: int, back_out: int, length: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    inside = helper.make_graph(
        [node("Add", ["a", "slice"], ["next"]), node("Mul", ["next", "slice"], ["row"])],
        "body",
        [value("a", FLOAT, [2, 3]), value("slice", FLOAT, [2, 3])],
        [value("next", FLOAT, [2, 3]), value("row", FLOAT, [2, 3])],
    )
    made = node(
        "Scan",
        ["x", "sequence"],
        ["last", "rows"],
        body=inside,
        num_scan_inputs=1,
        scan_input_axes=[axis_in],
        scan_input_directions=[back_in],
        scan_output_axes=[axis_out],
        scan_output_directions=[back_out],
    )
    shape = [2, 3]
    shape.insert(axis_in % 3, length)
    return model([made], {"x": X, "sequence": np.zeros(shape, np.float32)}, ["last", "rows"])


@several
@given(
    axis_in=st.sampled_from([0, 1, 2, -1]),
    axis_out=st.sampled_from([0, 1, 2, -1]),
    back_in=st.integers(0, 1),
    back_out=st.integers(0, 1),
    length=st.sampled_from([1, 5, 8]),
)
def test_scan_over_axes_and_directions(
    axis_in: int, axis_out: int, back_in: int, back_out: int, length: int
) -> None:
    shape = [2, 3]
    shape.insert(axis_in % 3, length)
    sequence = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    agrees(scan(axis_in, back_in, axis_out, back_out, length), {"x": X, "sequence": sequence})


def test_calls_do_not_grow_with_the_turns() -> None:
    made = [scan(0, 0, 0, 0, length) for length in (16, 512)]
    few, many = (wg.compile(each) for each in made)
    assert many.path.stat().st_size < 1.1 * few.path.stat().st_size
    assert max(step.turns for step in many.manifest.steps) == 512


def test_an_index_out_of_range_in_any_turn_is_an_error() -> None:
    inside = body(
        [node("Gather", ["table", "i"], ["row"]), node("Sub", ["i", "one"], ["next"])],
        [("i", "next", INT64, [1])],
        [("row", FLOAT, [1, 3])],
    )
    loop = node("Loop", ["count", "", "start"], ["last", "rows"], body=inside)
    table = np.arange(30, dtype=np.float32).reshape(10, 3)
    constants = {"count": np.array(6), "one": np.array([1]), "table": table}
    made = model([loop], {"start": np.array([7])}, ["last", "rows"], constants)
    agrees(made, {"start": np.array([7])})
    for target in ("wasm32-simd128", "native"):
        with pytest.raises(IndexRangeError, match="12 is out of range"):  # in the first turn only
            run(made, {"start": np.array([12])}, target)


def test_a_state_that_grows_is_unrolled_or_refused() -> None:
    inside = body([node("Concat", ["a", "a"], ["next"], axis=0)], [("a", "next", FLOAT, [])])
    for value in (*inside.input, *inside.output):
        if value.name in ("a", "next"):
            value.type.tensor_type.ClearField("shape")
    loop = node("Loop", ["count", "", "x"], ["last"], body=inside)
    agrees(model([loop], {"x": X}, ["last"], {"count": np.array(5)}), {"x": X})
    feeds = {"x": X, "count": np.array(5)}
    with pytest.raises(UnsupportedOperatorError, match="depends on data; such a loop"):
        wg.compile(model([loop], feeds, ["last"]))


def test_work_counts_every_turn() -> None:
    """The profile and the fuel of a kernel in a loop are those of all turns."""
    few, many = (wg.compile(scan(0, 0, 0, 0, length)) for length in (8, 80))
    sums = [sum(step.flops * step.turns for step in each.manifest.steps) for each in (few, many)]
    assert sums[1] == 10 * sums[0]


def test_numbers_of_a_graph_s_loops_differ() -> None:
    """Two equal loops are not taken for one."""
    inside = body([node("Add", ["a", "a"], ["next"])], [("a", "next", FLOAT, [2, 3])])
    nodes = [
        node("Loop", ["count", "", "x"], ["p"], body=inside),
        node("Loop", ["count", "", "x"], ["q"], body=inside),
        node("Loop", ["count", "", "p"], ["r"], body=inside),
    ]
    agrees(model(nodes, {"x": X}, ["p", "q", "r"], {"count": np.array(6)}), {"x": X})


def test_a_loop_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MOST_TURNS", 40)
    inside = body([node("Add", ["a", "a"], ["next"])], [("a", "next", FLOAT, [2, 3])])
    loop = node("Loop", ["", "start", "x"], ["p"], body=inside)
    with pytest.raises(UnsupportedOperatorError, match="condition that depends on data|more than 40 times"):
        wg.compile(model([loop], {"x": X, "start": np.array(True)}, ["p"]))


def test_what_a_loop_without_turns_would_compute_is_computed_after_it() -> None:
    """The same operator on the same tensor, in the loop and behind it, is not done once for both."""
    inside = body(
        [node("Exp", ["outer"], ["e"]), node("Add", ["a", "e"], ["next"])], [("a", "next", FLOAT, [2, 3])]
    )
    nodes = [
        node("Neg", ["x"], ["outer"]),
        node("Loop", ["count", "", "x"], ["last"], body=inside),
        node("Exp", ["outer"], ["after"]),
        node("Add", ["after", "last"], ["sum"]),
    ]
    for turns in (0, 2):
        feeds = {"x": X, "count": np.array(turns)}
        agrees(model(nodes, feeds, ["last", "sum"]), feeds)


@pytest.mark.parametrize("turns", [0, 3])
def test_what_a_loop_uses_first_is_computed_before_it(turns: int) -> None:
    """An element of a sequence was computed in the loop, and read behind it also if there was no turn."""
    inside = body(
        [node("SequenceAt", ["sequence", "zero"], ["e"]), node("Add", ["a", "e"], ["next"])],
        [("a", "next", FLOAT, [2, 3])],
    )
    nodes = [
        node("Exp", ["x"], ["outer"]),
        node("SequenceConstruct", ["outer", "x"], ["sequence"]),
        node("Loop", ["count", "", "x"], ["last"], body=inside),
        node("SequenceAt", ["sequence", "zero"], ["after"]),
        node("Add", ["after", "last"], ["sum"]),
    ]
    feeds = {"x": X, "count": np.array(turns)}
    agrees(model(nodes, feeds, ["last", "sum"], {"zero": np.array(0)}), feeds)


def test_a_loop_that_does_not_begin_and_one_of_too_many_rows() -> None:
    inside = body(
        [node("Add", ["a", "a"], ["next"])], [("a", "next", FLOAT, [2, 3])], [("a", FLOAT, [2, 3])]
    )
    never = node("Loop", ["count", "no", "x"], ["last", "rows"], body=inside)
    feeds = {"x": X, "count": np.array(3)}
    found = run(model([never], feeds, ["last", "rows"], {"no": np.array(False)}), feeds)
    np.testing.assert_array_equal(found["last"], X)
    assert found["rows"].shape == (0, 2, 3)
    forever = node("Loop", ["count", "", "x"], ["last", "rows"], body=inside)
    with pytest.raises(UnsupportedOperatorError, match="runs more than 10,000 times; such a loop"):
        wg.compile(model([forever], {"x": X}, ["last", "rows"], {"count": np.array(2**62)}))
