"""Sizes that the graph itself computes: outputs are as long as data says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import wasmgraph as wg
from tests.compiler.test_open import FLOAT, INT, NODE, model
from wasmgraph.artifact import Artifact
from wasmgraph.compiler.importing.frontend.computed import declared_shapes
from wasmgraph.errors import FeedError, ModelError, UnboundDimensionError, UnsupportedOperatorError

BOOL = TensorProto.BOOL
HOSTS: list[tuple[str, dict[str, Any]]] = [
    ("wasm32-simd128", {}),
    ("wasm32-simd128", {"runtime": "node"}),
    ("wasm32-simd128", {"untrusted": True}),
    ("wasm32-simd128-threads", {"threads": 2}),
    ("native", {}),
]
FOUND = model(
    [
        NODE("NonZero", ["x"], ["at"]),
        NODE("Transpose", ["at"], ["rows"]),
        NODE("GatherND", ["x", "rows"], ["kept"]),
        NODE("ReduceSum", ["kept"], ["sum"], keepdims=0),
    ],
    {"x": (FLOAT, ["n", "m"])},
    {"at": INT, "kept": FLOAT, "sum": FLOAT},
)
# As detectors end: the best boxes of each class, and what belongs to them.
TAIL = model(
    [
        NODE("NonMaxSuppression", ["boxes", "scores", "limit", "overlap", "threshold"], ["chosen"]),
        NODE("Gather", ["chosen", "two"], ["box"], axis=1),
        NODE("Squeeze", ["boxes", "first"], ["all"]),
        NODE("Gather", ["all", "box"], ["found"]),
        NODE("GatherND", ["turned", "chosen"], ["score"]),
        NODE("Identity", ["scores"], ["turned"]),
    ],
    {"boxes": (FLOAT, [1, "n", 4]), "scores": (FLOAT, [1, 3, "n"])},
    {"chosen": INT, "found": FLOAT, "score": FLOAT},
    {
        "limit": np.array([20]),
        "overlap": np.array([0.45], np.float32),
        "threshold": np.array([0.25], np.float32),
        "two": np.array(2),
        "first": np.array([0]),
    },
)
TAIL.graph.node.insert(0, TAIL.graph.node.pop())


def reference(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def same(session: wg.Session, theirs: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> None:
    found = session.run(feeds)
    for output, expected in zip(theirs.get_outputs(), theirs.run(None, feeds), strict=True):
        assert found[output.name].shape == expected.shape
        np.testing.assert_allclose(found[output.name], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def artifact():
    made: dict[tuple[int, str], Artifact] = {}

    def get(proto: onnx.ModelProto, target: str, **dims: tuple[int, int]) -> Artifact:
        if (id(proto), target) not in made:
            made[id(proto), target] = wg.compile(proto, target=target, dims=dims)
        return made[id(proto), target]

    return get


@pytest.mark.parametrize(("target", "options"), HOSTS)
def test_outputs_are_as_long_as_data_says(target: str, options: dict[str, Any], artifact) -> None:
    compiled = artifact(FOUND, target, n=(1, 9), m=(1, 9))
    assert str(compiled.outputs[0]) == "at: int64[2, at_count]"
    assert [dim.computed for dim in compiled.manifest.dims] == [False, False, True]
    theirs, rng = reference(FOUND), np.random.default_rng(5)
    with wg.load(compiled, **options) as session:
        assert [dim.name for dim in session.dims] == ["n", "m"]
        for share in (0.0, 0.5, 1.0, 0.2):
            n, m = rng.integers(1, 10, 2)
            x = rng.normal(0, 1, (n, m)).astype(np.float32)
            x[rng.random((n, m)) < share] = 0
            same(session, theirs, {"x": x})
            assert session.values == {"n": n, "m": m, "at_count": np.count_nonzero(x)}


@given(
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0, 2]),
)
@settings(max_examples=500, deadline=None)
def test_the_tail_of_a_detector(n: int, seed: int, size: float, steps: int) -> None:
    """Few and many boxes that overlap; none of them, or all, kept; equal scores."""
    rng = np.random.default_rng(seed)
    corner, other = rng.random((1, n, 2)), rng.random((1, n, 2)) * size
    boxes = np.concatenate([corner, corner + other], -1).astype(np.float32)
    scores = rng.random((1, 3, n)) * rng.choice([0.2, 1, 2])
    scores = np.round(scores * steps) / steps if steps else scores
    same(*_tail(), {"boxes": boxes, "scores": scores.astype(np.float32)})


_TAIL: list[Any] = []


def _tail() -> tuple[wg.Session, onnxruntime.InferenceSession]:
    if not _TAIL:
        _TAIL.extend((wg.load(wg.compile(TAIL, dims={"n": (1, 40)})), reference(TAIL)))
    return _TAIL[0], _TAIL[1]


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("options", [("limit",), ("limit", "overlap"), ("limit", "overlap", "threshold")])
def test_suppression_in_its_variants(centred: int, options: tuple[str, ...]) -> None:
    constants = {
        "overlap": np.array([0.3], np.float32),
        "threshold": np.array([0.5], np.float32),
    }
    proto = model(
        [NODE("NonMaxSuppression", ["boxes", "scores", *options], ["y"], center_point_box=centred)],
        {"boxes": (FLOAT, [2, 12, 4]), "scores": (FLOAT, [2, 2, 12]), "limit": (INT, [1])},
        {"y": INT},
        {name: value for name, value in constants.items() if name in options},
    )
    rng, theirs = np.random.default_rng(7), reference(proto)
    with wg.load(wg.compile(proto)) as session:
        for limit in (0, 1, 3, 100):
            boxes = rng.random((2, 12, 4)).astype(np.float32)
            scores = rng.random((2, 2, 12)).astype(np.float32)
            same(session, theirs, {"boxes": boxes, "scores": scores, "limit": np.array([limit])})


def test_a_condition_selects_rows() -> None:
    proto = model(
        [NODE("Compress", ["x", "c"], ["y"], axis=0), NODE("Compress", ["x", "c"], ["z"])],
        {"x": (FLOAT, ["n", 3]), "c": (BOOL, [4])},
        {"y": FLOAT, "z": FLOAT},
    )
    rng, theirs = np.random.default_rng(8), reference(proto)
    with wg.load(wg.compile(proto, dims={"n": (4, 9), "y_count": (0, 4)})) as session:
        assert {"y_count", "z_count"} <= session.values.keys()
        for n in (4, 9):
            chosen = rng.random(4) < 0.5
            same(session, theirs, {"x": rng.normal(0, 1, (n, 3)).astype(np.float32), "c": chosen})


@pytest.mark.parametrize(("target", "options"), HOSTS)
def test_data_says_how_many_are_best(target: str, options: dict[str, Any], artifact) -> None:
    theirs = reference(BEST)
    with wg.load(artifact(BEST, target, n=(1, 5)), **options) as session:
        x = np.random.default_rng(9).normal(0, 1, (3, 9)).astype(np.float32)
        for k in (1, 0, 9, 4):
            same(session, theirs, {"x": x, "k": np.array([k])})
        for k in (10, -1, 2**40):
            with pytest.raises(FeedError, match="y_count.* is not from 0 to 9"):
                session.run({"x": x, "k": np.array([k])})
        same(session, theirs, {"x": x, "k": np.array([2])})


BEST = model(
    [NODE("TopK", ["x", "k"], ["y", "z"])],
    {"x": (FLOAT, ["n", 9]), "k": (INT, [1])},
    {"y": FLOAT, "z": INT},
)


def _floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def _numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _scalars(dtype: type, *rows: tuple[float, float, float]) -> list[dict[str, np.ndarray]]:
    return [dict(zip("abc", (np.array(v, dtype) for v in row), strict=True)) for row in rows]


_FEW = {"y_count": (0, 50)}
# Graph, bounds, inputs.
SAID: dict[str, tuple[onnx.ModelProto, dict[str, tuple[int, int]], list[dict[str, np.ndarray]]]] = {
    "Range of whole numbers": (
        model([NODE("Range", ["a", "b", "c"], ["y"])], {n: (INT, []) for n in "abc"}, {"y": INT}),
        _FEW,
        _scalars(np.int64, (0, 5, 1), (5, 0, -2), (1, 1, 1), (3, 20, 4), (0, -3, 1)),
    ),
    "Range of floats": (
        model([NODE("Range", ["a", "b", "c"], ["y"])], {n: (FLOAT, []) for n in "abc"}, {"y": FLOAT}),
        _FEW,
        _scalars(np.float32, (0, 5, 1.5), (5, 0, -2), (1, 1, 1), (3, 20, 4.4)),
    ),
    # Its kernel is fused with what does not wait for the size.
    "HannWindow": (
        model([NODE("HannWindow", ["s"], ["y"])], {"s": (INT, [])}, {"y": FLOAT}),
        _FEW,
        [{"s": np.array(n)} for n in (10, 3, 50)],
    ),
    "ConstantOfShape": (
        model([NODE("ConstantOfShape", ["s"], ["y"])], {"s": (INT, [2])}, {"y": FLOAT}),
        {"y_count": (0, 5), "y_count_1": (0, 7)},
        [{"s": _numbers(2, 3)}, {"s": _numbers(0, 7)}],
    ),
    "Slice": (
        model(
            [NODE("Slice", ["x", "a", "b", "axes", "steps"], ["y"])],
            {"x": (FLOAT, ["n", 6]), "a": (INT, [2]), "b": (INT, [2])},
            {"y": FLOAT},
            {"axes": _numbers(0, 1), "steps": _numbers(1, -2)},
        ),
        {"n": (1, 9)},
        [
            {"x": _floats(0, n, 6), "a": _numbers(a, b), "b": _numbers(c, d)}
            for n, a, b, c, d in (
                (5, 0, -1, 3, 0),
                (7, -2, 4, 1000, -100),
                (3, 1, 5, 1, 2),
                (9, 2, 5, -1, -7),
            )
        ],
    ),
    "Reshape": (
        model(
            [NODE("Reshape", ["x", "s"], ["y"])],
            {"x": (FLOAT, ["n", 6]), "s": (INT, [3])},
            {"y": FLOAT},
        ),
        {"n": (1, 9)},
        [
            {"x": _floats(1, n, 6), "s": _numbers(*s)}
            for n, s in ((5, (5, 3, 2)), (4, (0, -1, 2)), (2, (-1, 3, 4)))
        ],
    ),
    "Expand": (
        model(
            [NODE("Expand", ["x", "s"], ["y"])],
            {"x": (FLOAT, ["n", 1, 4]), "s": (INT, [2])},
            {"y": FLOAT},
        ),
        {"n": (1, 9), "y_count": (1, 8)},
        [{"x": _floats(2, n, 1, 4), "s": _numbers(*s)} for n, s in ((5, (5, 4)), (4, (1, 1)), (2, (3, 4)))],
    ),
}
for axis in (None, 0, 1):
    for in_order in (0, 1):
        SAID[f"Unique along {axis}, sorted {in_order}"] = (
            model(
                [
                    NODE(
                        "Unique",
                        ["x"],
                        ["y", "first", "which", "often"],
                        sorted=in_order,
                        **({} if axis is None else {"axis": axis}),
                    )
                ],
                {"x": (FLOAT, ["n", 3])},
                {"y": FLOAT, "first": INT, "which": INT, "often": INT},
            ),
            {"n": (1, 9)},
            [{"x": np.round(_floats(n, n, 3) * by)} for n, by in ((5, 1), (9, 0.3), (1, 1))],
        )


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
@pytest.mark.parametrize("name", SAID)
def test_data_says_sizes(name: str, target: str) -> None:
    proto, dims, feeds = SAID[name]
    theirs = reference(proto)
    with wg.load(wg.compile(proto, target=target, dims=dims)) as session:
        for each in feeds:
            same(session, theirs, each)


def test_a_bound_must_be_given_and_kept() -> None:
    proto, dims, feeds = SAID["ConstantOfShape"]
    with pytest.raises(UnboundDimensionError, match=r"no bound.*--dim y_count=0\.\.1000"):
        wg.compile(proto)
    with pytest.raises(UnboundDimensionError, match=r"--dim y_count_1=0\.\.1000"):
        wg.compile(proto, dims={"y_count": (0, 5)})
    with pytest.raises(ModelError, match="bounds 'z_count', which is no dimension"):
        wg.compile(proto, dims={**dims, "z_count": (0, 5)})
    with pytest.raises(
        ModelError, match=r"'y_count_7', which the graph does not compute.*y_count, y_count_1"
    ):
        wg.compile(proto, dims={**dims, "y_count_7": (0, 5)})
    with wg.load(wg.compile(proto, dims=dims)) as session:
        for wrong in ((6, 1), (-1, 1), (1, 2**40)):
            with pytest.raises(FeedError, match="y_count.* is not from 0 to"):
                session.run({"s": _numbers(*wrong)})
        assert session.run(feeds[0])["y"].shape == (2, 3)


def test_a_least_size_can_be_asked_for() -> None:
    proto, _, _ = SAID["Range of whole numbers"]
    with wg.load(wg.compile(proto, dims={"y_count": (2, 4)})) as session:
        with pytest.raises(FeedError, match="'y_count' is not from 2 to 4"):
            session.run(_scalars(np.int64, (0, 1, 1))[0])
        with pytest.raises(FeedError, match="'y_count' is not from 2 to 4"):
            session.run(_scalars(np.int64, (0, 5, 0))[0])  # a step of 0


@pytest.mark.parametrize(("target", "options"), HOSTS)
def test_the_error_of_a_size_names_it_though_others_are_not_known_yet(
    target: str, options: dict[str, Any]
) -> None:
    proto = model(
        [NODE("Range", ["a", "b", "c"], ["y"]), NODE("Range", ["a", "d", "c"], ["z"])],
        {name: (INT, []) for name in "abcd"},
        {"y": INT, "z": INT},
    )
    compiled = wg.compile(proto, target=target, dims={"y_count": (0, 4), "z_count": (2, 4)})
    given = {name: np.array(value) for name, value in zip("abcd", (0, 3, 1, 2), strict=True)}
    with wg.load(compiled, **options) as session:
        for _ in range(2):
            with pytest.raises(FeedError, match="'?y_count'?.* is not from 0 to 4"):
                session.run({**given, "b": np.array(5)})
            with pytest.raises(FeedError, match="z_count.* is not from 2 to 4"):
                session.run({**given, "d": np.array(1)})
            assert session.run(given)["z"].tolist() == [0, 1]


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_the_ends_of_a_range_may_be_far_apart(target: str) -> None:
    least, most = -(2**63), 2**63 - 1
    proto, dims, _ = SAID["Range of whole numbers"]
    with wg.load(wg.compile(proto, target=target, dims=dims)) as session:
        for far in ((least, 0, 1), (least, most, 1), (most, least, -1), (0, least, -1), (least, 0, -1)):
            if far == (least, 0, -1):
                assert session.run(_scalars(np.int64, far)[0])["y"].size == 0
                continue
            with pytest.raises(FeedError, match="y_count"):
                session.run(_scalars(np.int64, far)[0])
        assert session.run(_scalars(np.int64, (most, least, 1))[0])["y"].size == 0
        assert session.run(_scalars(np.int64, (0, most, most - 1))[0])["y"].tolist() == [0, most - 1]
        assert session.run(_scalars(np.int64, (0, -5, least))[0])["y"].tolist() == [0]


def test_a_computed_dimension_has_a_name_of_its_own() -> None:
    proto = model([NODE("NonZero", ["x"], ["y"])], {"x": (FLOAT, ["y_count", "m"])}, {"y": INT})
    with wg.load(wg.compile(proto, dims={"y_count": (1, 9), "m": (1, 9)})) as session:
        assert session.run({"x": np.eye(3, 4, dtype=np.float32)})["y"].shape == (2, 3)
        assert session.values == {"y_count": 3, "m": 4, "y_count_1": 3}


def test_sizes_of_chosen_axes_by_data() -> None:
    proto = model(
        [NODE("Resize", ["x", "", "", "s"], ["y"], axes=[3, 1])],
        {"x": (FLOAT, [1, 2, 4, 3]), "s": (INT, [2])},
        {"y": FLOAT},
    )
    for size in (1, 4, 4, 100):
        proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    compiled = wg.compile(proto)
    assert [dim.most for dim in compiled.manifest.dims] == [100, 4]
    with wg.load(compiled) as session:
        same(session, reference(proto), {"x": _floats(3, 1, 2, 4, 3), "s": _numbers(100, 4)})


def test_rows_of_a_loop_must_have_one_size() -> None:
    one = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            NODE("Gather", ["x", "i"], ["row"]),
            NODE("NonZero", ["row"], ["at"]),
            NODE("Identity", ["c"], ["c2"]),
            NODE("Identity", ["v"], ["v2"]),
        ],
        "body",
        [one("i", INT, []), one("c", BOOL, []), one("v", FLOAT, [3])],
        [one("c2", BOOL, []), one("v2", FLOAT, [3]), one("at", INT, [1, None])],
    )
    proto = model(
        [NODE("Loop", ["turns", "", "v0"], ["e", "y"], body=body)],
        {"v0": (FLOAT, [3]), "x": (FLOAT, [6, 5])},
        {"e": FLOAT, "y": INT},
        {"turns": np.array(6)},
    )
    with pytest.raises((UnsupportedOperatorError, ModelError)):
        wg.compile(proto)


def test_exporters_write_0_for_what_they_do_not_know() -> None:
    proto = SAID["ConstantOfShape"][0]
    declared = onnx.ModelProto()
    declared.CopyFrom(proto)
    for size in (0, 6):
        declared.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    assert declared_shapes(declared.graph)["y"] == [None, 6]


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_classes_as_many_as_data_says(target: str) -> None:
    """A comparison with data, along an open last axis, is not divided into loops."""
    proto = model(
        [NODE("OneHot", ["i", "d", "v"], ["y"], axis=-1)],
        {"i": (INT, ["n"]), "d": (INT, [])},
        {"y": FLOAT},
        {"v": np.array([1, 3], np.float32)},
    )
    theirs, rng = reference(proto), np.random.default_rng(2)
    with wg.load(wg.compile(proto, target=target, dims={"n": (1, 20), "y_count": (0, 30)})) as session:
        for n, depth in ((1, 3), (5, 10), (20, 30), (13, 17)):
            places = rng.integers(-depth - 2, depth + 2, n)
            same(session, theirs, {"i": places, "d": np.array(depth)})


def test_a_declared_size_is_a_bound() -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(SAID["ConstantOfShape"][0])
    for size in (4, 6):
        proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    compiled = wg.compile(proto)
    assert [(dim.name, dim.most) for dim in compiled.manifest.dims] == [("y_count", 4), ("y_count_1", 6)]


@pytest.mark.parametrize(
    ("name", "wrong"), [("Reshape", (5, 2, 2)), ("Reshape", (-1, -1, 2)), ("Expand", (3, 3))]
)
def test_sizes_that_do_not_fit_the_tensor(name: str, wrong: tuple[int, ...]) -> None:
    proto, dims, feeds = SAID[name]
    with wg.load(wg.compile(proto, dims=dims)) as session:
        with pytest.raises(FeedError, match="the size that data gives"):
            session.run({"x": feeds[0]["x"], "s": _numbers(*wrong)})
        same(session, reference(proto), feeds[0])


def _scan(backwards: int) -> onnx.ModelProto:
    row = {name: helper.make_tensor_value_info(name, FLOAT, [4]) for name in ("s", "r", "sum", "o")}
    body = helper.make_graph(
        [NODE("Add", ["s", "r"], ["sum"]), NODE("Mul", ["sum", "r"], ["o"])],
        "body",
        [row["s"], row["r"]],
        [row["sum"], row["o"]],
    )
    scan = NODE(
        *("Scan", ["s0", "x"], ["e", "y"]),
        body=body,
        num_scan_inputs=1,
        scan_input_directions=[backwards],
        scan_output_directions=[backwards],
        scan_output_axes=[backwards],
    )
    return model([scan], {"s0": (FLOAT, [4]), "x": (FLOAT, ["n", 4])}, {"e": FLOAT, "y": FLOAT})


@pytest.mark.parametrize("target", ["wasm32-simd128", "wasm32-simd128-threads", "native"])
@pytest.mark.parametrize("backwards", [0, 1])
def test_a_scan_of_any_length(backwards: int, target: str) -> None:
    proto = _scan(backwards)
    theirs = reference(proto)
    with wg.load(wg.compile(proto, target=target, dims={"n": (1, 20)})) as session:
        for n in (3, 8, 1, 20):
            same(session, theirs, {"s0": _floats(n, 4), "x": _floats(n + 1, n, 4)})


def _loop(turns: str, conditional: bool) -> onnx.ModelProto:
    """A loop whose number of turns is a number, a size or data, and that a condition may end before."""
    one = helper.make_tensor_value_info
    again = [NODE("Less", ["total", "ten"], ["c2"])] if conditional else [NODE("Identity", ["c"], ["c2"])]
    body = helper.make_graph(
        [
            NODE("Add", ["v", "step"], ["v2"]),
            NODE("ReduceSum", ["v2"], ["total"], keepdims=0),
            *again,
            NODE("Identity", ["v2"], ["o"]),
        ],
        "body",
        [one("i", INT, []), one("c", BOOL, []), one("v", FLOAT, [3])],
        [one("c2", BOOL, []), one("v2", FLOAT, [3]), one("o", FLOAT, [3])],
    )
    before, inputs, constants = [], {}, {"ten": np.float32(10)}
    if turns == "size":
        before = [NODE("Shape", ["x"], ["sizes"]), NODE("Squeeze", ["sizes"], ["turns"])]
        inputs["x"] = (FLOAT, ["n"])
    elif turns == "data":
        inputs["turns"] = (INT, [])
    else:
        constants["turns"] = np.array(int(turns))
    return model(
        [*before, NODE("Loop", ["turns", "", "v0"], ["e", "y"], body=body)],
        {"v0": (FLOAT, [3]), "step": (FLOAT, [3]), **inputs},
        {"e": FLOAT, "y": FLOAT},
        constants,
    )


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("turns", ["12", "size", "data"])
@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_a_loop_that_data_ends_writes_rows(target: str, turns: str, conditional: bool) -> None:
    proto = _loop(turns, conditional)
    theirs = reference(proto)
    dims = {"12": {}, "size": {"n": (0, 20)}, "data": {"e_count": (0, 20)}}[turns]
    with wg.load(wg.compile(proto, target=target, dims=dims)) as session:
        for by, count in ((0.1, 3), (0.5, 12), (3, 9), (20, 1), (1, 0)):
            given = {"v0": _floats(count, 3), "step": np.full(3, by, np.float32)}
            given |= {"size": {"x": _floats(0, count)}, "data": {"turns": np.array(count)}}.get(turns, {})
            same(session, theirs, given)


def test_a_loop_of_too_many_turns() -> None:
    with pytest.raises(UnboundDimensionError, match=r"--dim e_count=0\.\.1000"):
        wg.compile(_loop("data", False))
    with wg.load(wg.compile(_loop("data", False), dims={"e_count": (0, 4)})) as session:
        with pytest.raises(FeedError, match="'e_count' is not from 0 to 4"):
            session.run({"v0": _floats(0, 3), "step": _floats(1, 3), "turns": np.array(5)})
