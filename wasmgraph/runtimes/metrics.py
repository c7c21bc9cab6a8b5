"""Figures of an artifact that are counted, not timed: the record fields that are the same on every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from wasmgraph.artifact import Artifact
from wasmgraph.runtimes.wasmtime_meter import meter
from wasmgraph.tensors import Array


def metrics(artifact: Artifact, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """Return sizes and counts from the manifest, and for wasm artifacts the cost of one inference on
    ``feeds``.

    Keys are those of :class:`wasmgraph.records.Record` and ``kernel_work``, which is fuel by kernel.
    """
    manifest = artifact.manifest
    counted: dict[str, Any] = {
        "module_bytes": artifact.path.stat().st_size - manifest.embedded_bytes,
        "param_bytes": manifest.param_bytes,
        "arena_bytes": manifest.arena_bytes,
        "kernels": manifest.kernels,
        "ops_scheduled": manifest.ops_scheduled,
        "ops_fallback": manifest.ops_fallback,
        "ops_slow": manifest.ops_slow,
        "notes": "; ".join(manifest.notes) or None,
    }
    return counted | asdict(meter(artifact, feeds)) if manifest.kind == "wasm" else counted
