"""Converters by family of operators; importing this registers them all."""

from wasmgraph.compiler.importing.frontend.converters import (
    arithmetic,
    casts,
    control,
    convolution,
    indexing,
    ml,
    normalization,
    pooling,
    quantized,
    recurrent,
    reductions,
    resize,
    scans,
    sequences,
    signals,
    training,
)

__all__ = [
    "arithmetic",
    "casts",
    "control",
    "convolution",
    "indexing",
    "ml",
    "normalization",
    "pooling",
    "quantized",
    "recurrent",
    "reductions",
    "resize",
    "scans",
    "sequences",
    "signals",
    "training",
]
