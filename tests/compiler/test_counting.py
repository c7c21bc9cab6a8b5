"""Sizes that the graph itself computes: outputs are as long as data says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import wasmgraph as wg
from tests.compiler.test_open import FLOAT, INT, NODE, model
from wasmgraph.artifact import Artifact
from wasmgraph.errors import FeedError

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
    with wg.load(wg.compile(proto, dims={"n": (4, 9)})) as session:
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
