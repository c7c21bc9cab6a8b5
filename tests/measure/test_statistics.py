from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.measure.statistics import describe


def test_quiet_rounds() -> None:
    found = describe((1 + 0.01 * np.random.default_rng(0).uniform(-1, 1, 50)).tolist())
    assert (found.warmup_rounds, found.outliers, found.unstable) == (0, 0, None)
    assert 1 < found.p90_s < found.p99_s < 1.02
    assert found.mad_s == pytest.approx(0.005, rel=0.5)


def test_warm_up_is_found_and_kept() -> None:
    rounds = [3.0, 2.0, *(1 + 0.01 * np.random.default_rng(0).uniform(-1, 1, 40))]
    found = describe(rounds)
    assert found.warmup_rounds == 2
    assert found.outliers == 2
    assert "--rounds" in str(found.unstable)
    assert found.p99_s > 2


def test_an_outlier_later_on_is_no_warm_up() -> None:
    rounds = [1.0, 1.01] * 20
    rounds[7] = 5.0
    found = describe(rounds)
    assert (found.warmup_rounds, found.outliers, found.unstable) == (0, 1, None)


def test_rounds_that_spread_are_called_unstable_with_a_remedy() -> None:
    found = describe(np.random.default_rng(0).uniform(1, 2, 50).tolist())
    assert "stop other programs" in str(found.unstable)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=60))
def test_any_rounds_can_be_described(rounds: list[float]) -> None:
    found = describe(rounds)
    assert min(rounds) <= found.p90_s <= found.p99_s <= max(rounds)
    assert 0 <= found.warmup_rounds <= len(rounds)
    assert 0 <= found.outliers < max(2, len(rounds))
