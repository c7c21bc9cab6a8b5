"""Costs of a graph that are counted instead of timed. They come from an instrumented run, and are the same
on every machine of one architecture.
"""

from __future__ import annotations

import platform
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import wasmtime

from wasmgraph.artifact import Artifact
from wasmgraph.errors import UsageError
from wasmgraph.runtimes.wasmtime import WasmtimeSession
from wasmgraph.runtimes.wasmtime_engine import EngineConfig
from wasmgraph.tensors import Array

# The target processor is fixed (x86-64-v3), so that code size does not depend on this machine's processor.
_FEATURES = {
    "x86_64": ("sse3", "ssse3", "sse41", "sse42", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt"),
    "aarch64": (),
}
_SYMBOLS = 2  # SHT_SYMTAB
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Reading:
    """Fuel of one inference and of each kernel's calls in it; bytes of machine code and linear memory."""

    work_fuel: int
    kernel_work: Mapping[str, int]
    machine_code_bytes: int | None
    peak_memory_bytes: int


def meter(artifact: Artifact, feeds: Mapping[str, Array]) -> Reading:
    """Run one inference as a whole and one call by call, on one thread, and count instructions.

    Fuel counts WebAssembly instructions, not time: less fuel can take longer (spills, cache misses).
    ``machine_code_bytes`` is None on an architecture other than x86-64 and AArch64.

    Raises
    ------
    UsageError
        ``artifact`` is not a wasm artifact.
    """
    if artifact.manifest.kind != "wasm":
        raise UsageError(f"{artifact.path} is native code: its instructions cannot be counted.")
    with WasmtimeSession(artifact, EngineConfig(fuel=True), threads=1) as session:
        before = session.fuel
        session.run(feeds)
        work = before - session.fuel
        kernels: Counter[str] = Counter()
        for index, step in enumerate(artifact.manifest.steps):
            before = session.fuel
            session.run_step(index)
            kernels[step.kernel] += step.turns * (before - session.fuel)
        return Reading(work, dict(kernels), machine_code_bytes(artifact), session.memory_bytes)


def machine_code_bytes(artifact: Artifact) -> int | None:
    """Size of Cranelift's machine code for a wasm artifact, for a fixed processor of this architecture."""
    machine = platform.machine().lower()
    architecture = _ARCHITECTURES.get(machine, machine)
    if architecture not in _FEATURES:
        return None
    config = wasmtime.Config()
    config.target = f"{architecture}-unknown-linux-gnu"
    for feature in _FEATURES[architecture]:
        config.cranelift_flag_enable(f"has_{feature}")
    config.shared_memory = True
    compiled = wasmtime.Module.from_file(wasmtime.Engine(config), str(artifact.path)).serialize()
    return _function_bytes(bytes(compiled))


def _function_bytes(elf: bytes) -> int:
    """Total size of the functions in a 64-bit little-endian ELF file (System V ABI, chapter 4). The sizes
    come from the symbol table, because the code section is padded to whole pages."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count = struct.unpack_from("<HH", elf, 0x3A)
    total = 0
    for number in range(count):
        _, kind, _, _, offset, size = struct.unpack_from("<IIQQQQ", elf, table + entry * number)
        if kind == _SYMBOLS:
            total += sum(symbol[5] for symbol in struct.iter_unpack("<IBBHQQ", elf[offset : offset + size]))
    return total
