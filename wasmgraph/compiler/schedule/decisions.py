"""Decisions of schedule rules, as separate records. A rule applies the decision that it is given, or makes
its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from tvm.s_tir import Schedule

from wasmgraph.compiler.operators.packing import few_rows_block
from wasmgraph.dims import Size
from wasmgraph.targets import Target

_CHUNK_PIXELS = 32
_FEW_TILES = 4
_INDEPENDENT = 8  # accumulators needed to hide the latency of multiply and add in two units
_WEIGHTS_AT_HAND = 512 << 10  # bytes of weights that fit a second-level cache with a chunk's data


@dataclass(frozen=True)
class Tile:
    """How a convolution or a matrix product is tiled.

    Attributes
    ----------
    pixels, channels : size of the register tile
    chunk : number of pixels that are computed for a group of channels before the next pixels; None: all
    blocks : number of blocks of channels in such a group
    """

    pixels: int
    channels: int
    chunk: int | None = None
    blocks: int = 1


@dataclass(frozen=True)
class Vector:
    """The number of elements of the innermost dimension that are computed at a time."""

    width: int


Decision: TypeAlias = Tile | Vector
Scheduled: TypeAlias = tuple[Schedule, Decision]  # a rule's result: the schedule and its decision


def decide_tile(pixels: Size, packed: int, target: Target) -> Tile:
    """The register tile for ``pixels`` pixels and weights in blocks of ``packed`` channels."""
    return Tile(tile_pixels(pixels, target), min(packed, target.tile_channels))


def decide_rows(rows: Size, packed: int, target: Target) -> Tile:
    """The tile for the rows of a matrix product; see ``operators.packing.few_rows_block``."""
    if few_rows_block(rows, target) == packed:
        target = replace(target, tile_pixels=2 * target.tile_pixels, tile_channels=packed)
    return decide_tile(rows, packed, target)


def decide_chunked(pixels: Size, packed: int, blocks: int, inner: int, target: Target) -> Tile:
    """The tile for a product whose pixels may be computed in chunks. There are ``blocks`` blocks of weights
    with ``inner`` rows each.

    With chunks, a residual is read and the result is written nearly in the order of memory, which hardware
    prefetchers follow, and the input is still in the cache at its next use. The price is that every chunk
    loads the weights from the second-level cache. A chunk is therefore computed for as many blocks of
    channels at a time as have weights that fit this cache together with the chunk.
    """
    if isinstance(pixels, int):
        tiles = [g for g in range(1, pixels) if pixels % (g * target.tile_pixels) == 0]
        chunk = max((n for g in tiles if (n := g * target.tile_pixels) <= _CHUNK_PIXELS), default=None)
    else:
        chunk = _CHUNK_PIXELS // target.tile_pixels * target.tile_pixels
    if chunk is None:
        return decide_tile(pixels, packed, target)
    fitting = [
        n for n in range(1, blocks + 1) if blocks % n == 0 and 4 * n * packed * inner <= _WEIGHTS_AT_HAND
    ]
    return Tile(
        tile_pixels(chunk, target), min(packed, target.tile_channels), chunk, max(fitting, default=1)
    )


def tile_pixels(pixels: Size, target: Target) -> int:
    """The number of pixels in a tile: ``target.tile_pixels``, or fewer if a loop has few tiles.

    With few tiles, the number divides the loop's pixels, because LLVM keeps the accumulators of a large
    remainder in memory. The tile must still have enough accumulators.
    """
    if not isinstance(pixels, int):
        return target.tile_pixels
    full = min(target.tile_pixels, pixels)
    if pixels % full == 0 or pixels > _FEW_TILES * full:
        return full
    least = max(full / 2, _INDEPENDENT * target.lanes / target.tile_channels)
    return next((t for t in range(full, 0, -1) if pixels % t == 0 and t >= least), full)
