"""Winograd's minimal filtering for 3×3 convolutions of stride 1, as tensor expressions.

F(m×m, 3×3) computes m×m outputs from an (m+2)×(m+2) input tile with (m+2)² multiplications per pair of
channels instead of 9m²: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), after
Winograd (1980). The matrices are for the points 0, ±1 (and ±2 for m = 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx, topi

from wasmgraph.compiler.sizes import numbers, sizes
from wasmgraph.dims import Size

Matrix = list[list[float]]

# Input (Bᵀ), weight (G) and output (Aᵀ) transforms, by m.
_INPUT: dict[int, Matrix] = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
_WEIGHT: dict[int, Matrix] = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
_OUTPUT: dict[int, Matrix] = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


def pack_weights(weight: np.ndarray, block: int, m: int) -> np.ndarray:
    """Transform ``[O][3][3][I]`` and pack it to ``[(m+2)²][O/T][I][T]``, T = ``block``.

    The transform is computed in float64, the result is float32; the last block is padded with zeros.
    """
    g = np.asarray(_WEIGHT[m])
    transformed = np.einsum("xh,ohwi,yw->xyio", g, weight.astype(np.float64), g)
    size, _, inner, out = transformed.shape
    blocks = -(-out // block)
    packed = np.zeros((size * size, inner, blocks * block), np.float32)
    packed[..., :out] = transformed.reshape(size * size, inner, out)
    packed = packed.reshape(size * size, inner, blocks, block).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(packed)


def _combine(matrix: Matrix, row: Any, operand: Any) -> Any:
    """``Σₖ matrix[row][k] · operand(k)``, for a loop variable ``row`` that will be unrolled.

    Every row is a separate case, so that zeros and ones cost nothing when unrolling has fixed the row.
    """

    def case(coefficients: list[float]) -> Any:
        total: Any = None
        for k, factor in enumerate(coefficients):
            if factor == 0:
                continue
            term = operand(k) if abs(factor) == 1 else operand(k) * tirx.const(abs(factor), "float32")
            if total is None:
                total = term if factor > 0 else tirx.const(0, "float32") - term
            else:
                total = total + term if factor > 0 else total - term
        return total

    cases = [case(coefficients) for coefficients in matrix]
    chosen = cases[-1]
    for index in reversed(range(len(cases) - 1)):
        chosen = tirx.Select(row == index, cases[index], chosen)
    return chosen


def winograd_compute(
    data: te.Tensor, weight: te.Tensor, channels: int, padding: tuple[int, int, int, int], m: int
) -> te.Tensor:
    """3×3 convolution of stride 1, ``[N][H][W][I]`` by weights of :func:`pack_weights`.

    ``padding`` is top, left, bottom, right. The result is ``[N][OH][OW][O]``, ``channels`` = O.
    Blocks: ``pad``, ``gather``, ``rows``, ``transformed`` (input), ``acc``, ``product`` (one matrix
    product for each of the (m+2)² positions), ``columns``, ``tiles`` (output).
    """
    n, h, w, _ = sizes(data.shape)
    inner = int(data.shape[3])
    positions, blocks, _, block = numbers(weight.shape)
    size = m + 2
    top, left, bottom, right = padding
    oh, ow = h + top + bottom - 2, w + left + right - 2
    down, across = -(-oh // m), -(-ow // m)
    # Tiles of all images are joined; if their number is open, only those of each image, because joined
    # tiles would be divided into indices again.
    images: tuple[Size, ...] = () if isinstance(n, int) else (n,)
    count = down * across if images else n * down * across

    def image(at: Sequence[Any]) -> Any:
        return at[0] if images else at[0] // (down * across)

    # Pad the bottom and right sides with zeros up to whole tiles.
    low = [0, bottom + down * m - oh, right + across * m - ow, 0]
    padded = topi.nn.pad(data, [0, top, left, 0], low, 0.0, name="pad")
    gather = te.compute(
        (*images, count, size, size, inner),
        lambda *a: padded[image(a), a[-4] // across % down * m + a[-3], a[-4] % across * m + a[-2], a[-1]],
        name="gather",
    )
    rows = te.compute(
        (*images, count, size, size, inner),
        lambda *a: _combine(_INPUT[m], a[-3], lambda k: gather[(*a[:-3], k, *a[-2:])]),
        name="rows",
    )
    transformed = te.compute(
        (size, size, *images, count, inner),
        lambda i, j, *a: _combine(_INPUT[m], j, lambda k: rows[(*a[:-1], i, k, a[-1])]),
        name="transformed",
    )
    k = te.reduce_axis((0, inner), "k")
    acc = te.compute(
        (positions, blocks, *images, count, block),
        lambda q, b, *a: te.sum(
            transformed[(q // size, q % size, *a[:-1], k)] * weight[q, b, k, a[-1]], axis=[k]
        ),
        name="acc",
    )
    product = te.compute(
        (positions, *images, count, blocks * block),
        lambda q, *a: acc[(q, a[-1] // block, *a[:-1], a[-1] % block)],
        name="product",
    )
    columns = te.compute(
        (*images, count, m, size, blocks * block),
        lambda *a: _combine(_OUTPUT[m], a[-3], lambda k: product[(k * size + a[-2], *a[:-3], a[-1])]),
        name="columns",
    )
    tiles = te.compute(
        (*images, count, m, m, blocks * block),
        lambda *a: _combine(_OUTPUT[m], a[-2], lambda k: columns[(*a[:-2], k, a[-1])]),
        name="tiles",
    )

    def pixel(i: Any, y: Any, x: Any, c: Any) -> Any:
        place = y // m * across + x // m
        which = (i, place) if images else (i * (down * across) + place,)
        return tiles[(*which, y % m, x % m, c)]

    return te.compute((n, oh, ow, channels), pixel, name="conv2d")
