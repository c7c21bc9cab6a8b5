"""Winograd's minimal filtering for 3×3 convolutions of stride 1, as tensor expressions.

F(m×m, 3×3) computes m×m outputs from an (m+2)×(m+2) input tile with (m+2)² multiplications per pair of
channels instead of 9m²: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), after
Winograd (1980). The matrices are for the points 0, ±1 (and ±2 for m = 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx, topi

from wasmgraph.compiler.sizes import numbers

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
    n, h, w, inner = numbers(data.shape)
    positions, blocks, _, block = numbers(weight.shape)
    size = m + 2
    top, left, bottom, right = padding
    oh, ow = h + top + bottom - 2, w + left + right - 2
    down, across = -(-oh // m), -(-ow // m)
    count = n * down * across
    # Pad the bottom and right sides with zeros up to whole tiles.
    low = [0, bottom + down * m - oh, right + across * m - ow, 0]
    padded = topi.nn.pad(data, [0, top, left, 0], low, 0.0, name="pad")
    gather = te.compute(
        (count, size, size, inner),
        lambda p, y, x, c: padded[p // (down * across), p // across % down * m + y, p % across * m + x, c],
        name="gather",
    )
    rows = te.compute(
        (count, size, size, inner),
        lambda p, i, x, c: _combine(_INPUT[m], i, lambda k: gather[p, k, x, c]),
        name="rows",
    )
    transformed = te.compute(
        (size, size, count, inner),
        lambda i, j, p, c: _combine(_INPUT[m], j, lambda k: rows[p, i, k, c]),
        name="transformed",
    )
    k = te.reduce_axis((0, inner), "k")
    acc = te.compute(
        (positions, blocks, count, block),
        lambda q, b, p, lane: te.sum(
            transformed[q // size, q % size, p, k] * weight[q, b, k, lane], axis=[k]
        ),
        name="acc",
    )
    product = te.compute(
        (positions, count, blocks * block),
        lambda q, p, c: acc[q, c // block, p, c % block],
        name="product",
    )
    columns = te.compute(
        (count, m, size, blocks * block),
        lambda p, i, x, c: _combine(_OUTPUT[m], i, lambda k: product[k * size + x, p, c]),
        name="columns",
    )
    tiles = te.compute(
        (count, m, m, blocks * block),
        lambda p, i, j, c: _combine(_OUTPUT[m], j, lambda k: columns[p, i, k, c]),
        name="tiles",
    )
    return te.compute(
        (n, oh, ow, channels),
        lambda i, y, x, c: tiles[(i * down + y // m) * across + x // m, y % m, x % m, c],
        name="conv2d",
    )
