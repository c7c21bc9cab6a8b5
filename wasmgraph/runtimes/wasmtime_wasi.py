"""WASI in Wasmtime: a module that reads its parameters from a file can read one folder, and can access
nothing else of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import wasmtime

from wasmgraph.runtimes.wasmtime_engine import EngineConfig, engine


def instantiate(
    store: wasmtime.Store,
    module: wasmtime.Module,
    config: EngineConfig,
    folder: Path | None,
    memory: wasmtime.SharedMemory | None = None,
) -> Any:
    """Instantiate a module that imports WASI and possibly a shared memory; return its exports. The module
    can open nothing but ``folder``, and nothing at all if that is None."""
    wasi = wasmtime.WasiConfig()
    if folder is not None:
        wasi.preopen_dir(str(folder), ".", False)
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine(config))
    linker.define_wasi()
    if memory is not None:
        linker.define(store, "env", "memory", memory)
    return linker.instantiate(store, module).exports(store)
