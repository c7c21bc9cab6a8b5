"""What every engine behind the interface does alike."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest

import wasmgraph as wg
from wasmgraph.errors import FeedError, UsageError

KINDS = ("wasm32", "wasm32-simd128", "native", "onnx")


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, small_onnx: Path, small_artifact) -> Path:
    return small_onnx if request.param == "onnx" else small_artifact(request.param)


def test_outputs_are_owned_copies(path: Path, small_input: np.ndarray) -> None:
    with wg.load(path) as session:
        first = session.run({"x": small_input})
        kept = {name: array.copy() for name, array in first.items()}
        session.run({"x": small_input * -3})
    del session
    gc.collect()
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        array += 1


def test_runs_are_repeatable_and_sessions_independent(path: Path, small_input: np.ndarray) -> None:
    with wg.load(path) as one, wg.load(path) as other:
        first = one.run({"x": small_input})["logits"]
        other.run({"x": small_input * 2})
        np.testing.assert_array_equal(one.run({"x": small_input})["logits"], first)


def test_non_contiguous_inputs(path: Path, small_input: np.ndarray) -> None:
    with wg.load(path) as session:
        flipped = small_input[..., ::-1]
        expected = session.run({"x": np.ascontiguousarray(flipped)})["logits"]
        np.testing.assert_array_equal(session.run({"x": flipped})["logits"], expected)


def test_wrong_feeds(path: Path, small_input: np.ndarray) -> None:
    with wg.load(path) as session:
        with pytest.raises(FeedError, match="expected x: float32"):
            session.run({"x": small_input.astype(np.float64)})
        with pytest.raises(FeedError, match="no input is called 'y'"):
            session.run({"y": small_input})
        session.run({"x": small_input})


def test_feeds_in_other_words_give_the_same(path: Path, small_input: np.ndarray) -> None:
    with wg.load(path) as session:
        expected = session.run({"x": small_input})["logits"]
        same = (small_input, small_input.astype(">f4"), np.asfortranarray(small_input))
        cast = (small_input.astype(np.float64), small_input.tolist())
        for feed, strict in [*((x, True) for x in same), *((x, False) for x in cast)]:
            np.testing.assert_array_equal(session.run(feed, strict=strict)["logits"], expected)


def test_a_closed_session_says_so(path: Path, small_input: np.ndarray) -> None:
    session = wg.load(path)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": small_input})
    with pytest.raises(UsageError, match=r"closed|single steps"):
        session.run_step(0)


def test_choosing_a_runtime(small_onnx: Path, small_artifact) -> None:
    with pytest.raises(
        UsageError, match="unknown runtime 'v8'; there are wasmtime, .*node, native, onnxruntime"
    ):
        wg.load(small_onnx, runtime="v8")
    with pytest.raises(UsageError, match="is a wasm file; tvm runs native files"):
        wg.load(small_artifact("wasm32"), runtime="tvm")
    with pytest.raises(UsageError, match="compiled for one thread"):
        wg.load(small_artifact("wasm32"), threads=2)
    with pytest.raises(UsageError, match="at least one thread"):
        wg.load(small_onnx, threads=0)


def test_onnxruntimes_threads_end_with_the_last_clone(small_onnx: Path, small_input: np.ndarray) -> None:
    process = psutil.Process()
    wg.load(small_onnx).close()  # what onnxruntime itself starts
    before = process.num_threads()
    session = wg.load(small_onnx, threads=3)
    clone = session.clone()
    assert process.num_threads() == before + 2
    session.close()
    clone.run({"x": small_input})
    clone.close()
    assert process.num_threads() == before
