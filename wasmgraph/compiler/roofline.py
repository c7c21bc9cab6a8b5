"""A roofline as an artifact: its steps are the most arithmetic and the fastest reading that a
target's instructions allow, measured by running them in the engine in question.

Williams, Waterman & Patterson, "Roofline: An Insightful Visual Performance Model" (2009).
"""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path

from wasmgraph.artifact import SCHEMA, Artifact, Manifest, Step, seal
from wasmgraph.compiler.link import compile_object, link_objects
from wasmgraph.targets import Target, get_target

_ITERATIONS = 2_000_000
# Independent chains hide the latency of a dependent multiply and add; more would spill.
_CHAINS = 12
_ARENA_BYTES = 64 << 20  # beyond what a core's share of the cache holds


def build_roofline(target: str) -> Artifact:
    """Compile the roofline of a target: step 0 computes, 1 writes memory, 2 reads it."""
    chosen = get_target(target)
    owner: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="wasmgraph-")
    directory = Path(owner.name)
    source = directory / "roofline.c"
    text = resources.files("wasmgraph.compiler").joinpath("csrc/roofline.c").read_text()
    source.write_text(text)
    macros = {
        "LANES": chosen.lanes,
        "CHAINS": _CHAINS,
        "ITERATIONS": _ITERATIONS,
        "ARENA_BYTES": _ARENA_BYTES,
        "RELAXED": int("relaxed-simd" in chosen.features),
    }
    flags = [f"-D{name}={value}" for name, value in macros.items()]
    flags += [f"-ffp-contract={'fast' if chosen.fma else 'off'}", "-fno-vectorize", "-fno-slp-vectorize"]
    compile_object(source, directory / "roofline.o", chosen, flags)
    linked = link_objects([directory / "roofline.o"], directory, chosen, _ARENA_BYTES)
    seal(linked, _manifest(chosen))
    return Artifact.open(linked, owner)


def _manifest(target: Target) -> Manifest:
    flops = 2 * target.lanes * _CHAINS * _ITERATIONS
    return Manifest(
        schema=SCHEMA,
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
            Step("peak", "multiply-add", "roofline", flops, 0),
            Step("fill", "write", "roofline", 0, _ARENA_BYTES),
            Step("stream", "read", "roofline", 0, _ARENA_BYTES),
        ),
        kernels=3,
        ops_scheduled=3,
        ops_fallback=0,
        versions={},
    )
