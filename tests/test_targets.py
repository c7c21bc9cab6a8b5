from __future__ import annotations

import pytest

from wasmgraph.targets import get_target


@pytest.mark.parametrize(
    ("target", "dtype", "lanes"),
    [
        ("wasm32", "int8", 1),
        ("wasm32-simd128", "float32", 4),
        ("wasm32-simd128", "float64", 2),
        ("wasm32-simd128", "uint8", 16),
        ("wasm32-simd128", "bool", 16),
        ("native-128", "int16", 8),
    ],
)
def test_lanes_by_dtype(target: str, dtype: str, lanes: int) -> None:
    assert get_target(target).lanes_of(dtype) == lanes
