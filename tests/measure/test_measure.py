from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wasmgraph.measure.accuracy import augment, judge, judge_vectors
from wasmgraph.measure.coldstart import cold_start
from wasmgraph.measure.interleaved import Schedule, block_of, interleave, pair, ratio_of_medians


@pytest.fixture(scope="module", autouse=True)
def no_waiting() -> Iterator[None]:
    """Nothing here takes time that a neighbour could lengthen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wasmgraph.measure.interleaved.on_quiet_processor", lambda threads: nullcontext())
        yield


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_backends_take_turns_and_first_calls_are_dropped(blocks: int, calls: int, count: int) -> None:
    trace: list[int] = []
    backends = {str(i): block_of(lambda i=i: trace.append(i)) for i in range(count)}
    rounds = interleave(backends, Schedule(blocks, calls))
    assert {len(r) for r in rounds.values()} == {blocks * calls}
    turns = [trace[i : i + calls + 1] for i in range(0, len(trace), calls + 1)]
    assert all(len(set(turn)) == 1 for turn in turns)
    assert [turn[0] for turn in turns] == [(b + i) % count for b in range(blocks) for i in range(count)]


def test_pairs_alternate_who_comes_first() -> None:
    trace: list[str] = []

    def call(name: str, seconds: float) -> float:
        trace.append(name)
        return seconds

    found = pair(lambda: call("b", 1.0), lambda: call("h", 2.0), 4)
    assert found == ([1.0] * 4, [2.0] * 4)
    assert "".join(trace) == "bh" + "bh" + "hb" + "bh" + "hb"


def test_the_interval_holds_the_ratio() -> None:
    rng = np.random.default_rng(0)
    schedule = Schedule(10, 3)
    reference = (1 + 0.02 * rng.random(30)).tolist()
    ratio = ratio_of_medians([2 * r for r in reference], reference, schedule)
    assert ratio.value == pytest.approx(2)
    assert ratio.low <= 2 <= ratio.high
    noisy = ratio_of_medians((2 + rng.random(30)).tolist(), reference, schedule)
    assert noisy.high - noisy.low > ratio.high - ratio.low
    single = ratio_of_medians([2.0, 2.0], [1.0, 1.0], Schedule(1, 2))
    assert (single.low, single.value, single.high) == (2, 2, 2)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)), min_size=4, max_size=4))
@example([(0.9, 0.6), (3.1, 3.5), (3.7, 3.9), (3.9, 3.9)])  # an end differed from the ratio in its last bit
def test_the_interval_of_few_rounds_contains_the_ratio(rounds: list[tuple[float, float]]) -> None:
    ours, theirs = map(list, zip(*rounds, strict=True))
    ratio = ratio_of_medians(ours, theirs, Schedule(2, 2))
    assert ratio.low <= ratio.value <= ratio.high


def test_accuracy_counts() -> None:
    right = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]], np.float32)
    wrong = right[:, ::-1]
    reference = [{"p": right, "l": right}, {"p": right, "l": right}]
    found = judge([{"p": right, "l": right}, {"p": wrong, "l": right + 1}], reference, [6, 6], "p", "l")
    assert (found.inputs, found.top1, found.top5, found.agreement) == (2, 1, 1, 1)
    assert found.max_prob_diff == pytest.approx(0.6)
    assert found.max_logit_diff == pytest.approx(1)
    unlabelled = judge([{"p": right}], [{"p": right}], None, "p", None)
    assert (unlabelled.top1, unlabelled.max_logit_diff, unlabelled.max_prob_diff) == (None, None, 0)


def test_a_nan_is_not_a_small_difference() -> None:
    good = {"p": np.ones((1, 6), np.float32)}
    bad = {"p": np.full((1, 6), np.nan, np.float32)}
    assert judge([bad], [good], None, "p", None).max_prob_diff == float("inf")


def test_augmented_inputs_differ_and_are_seeded() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    first, second = augment([image, image + 1], 12), augment([image, image + 1], 12)
    assert len(first) == 12
    assert all(a.shape == image.shape and a.dtype == np.float32 for a in first)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({a.tobytes() for a in first}) == 12


def test_cold_start_times_every_repetition_and_closes() -> None:
    closed: list[bool] = []

    class Fake:
        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            closed.append(True)

        def run(self, feeds: dict) -> dict:
            return feeds

    found = cold_start(Fake, {}, 3)
    assert len(found.ready_s) == len(found.first_output_s) == 3
    assert len(closed) == 4
    assert all(r <= f for r, f in zip(found.ready_s, found.first_output_s, strict=True))


def test_vectors_are_judged_by_angle_and_by_neighbour() -> None:
    theirs = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.2, 0.9]])
    same = judge_vectors(theirs * 3, theirs)
    assert (same.inputs, same.neighbours_agree) == (4, 4)
    assert same.cosine_min == pytest.approx(1)
    turned = theirs.copy()
    turned[1] = [-0.1, 1]  # now nearest to the third, which is nearest to it
    other = judge_vectors(turned, theirs)
    assert other.neighbours_agree is not None
    assert other.neighbours_agree < 4
    assert other.cosine_min == pytest.approx(0.01 / (np.hypot(0.9, 0.1) * np.hypot(0.1, 1)), abs=1e-6)
    assert other.max_prob_diff == pytest.approx(1.0)
    broken = theirs.copy()
    broken[0] = np.nan
    assert judge_vectors(broken, theirs).cosine_min == -1
