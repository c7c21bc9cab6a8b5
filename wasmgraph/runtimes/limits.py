"""What an untrusted graph may spend."""

from __future__ import annotations

from dataclasses import dataclass

from wasmgraph.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What loading a graph may take, and each of its calls: bytes of memory, seconds of processor time over
    all threads, seconds of time."""

    memory_bytes: int = 4 << 30
    cpu_s: float = 60.0
    wall_s: float = 60.0

    def __post_init__(self) -> None:
        if min(self.memory_bytes, self.cpu_s, self.wall_s) <= 0:
            raise UsageError(f"{self}: limits must be greater than nothing.")
