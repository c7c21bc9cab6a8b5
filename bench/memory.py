"""What a bench asks in a process of its own: little is imported, so that it starts fast."""

from __future__ import annotations

from pathlib import Path

from bench.peers import engine
from wasmgraph.measure.sessions import memory_of_one_more
from wasmgraph.runtimes import LoadOptions
from wasmgraph.tensors import Array


def session_bytes(runtime: str, source: Path, threads: int, feeds: dict[str, Array]) -> int:
    """Bytes of physical memory of one more session."""
    return memory_of_one_more(lambda: engine(runtime).load(source, LoadOptions(threads)), feeds)
