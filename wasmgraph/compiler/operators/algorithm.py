"""Chooses a convolution's algorithm by a cost model of arithmetic and memory.

Costs are in cycles of one core. Arithmetic runs at the target's ``flops_per_cycle``. Weights are loaded
from memory once per inference, because a whole network's weights do not fit the cache. If a target can
prefetch, loading weights overlaps with arithmetic, and the longer of the two times counts. Otherwise the
first tile of pixels that needs a block of weights waits for memory, and memory is idle while the other
tiles compute: both times add up. Intermediates are written to and read from the cache. The model ranks
algorithms and does not predict times; ``wasmgraph profile`` on the whole network checks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wasmgraph.targets import Target

Algorithm = Literal["direct", "winograd-2", "winograd-4"]

_WEIGHT_BYTES_PER_CYCLE = 3.0  # streamed from memory: about 9 GB/s at 3 GHz on a shared host
_CACHE_BYTES_PER_CYCLE = 16.0
# Winograd weights have 16/9 or 4 times the bytes, in the file too: its cost must be below this fraction of
# the cheapest other cost.
_WORTH = 0.9


@dataclass(frozen=True)
class Convolution:
    """The shape of a 2-D convolution; sizes are in elements."""

    batch: int
    out_height: int
    out_width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def direct_flops(self) -> int:
        """The number of multiplications and additions of the direct algorithm."""
        pixels = self.batch * self.out_height * self.out_width
        window = self.kernel[0] * self.kernel[1] * self.in_channels // self.groups
        return 2 * pixels * self.out_channels * window

    @property
    def is_pointwise(self) -> bool:
        """Whether the convolution is a matrix product over pixels, one per group (if nothing is padded)."""
        return self.kernel == (1, 1)

    @property
    def fits_winograd(self) -> bool:
        """Whether F(m×m, 3×3) can compute the convolution."""
        unit = (self.stride, self.dilation, self.groups) == ((1, 1), (1, 1), 1)
        return unit and self.kernel == (3, 3)


def _with_weights(arithmetic: float, weight_bytes: int, target: Target) -> float:
    memory = weight_bytes / _WEIGHT_BYTES_PER_CYCLE
    return max(arithmetic, memory) if target.prefetch else arithmetic + memory


def _direct_cycles(conv: Convolution, target: Target) -> float:
    weights = 4 * conv.kernel[0] * conv.kernel[1] * conv.in_channels // conv.groups * conv.out_channels
    return _with_weights(conv.direct_flops / target.flops_per_cycle, weights, target)


def _winograd_cycles(conv: Convolution, target: Target, m: int) -> float:
    positions = (m + 2) ** 2
    tiles = conv.batch * -(-conv.out_height // m) * -(-conv.out_width // m)
    product = 2 * positions * tiles * conv.in_channels * conv.out_channels
    # Each transform multiplies twice by a small sparse matrix: about 4 operations per element.
    elements = positions * tiles * (conv.in_channels + conv.out_channels)
    weights = 4 * positions * conv.in_channels * conv.out_channels
    arithmetic = (product + 4 * 2 * elements) / target.flops_per_cycle
    return _with_weights(arithmetic, weights, target) + 8 * elements / _CACHE_BYTES_PER_CYCLE


def choose(conv: Convolution, target: Target, winograd: bool = True) -> Algorithm:
    """Choose the cheapest algorithm; one with larger weights must be clearly cheaper."""
    best: Algorithm = "direct"
    if not winograd or not conv.fits_winograd:
        return best
    cost = _direct_cycles(conv, target)
    options: tuple[tuple[Algorithm, int], ...] = (("winograd-2", 2), ("winograd-4", 4))
    for name, m in options:
        cycles = _winograd_cycles(conv, target, m)
        if cycles < _WORTH * cost:
            best, cost = name, cycles
    return best
