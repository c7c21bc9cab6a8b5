"""The choices of rules, as records of their own. A rule applies the decision that it is given, or makes
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tvm.s_tir import Schedule

from wasmgraph.targets import Target

_CHUNK_PIXELS = 32
_FEW_TILES = 4
_INDEPENDENT = 8  # accumulators that hide the latency of multiply and add in two units
_WEIGHTS_AT_HAND = 512 << 10  # bytes; a second-level cache holds them and a chunk's data


@dataclass(frozen=True)
class Tile:
    """How a convolution or a matrix product is divided.

    Attributes
    ----------
    pixels, channels : the register tile
    chunk : how many pixels get a number of channels before the next pixels do; None: all of them
    blocks : blocks of channels that a chunk gets at a time
    """

    pixels: int
    channels: int
    chunk: int | None = None
    blocks: int = 1


@dataclass(frozen=True)
class Vector:
    """How many elements of the innermost dimension are computed at a time."""

    width: int


Decision: TypeAlias = Tile | Vector
Scheduled: TypeAlias = tuple[Schedule, Decision]  # what a rule returns: the schedule, and what it followed


def decide_tile(pixels: int, packed: int, target: Target) -> Tile:
    """The register tile for so many pixels and weights in blocks of ``packed`` channels."""
    return Tile(tile_pixels(pixels, target), min(packed, target.tile_channels))


def decide_chunked(pixels: int, packed: int, blocks: int, inner: int, target: Target) -> Tile:
    """The same for a product whose pixels may go in chunks: ``blocks`` blocks of weights of ``inner`` rows.

    A residual is then read, and the result written, in nearly the order of memory, which prefetchers
    follow, and the input meets its next use in the cache; the price is that the weights come from the
    second-level cache for every chunk. A chunk therefore gets as many blocks of channels at a time as have
    weights that fit that cache beside it.
    """
    tiles = [g for g in range(1, pixels) if pixels % (g * target.tile_pixels) == 0]
    chunk = max((n for g in tiles if (n := g * target.tile_pixels) <= _CHUNK_PIXELS), default=None)
    if chunk is None:
        return decide_tile(pixels, packed, target)
    fitting = [
        n for n in range(1, blocks + 1) if blocks % n == 0 and 4 * n * packed * inner <= _WEIGHTS_AT_HAND
    ]
    return Tile(
        tile_pixels(chunk, target), min(packed, target.tile_channels), chunk, max(fitting, default=1)
    )


def tile_pixels(pixels: int, target: Target) -> int:
    """How many of a loop's pixels a tile takes: ``target.tile_pixels``, or fewer if the tiles are few.

    No pixels are then left, because LLVM keeps a large remainder's accumulators in memory; but enough
    accumulators must remain in the tile.
    """
    full = min(target.tile_pixels, pixels)
    if pixels % full == 0 or pixels > _FEW_TILES * full:
        return full
    least = max(full / 2, _INDEPENDENT * target.lanes / target.tile_channels)
    return next((t for t in range(full, 0, -1) if pixels % t == 0 and t >= least), full)
