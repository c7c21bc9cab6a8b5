"""Statistics of a series of timed rounds, and whether the series can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SPREAD = 0.05  # of the median: beyond it a difference of a tenth is hard to see
_FENCE = 1.5  # interquartile ranges (Tukey, Exploratory Data Analysis, 1977)


@dataclass(frozen=True)
class Description:
    """Of rounds, in seconds. Fields are those of :class:`wasmgraph.records.Record`."""

    p90_s: float
    p99_s: float
    mad_s: float
    warmup_rounds: int
    outliers: int
    unstable: str | None


def describe(rounds: Sequence[float]) -> Description:
    """Describe at least one round. Nothing is removed: outliers and warm-up are counted.

    Warm-up are the rounds at the beginning that lie above the fence of the later half. Rounds are unstable
    if their median absolute deviation is over 5 % of the median, or if there is warm-up.
    """
    values = np.asarray(rounds, float)
    median = float(np.median(values))
    mad = float(np.median(np.abs(values - median)))
    low, high = _fences(values)
    slow = values > _fences(values[len(values) // 2 :])[1]
    warmup = len(values) if slow.all() else int(slow.argmin())
    outliers = int(((values < low) | (values > high)).sum())
    remedies = []
    if median and mad > _SPREAD * median:
        remedies.append(
            f"rounds differ by {mad / median:.0%} from their median: measure more of them (--rounds), stop"
            " other programs on the machine, and rely on ratios of one run rather than on times"
        )
    if warmup:
        remedies.append(f"the first {warmup} of {len(values)} are warm-up: measure more of them (--rounds)")
    p90, p99 = (float(np.quantile(values, q)) for q in (0.9, 0.99))
    return Description(p90, p99, mad, warmup, outliers, "; ".join(remedies) or None)


def _fences(values: np.ndarray) -> tuple[float, float]:
    first, third = (float(np.quantile(values, q)) for q in (0.25, 0.75))
    reach = _FENCE * (third - first)
    return first - reach, third + reach
