"""Indices that are data: in range they give what onnxruntime gives; out of range nothing outside of a
tensor is touched, the error says which node, and the session goes on.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import model, run, several
from wasmgraph.errors import IndexRangeError, ModelError
from wasmgraph.runtimes.base import Session

Arrays = dict[str, np.ndarray]
ROWS, COLUMNS, COUNT = 3, 4, 2

# By the input that holds indices: the node that uses them, which has its name, and their range.
INDICES = {
    "rows": (helper.make_node("Gather", ["x", "rows"], ["gathered"], name="rows"), -ROWS, ROWS - 1),
    "columns": (
        helper.make_node("Gather", ["x", "columns"], ["across"], name="columns", axis=1),
        -COLUMNS,
        COLUMNS - 1,
    ),
    "elements": (
        helper.make_node("GatherElements", ["x", "elements"], ["picked"], name="elements", axis=1),
        -COLUMNS,
        COLUMNS - 1,
    ),
    "pairs": (helper.make_node("GatherND", ["x", "pairs"], ["points"], name="pairs"), -ROWS, ROWS - 1),
    "batched": (
        helper.make_node("GatherND", ["y", "batched"], ["inside"], name="batched", batch_dims=1),
        -COLUMNS,
        COLUMNS - 1,
    ),
    "updated": (
        helper.make_node(
            "ScatterElements", ["x", "updated", "new"], ["scattered"], name="updated", reduction="add"
        ),
        -ROWS,
        ROWS - 1,
    ),
    "whole": (
        helper.make_node("ScatterND", ["x", "whole", "lines"], ["written"], name="whole", reduction="add"),
        -ROWS,
        ROWS - 1,
    ),
    "lengths": (
        helper.make_node(
            "ReverseSequence", ["x", "lengths"], ["reversed"], name="lengths", time_axis=0, batch_axis=1
        ),
        0,
        ROWS,
    ),
    "images": (
        helper.make_node(
            "RoiAlign",
            ["picture", "rois", "images"],
            ["aligned"],
            name="images",
            output_height=1,
            output_width=1,
        ),
        0,
        1,
    ),
}
SHAPES = {
    "rows": (COUNT, 2),
    "columns": (COUNT,),
    "elements": (ROWS, COUNT),
    "pairs": (COUNT, 1),
    "batched": (2, COUNT, 1),
    "updated": (COUNT, COLUMNS),
    "whole": (COUNT, 1),
    "lengths": (COLUMNS,),
    "images": (COUNT,),
}
DATA: Arrays = {
    "x": np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS),
    "y": np.arange(2 * COLUMNS, dtype=np.float32).reshape(2, COLUMNS),
    "new": np.ones((COUNT, COLUMNS), np.float32),
    "lines": np.full((COUNT, COLUMNS), 100, np.float32),
    "picture": np.arange(2 * 16, dtype=np.float32).reshape(2, 1, 4, 4),
    "rois": np.array([[0, 0, 3, 3], [1, 1, 2, 2]], np.float32),
}
VALID: Arrays = {name: np.full(shape, 1, np.int64) for name, shape in SHAPES.items()}
FEEDS = DATA | VALID
OUTPUTS = [node.output[0] for node, _, _ in INDICES.values()]
MODEL = model([node for node, _, _ in INDICES.values()], FEEDS, OUTPUTS)
RUNTIMES = [
    *(("wasm32-simd128", None), ("wasm32", None), ("native", None), ("wasm32-simd128-threads", None)),
    pytest.param(
        ("wasm32-simd128", "untrusted"),
        marks=pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's"),
    ),
    pytest.param(
        ("wasm32-simd128", "node"),
        marks=pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js"),
    ),
]


@pytest.fixture(scope="module", params=RUNTIMES, ids=str)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    target, runtime = request.param
    options = {"untrusted": True} if runtime == "untrusted" else {"runtime": runtime}
    with wg.load(
        wg.compile(MODEL, target=target), threads=2 if "threads" in target else 1, **options
    ) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reference() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(MODEL.SerializeToString(), providers=["CPUExecutionProvider"])


def indices(name: str) -> st.SearchStrategy[np.ndarray]:
    _, low, high = INDICES[name]
    return hnp.arrays(
        np.int64, SHAPES[name], elements=st.integers(max(low, 1) if name == "lengths" else low, high)
    )


@several
@given(given_indices=st.fixed_dictionaries({name: indices(name) for name in INDICES}))
def test_indices_in_range_give_what_onnxruntime_gives(
    session: Session, reference: onnxruntime.InferenceSession, given_indices: Arrays
) -> None:
    feeds = DATA | given_indices
    found = session.run(feeds)
    for output, wanted in zip(reference.get_outputs(), reference.run(None, feeds), strict=True):
        np.testing.assert_allclose(found[output.name], wanted, rtol=1e-5, err_msg=output.name)


@several
@given(data=st.data(), name=st.sampled_from(sorted(INDICES)))
def test_an_index_out_of_range_is_an_error_and_the_session_goes_on(
    session: Session, data: st.DataObject, name: str
) -> None:
    _, low, high = INDICES[name]
    near = st.sampled_from([low - 1, high + 1, 2**31, 2**32, -(2**31) - 1, 2**40, -(2**40), 2**62])
    bad = data.draw(st.one_of(near, st.integers(high + 1, 2**59), st.integers(-(2**59), low - 1)))
    wrong = data.draw(indices(name))
    wrong.flat[data.draw(st.integers(0, wrong.size - 1))] = bad
    told = bad if abs(bad) < 2**60 else 2**60
    with pytest.raises(
        IndexRangeError, match=rf"index {told} is out of range at node '{name}' .* {low} to {high}"
    ):
        session.run(FEEDS | {name: wrong})
    assert session.run(FEEDS)["gathered"].shape == (COUNT, 2, COLUMNS)


@pytest.mark.parametrize("bad", [2**63 - 1, -(2**63), 2**31, 2**40, -(2**40)])
def test_no_memory_but_the_tensors_is_touched(session: Session, bad: int) -> None:
    everything = {name: np.full_like(value, bad) for name, value in VALID.items()}
    with pytest.raises(IndexRangeError, match="'rows'"):
        session.run(DATA | everything)


def test_every_step_on_its_own_stays_within_its_tensors() -> None:
    feeds = FEEDS | {name: np.full_like(value, 2**40) for name, value in VALID.items()}
    artifact = wg.compile(MODEL, target="native")
    with wg.load(artifact) as loaded, pytest.raises(IndexRangeError):
        loaded.run(feeds)
    with wg.load(artifact) as loaded:
        for step in reversed(range(len(artifact.manifest.steps))):
            loaded.run_step(step)


def test_a_known_index_out_of_range_is_an_error_of_the_model() -> None:
    node = helper.make_node("Gather", ["x", "i"], ["y"], name="the lookup")
    made = model([node], {"x": DATA["x"]}, ["y"], {"i": np.array([7])})
    with pytest.raises(ModelError, match="the lookup.*index 7 is out of range: it must be from -3 to 2"):
        wg.compile(made)


@pytest.mark.parametrize("known", [False, True])
def test_an_index_matters_where_its_branch_is_taken(known: bool) -> None:
    kind = helper.make_tensor_value_info
    taken = helper.make_node("Gather", ["x", "i"], ["row"], name="lookup")
    other = helper.make_node("Gather", ["x", "zero"], ["first"], name="fallback")
    nodes = [
        helper.make_node(
            "If",
            ["use"],
            ["y"],
            then_branch=helper.make_graph([taken], "then", [], [kind("row", TensorProto.FLOAT, [COLUMNS])]),
            else_branch=helper.make_graph(
                [other], "else", [], [kind("first", TensorProto.FLOAT, [COLUMNS])]
            ),
        )
    ]
    index = {"i": np.array(7)}
    feeds = {"x": DATA["x"], "use": np.array(False)} | ({} if known else index)
    made = model(nodes, feeds, ["y"], {"zero": np.array(0)} | (index if known else {}))
    with wg.load(wg.compile(made)) as loaded:
        np.testing.assert_array_equal(loaded.run(feeds)["y"], DATA["x"][0])
        with pytest.raises(IndexRangeError, match="lookup"):
            loaded.run(feeds | {"use": np.array(True)})


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_regions_and_grids_of_nan_and_infinity_stay_within_the_picture(target: str) -> None:
    extremes = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e10, 0, 1], np.float32)
    feeds = {
        "picture": DATA["picture"],
        "grid": np.stack([extremes, extremes[::-1]], -1).reshape(2, 2, 2, 2),
        "regions": np.array([[0, *extremes[:4]], [1, *extremes[4:]]], np.float32),
        "rois": extremes.reshape(2, 4),
    }
    names = ("zeros", "border", "reflection")
    nodes = [
        helper.make_node("GridSample", ["picture", "grid"], [mode], padding_mode=mode, mode="nearest")
        for mode in names
    ]
    nodes.append(helper.make_node("MaxRoiPool", ["picture", "regions"], ["pooled"], pooled_shape=[2, 2]))
    found = run(model(nodes, feeds, [*names, "pooled"]), feeds, target)
    inside = [*DATA["picture"].ravel(), 0, np.nan, -np.inf]
    for name in names:
        assert np.isin(found[name], inside).all() or np.isnan(found[name]).any()
