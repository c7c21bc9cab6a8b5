"""A roofline as an artifact. Its steps do the most arithmetic and the fastest reading that a target's
instructions allow; they are measured by running them in the same engine.

Williams, Waterman & Patterson, "Roofline: An Insightful Visual Performance Model" (2009).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from wasmgraph.artifact import CLOSED_SCHEMA, Artifact, Manifest, Step, seal
from wasmgraph.compiler.link.library import Library, link_library, template
from wasmgraph.compiler.link.zig import compile_object
from wasmgraph.targets import Target, get_target

_ITERATIONS = 1 << 19  # about a millisecond: short enough to fit a quiet moment
# Chains hide the latency of a dependent multiply and add, as far as registers go: more would spill. For
# Golden Cove, which can multiply and add three times in two cycles, they are too few; a tile, whose
# products wait for nothing, then shows more.
_CHAINS = 14
_ROWS, _COLUMNS = 2, 4
_ARENA_BYTES = 64 << 20  # beyond what a core's share of the cache holds


def build_roofline(target: str) -> Artifact:
    """Compile the roofline of a target: steps 0 and 1 compute, 2 writes memory, 3 reads it."""
    chosen = get_target(target)
    owner: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="wasmgraph-")
    directory = Path(owner.name)
    source = directory / "roofline.c"
    source.write_text(template("roofline.c", {}))
    macros = {
        "LANES": chosen.lanes,
        "CHAINS": _CHAINS,
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "ITERATIONS": _ITERATIONS,
        "ARENA_BYTES": _ARENA_BYTES,
        "RELAXED": int("relaxed-simd" in chosen.features),
    }
    flags = [f"-D{name}={value}" for name, value in macros.items()]
    flags += [f"-ffp-contract={'fast' if chosen.fma else 'off'}", "-fno-vectorize", "-fno-slp-vectorize"]
    if chosen.kind == "native":
        # Otherwise LLVM divides vectors of 512 bits for the processors whose clock they may lower.
        flags.append(f"-mprefer-vector-width={32 * chosen.lanes}")
    compile_object(source, directory / "roofline.o", chosen, flags)
    linked = link_library(Library([directory / "roofline.o"], _ARENA_BYTES), directory, chosen)
    seal(linked, _manifest(chosen))
    return Artifact.open(linked, owner)


def _manifest(target: Target) -> Manifest:
    flops = 2 * target.lanes * _ITERATIONS
    return Manifest(
        schema=CLOSED_SCHEMA,
        model_name="roofline",
        model_sha256="",
        weights="none",
        description={},
        target=target.name,
        kind=target.kind,
        features=target.features,
        cpu_features=(),
        inputs=(),
        outputs=(),
        arena_bytes=_ARENA_BYTES,
        param_bytes=0,
        params="embedded",
        steps=(
            Step("chains", "multiply-add", "roofline", flops * _CHAINS, 0),
            Step("tile", "multiply-add", "roofline", flops * _ROWS * _COLUMNS, 0),
            Step("fill", "write", "roofline", 0, _ARENA_BYTES),
            Step("stream", "read", "roofline", 0, _ARENA_BYTES),
        ),
        kernels=4,
        ops_scheduled=4,
        ops_fallback=0,
        versions={},
    )
