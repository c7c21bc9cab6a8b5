"""A module of functions: objects, parameters and memory, linked for one target.

Graphs and the roofline kernels are such modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from wasmgraph.abi import ARENA, GRAPH, INIT, PARAMS, POOL, READ_AHEAD_BYTES, STACK_POINTER, Signatures
from wasmgraph.compiler.form import Form
from wasmgraph.compiler.link.zig import compile_object, zig
from wasmgraph.errors import ModelError
from wasmgraph.targets import Target
from wasmgraph.wasm.wasmfile import PAGE_BYTES, export_start

_STACK_BYTES = 65536
_CONSTANTS_BYTES = 1 << 20
# Pages that a host may add to a shared memory for the stacks of its workers, one page each.
_WORKER_PAGES = 1024


@dataclass(frozen=True)
class Library:
    """The contents of a module that is to be linked.

    Attributes
    ----------
    objects : object files and archives that define the functions, the parameters and the arena
    data_bytes : total size of parameters and arena
    functions : the functions that are exported, with their signatures
    addresses : symbols whose addresses are exported as globals
    named : keep the functions' names and all other custom sections, in a wasm module
    """

    objects: Sequence[Path]
    data_bytes: int
    functions: Signatures = field(default_factory=lambda: GRAPH)
    addresses: Sequence[str] = (ARENA,)
    form: Form = field(default_factory=Form)
    named: bool = False


def template(name: str, values: Mapping[str, str]) -> str:
    """Return a C file of ``csrc`` with its ``@KEYS@`` replaced by ``values``."""
    text = resources.files("wasmgraph.compiler.link").joinpath("csrc", name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def memory_bytes(data_bytes: int) -> int:
    """Smallest memory, in bytes of whole pages, for the stack, ``data_bytes`` of data, the kernels'
    constants, and the bytes that kernels read ahead."""
    needed = _STACK_BYTES + data_bytes + _CONSTANTS_BYTES + READ_AHEAD_BYTES
    return -(-needed // PAGE_BYTES) * PAGE_BYTES


def check_memory(param_bytes: int, arena_bytes: int, target: Target) -> None:
    """Raise ModelError if parameters and arena are larger than a module's address space."""
    workers = _WORKER_PAGES * PAGE_BYTES if target.threaded else 0
    if target.kind == "wasm" and memory_bytes(param_bytes + arena_bytes) + workers > 1 << 32:
        raise ModelError(
            f"the model's tensors take {param_bytes + arena_bytes:,} bytes ({param_bytes:,} of them"
            " parameters); a WebAssembly module has 4 GiB. Bind smaller shapes, or compile it for native."
        )


def link_library(library: Library, directory: Path, target: Target) -> Path:
    """Link a library in ``directory``; return the module's path. Linear memory never grows."""
    objects, form = list(library.objects), library.form
    if target.kind == "native":
        linked = directory / "graph.so"
        whole: list[str | Path] = ["-Wl,--whole-archive", *objects, "-Wl,--no-whole-archive"]
        zig("cc", "-shared", *whole, "-lm", "-s", "-o", linked)
        return linked
    linked = directory / "graph.wasm"
    memory = most = memory_bytes(library.data_bytes)
    # Zig puts the stack first, so that an overflow traps instead of overwriting data. A reactor module has
    # an `_initialize` that does nothing, and imports only what the form asks for.
    options = ["-mexec-model=command"] if form.command else ["-mexec-model=reactor", "-Wl,--no-entry"]
    options += ["-Wl,--gc-sections", "-g" if library.named else "-s"]
    exports = [*([] if form.command else library.functions), *library.addresses]
    if form.params == "wasi":
        exports += PARAMS
    if target.threaded:
        pool = directory / "pool.o"
        source = resources.files("wasmgraph.compiler.link").joinpath("csrc/pool.c")
        with resources.as_file(source) as path:
            compile_object(path, pool, target, form.flags)
        objects = [*objects, pool]
        exports += [*(name for name in POOL if name != INIT), STACK_POINTER]
        most += _WORKER_PAGES * PAGE_BYTES
        options += ["-Wl,--shared-memory", "-Wl,--import-memory"]
        if form.params == "wasi":  # engines' WASI functions access the exported memory
            options += ["-Wl,--export-memory"]
    options += [f"-Wl,--export={symbol}" for symbol in exports]
    options += [f"-Wl,-z,stack-size={_STACK_BYTES}"]
    options += [f"-Wl,--initial-memory={memory}", f"-Wl,--max-memory={most}"]
    features = [feature.replace("-", "_") for feature in target.features]
    cpu = "+".join(["generic", "bulk_memory", *features])
    zig("cc", "-target", "wasm32-wasi", f"-mcpu={cpu}", *options, *objects, "-o", linked)
    if target.threaded:  # the linker's function: the first instance to call it fills the shared memory
        export_start(linked, INIT)
    return linked
