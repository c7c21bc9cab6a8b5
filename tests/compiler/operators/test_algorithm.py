from __future__ import annotations

from dataclasses import replace

import pytest

from wasmgraph.compiler.operators.algorithm import Convolution, choose
from wasmgraph.targets import get_target


def square(size: int, channels: int) -> Convolution:
    return Convolution(1, size, size, channels, channels, (3, 3), (1, 1), (1, 1), 1)


@pytest.mark.parametrize(("size", "channels"), [(56, 64), (28, 128), (14, 256)])
def test_large_images_get_the_larger_tile(size: int, channels: int) -> None:
    assert choose(square(size, channels), get_target("wasm32-simd128")) == "winograd-4"


@pytest.mark.parametrize(
    ("lanes", "fma", "algorithm"),
    [(1, False, "winograd-4"), (4, False, "winograd-2"), (4, True, "winograd-2"), (16, True, "direct")],
)
def test_weights_that_outgrow_the_cache_count(lanes: int, fma: bool, algorithm: str) -> None:
    """At 7×7 F(4×4) streams 38 MB of weights: the faster the arithmetic, the less it is worth."""
    target = replace(get_target("wasm32-simd128"), vector_bytes=4 * lanes, fma=fma)
    assert choose(square(7, 512), target) == algorithm


@pytest.mark.parametrize(
    "change", [{"kernel": (5, 5)}, {"stride": (2, 1)}, {"dilation": (2, 2)}, {"groups": 2}]
)
def test_what_winograd_cannot_do_stays_direct(change: dict) -> None:
    assert choose(replace(square(28, 128), **change), get_target("wasm32")) == "direct"


def test_winograd_can_be_refused() -> None:
    assert choose(square(28, 128), get_target("wasm32-simd128"), winograd=False) == "direct"


def test_flops_are_counted_as_direct() -> None:
    assert square(28, 128).direct_flops == 2 * 28 * 28 * 128 * 128 * 9
    assert replace(square(28, 128), groups=128).direct_flops == 2 * 28 * 28 * 128 * 9
