"""Checks that a wasm artifact must pass before it is instantiated.

The manifest is not trusted: each check compares it with the module's bytes, or checks the module alone.
No check is repeated at an inference.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from wasmgraph.abi import GRAPH, PARAMS, POOL, STACK_POINTER
from wasmgraph.artifact import Artifact, Manifest
from wasmgraph.errors import ArtifactError
from wasmgraph.targets import WASM_FEATURES
from wasmgraph.tensors import TensorSpec
from wasmgraph.wasm.wasmfile import PAGE_BYTES, Module

_ALIGNMENT = 8  # bytes: that of the largest element
_MEMORY = ("env", "memory", "memory")
_PREVIEW1 = "wasi_snapshot_preview1"
_FILE = {  # WASI functions for reading one file in a folder that the host opened; nothing else
    "path_open": "(i32, i32, i32, i32, i32, i64, i64, i32, i32) -> i32",
    "fd_read": "(i32, i32, i32, i32) -> i32",
    "fd_close": "(i32) -> i32",
}


def _imports(manifest: Manifest, module: Module) -> str | None:
    allowed = {_MEMORY} if module.memory_shared else set()
    if manifest.params == "wasi":
        allowed |= {(_PREVIEW1, name, "func") for name in _FILE}
    typed = all(module.signatures.get(f"{_PREVIEW1}.{name}", said) == said for name, said in _FILE.items())
    if len(module.imports) != len(allowed) or set(module.imports) != allowed or not typed:
        found = ", ".join(f"{where}.{name}" for where, name, _ in module.imports) or "nothing"
        wanted = ", ".join(f"{where}.{name}" for where, name, _ in sorted(allowed))
        wanted = wanted or "nothing: only self-contained modules are run"
        return f"it imports {found}; a module of its kind imports {wanted}"
    return None


def _exports(manifest: Manifest, module: Module) -> str | None:
    functions = {**GRAPH, **POOL} if module.memory_shared else dict(GRAPH)
    if manifest.params == "wasi":
        functions |= PARAMS
    wrong = [
        f"{name} {signature}"
        for name, signature in functions.items()
        if module.signatures.get(name) != signature
    ]
    if module.memory_shared:
        if STACK_POINTER not in module.global_values:
            wrong.append(f"{STACK_POINTER} i32")
    elif module.exports.get("memory") != "memory":
        wrong.append("memory")
    return f"it does not export {', '.join(wrong)}" if wrong else None


def _start(manifest: Manifest, module: Module) -> str | None:
    return "it has a start function, which would run unasked" if module.has_start else None


def _memory(manifest: Manifest, module: Module) -> str | None:
    if module.memories != 1 or module.memory_64:
        kind = "64-bit memory" if module.memory_64 else f"{module.memories} memories"
        return f"it has {kind}; a graph has one of 32 bits"
    least, most = module.memory_min, module.memory_max
    if most is None or not least <= most <= 65536:
        return f"its memory may grow from {least} to {'any number of' if most is None else most} pages"
    if module.memory_shared:
        if manifest.memory_pages != (least, most):
            return f"its manifest says memory of {manifest.memory_pages} pages, the module {(least, most)}"
    elif least != most:
        return f"its memory may grow from {least} to {most} pages; a graph's never grows"
    return None


def _tensors(manifest: Manifest, module: Module) -> str | None:
    size = module.memory_min * PAGE_BYTES
    dims = {dim.name: dim for dim in manifest.dims}
    placed = [(t.offset, t.spec.largest(dims)) for t in (*manifest.inputs, *manifest.outputs)]
    placed += [(dim.offset, TensorSpec(dim.name, (), "int32")) for dim in manifest.dims]
    for offset, spec in placed:
        end = offset + spec.nbytes
        aligned = offset % (_ALIGNMENT if spec.dtype != "int32" or spec.shape else 4) == 0
        if offset < 0 or not aligned or end > size:
            return f"{spec} at {offset} is not aligned, or outside the memory of {size} bytes"
    for said in manifest.checks:
        if said.offset % _ALIGNMENT or said.offset + 8 > size:
            return f"a check's code at {said.offset} is not aligned, or outside the memory of {size} bytes"
    held = manifest.arena_bytes + manifest.param_bytes
    if held > size:
        return f"its manifest says {held} bytes of arena and parameters, in a memory of {size}"
    placed.sort(key=lambda pair: pair[0])
    for (first, one), (second, other) in pairwise(pair for pair in placed if pair[1].nbytes):
        if first + one.nbytes > second:
            return f"{one} and {other} overlap"
    return None


def _names(manifest: Manifest, module: Module) -> str | None:
    for side, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            return f"two of its {side} have the same name"
    return None


def _features(manifest: Manifest, module: Module) -> str | None:
    unknown = sorted(set(manifest.features) - WASM_FEATURES)
    return f"it needs {', '.join(unknown)}, which no target has" if unknown else None


CHECKS: dict[str, Callable[[Manifest, Module], str | None]] = {
    "imports": _imports,
    "exports": _exports,
    "start": _start,
    "memory": _memory,
    "tensors": _tensors,
    "names": _names,
    "features": _features,
}


def check(artifact: Artifact) -> Module:
    """Check an artifact's module against its manifest and its kind; return the module.

    Raises
    ------
    ArtifactError
        The artifact failed a check, which the error's ``check`` names.
    """
    module = artifact.module
    assert module is not None
    if artifact.manifest.command:
        raise ArtifactError(
            f"{artifact.path} is a WASI command: `wasmtime run {artifact.path}` runs it, on raw tensors. To"
            " load the graph, compile it without --command.",
            check="command",
        )
    for name, complaint in CHECKS.items():
        if said := complaint(artifact.manifest, module):
            raise ArtifactError(
                f"{artifact.path} is no module that wasmgraph makes: {said}. Compile the model again.",
                check=name,
            )
    return module
