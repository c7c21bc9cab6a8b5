"""Stage 7: kernels, parameters and the entry become one module (or one native library).

Zig carries the C compiler, assembler, archiver and linker for every target in one wheel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from wasmgraph.artifact import FIRST_CHECK, Params
from wasmgraph.compiler.link.pipelining import MOST_STRIDE, pipeline
from wasmgraph.compiler.link.wasi import command_values, params_values, place_params
from wasmgraph.compiler.link.zig import compile_object, zig
from wasmgraph.compiler.lower.phases import Phase
from wasmgraph.compiler.plan import ALIGNMENT, COPY, Address, Call, Plan, symbol_of
from wasmgraph.errors import ModelError
from wasmgraph.targets import Target
from wasmgraph.tensors import Array, TensorSpec
from wasmgraph.wasm.wasmfile import PAGE_BYTES, export_start, read_module

_STACK_BYTES = 65536
_CONSTANTS_BYTES = 1 << 20
# Addresses of these symbols are exported as globals, so that the manifest can say where they are.
ARENA_SYMBOL = "wasmgraph_arena"
INIT_SYMBOL = "wasmgraph_init"
PLAIN_SYMBOL = "wasmgraph_plain_loops"
_WASM_EXPORTS = ("wasmgraph_run", "wasmgraph_step", ARENA_SYMBOL)
_POOL_EXPORTS = (
    *("wasmgraph_threads", "wasmgraph_worker", "wasmgraph_fail", "wasmgraph_stop"),
    "__stack_pointer",
)
LOAD_SYMBOL = "wasmgraph_load"
_COMMAND_EXPORTS = (ARENA_SYMBOL,)
# Room that a host may add to a shared memory for the stacks of its workers, a page each.
_WORKER_PAGES = 1024


@dataclass(frozen=True)
class Form:
    """What is linked: where a module's parameters are, and whether it is a WASI command."""

    params: Params = "embedded"
    command: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """For the C compiler."""
        return ("-DWASI_PARAMS",) if self.params == "wasi" else ()


def _expression(address: Address) -> str:
    return f"{'ARENA' if address.space == 'arena' else 'PARAMS'}({address.offset}u)"


def _call(call: Call, phases: Sequence[Phase]) -> str:
    """A step in C; ``phases`` are empty for a target without threads."""
    arguments = [_expression(address) for address in call.arguments]
    if call.kernel == COPY:
        source, destination = arguments
        copy = f"__builtin_memcpy({destination}, {source}, {call.copied_bytes}u)"
        return f"PHASE(1, {copy}) return 0;" if phases else f"{copy}; return 0;"
    passed = ", ".join(arguments)
    if phases:
        return (
            " ".join(f"PHASE({p.turns}, {symbol_of(p.symbol)}({passed}, begin, end))" for p in phases)
            + " return 0;"
        )
    return f"return {symbol_of(call.kernel)}({passed});"


def entry_source(plan: Plan, phases: Mapping[str, Sequence[Phase]]) -> str:
    """The C text of the entry for a plan; ``phases`` by kernel, empty for a target without threads."""
    arity = {call.kernel: len(call.arguments) for call in plan.calls if call.kernel != COPY}
    turns = ["int32_t", "int32_t"] if phases else []
    declared = [
        f"extern int32_t {symbol_of(symbol)}({', '.join(['void *'] * n + turns)});"
        for kernel, n in arity.items()
        for symbol in ([p.symbol for p in phases[kernel]] if phases else [kernel])
    ]
    steps = [
        f"    case {i}: {_call(call, phases.get(call.kernel, [Phase(COPY, 1)] if phases else []))}"
        for i, call in enumerate(plan.calls)
    ]
    values = {
        "DECLARATIONS": "\n".join(declared),
        "STEPS": "\n".join(steps),
        "COUNT": str(len(plan.calls)),
        "CHECKS": "\n".join(
            f"    if (*(int64_t *)ARENA({check.offset}u) > {check.limit}) return {FIRST_CHECK + i};"
            for i, check in enumerate(plan.checks)
        ),
        "ARENA_BYTES": str(max(plan.arena_bytes, ALIGNMENT)),
    }
    return _filled("entry.c", values)


def _filled(name: str, values: Mapping[str, str]) -> str:
    """A C file of ours with its ``@KEYS@`` replaced."""
    text = resources.files("wasmgraph.compiler.link").joinpath("csrc", name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def write_params(path: Path, plan: Plan, constants: Sequence[Array]) -> None:
    """Write all constants at their offsets."""
    with path.open("wb") as stream:
        for parameter, value in zip(plan.parameters, constants, strict=True):
            stream.write(bytes(parameter.offset - stream.tell()))
            stream.write(value.tobytes())
        stream.write(bytes(max(plan.param_bytes, ALIGNMENT) - stream.tell()))


def _params_source(params: Path, target: Target) -> str:
    section = '"",@' if target.kind == "wasm" else '"a",%progbits'
    return (
        f".section .rodata.wasmgraph_params,{section}\n.globl wasmgraph_params\n"
        f'.p2align 6\nwasmgraph_params:\n.incbin "{params.as_posix()}"\n'
        f".size wasmgraph_params, {params.stat().st_size}\n"
    )


def link_objects(
    objects: Sequence[Path],
    directory: Path,
    target: Target,
    data_bytes: int,
    form: Form | None = None,
    also: Sequence[str] = (),
) -> Path:
    """Link objects that define the entry; ``data_bytes`` is the size of parameters and arena, ``also``
    are symbols for a wasm module to export besides those that every graph has."""
    form = form or Form()
    if target.kind == "native":
        linked = directory / "graph.so"
        whole: list[str | Path] = ["-Wl,--whole-archive", *objects, "-Wl,--no-whole-archive"]
        zig("cc", "-shared", *whole, "-lm", "-s", "-o", linked)
        return linked
    linked = directory / "graph.wasm"
    # Linear memory never grows: stack, data, and room for kernels' constants.
    needed = _STACK_BYTES + data_bytes + _CONSTANTS_BYTES + MOST_STRIDE
    memory = -(-needed // PAGE_BYTES) * PAGE_BYTES
    # Zig puts the stack first: an overflow traps instead of overwriting data. As a reactor the
    # module gets an `_initialize` that does nothing, and imports nothing but what the form asks for.
    options = ["-mexec-model=command"] if form.command else ["-mexec-model=reactor", "-Wl,--no-entry"]
    options += ["-Wl,--gc-sections", "-s"]
    exports: tuple[str, ...] = (*(_COMMAND_EXPORTS if form.command else _WASM_EXPORTS), *also)
    if form.params == "wasi":
        exports += (LOAD_SYMBOL,)
    most = memory
    if target.threaded:
        pool = directory / "pool.o"
        source = resources.files("wasmgraph.compiler.link").joinpath("csrc/pool.c")
        with resources.as_file(source) as path:
            compile_object(path, pool, target, form.flags)
        objects = [*objects, pool]
        exports += _POOL_EXPORTS
        most += _WORKER_PAGES * PAGE_BYTES
        options += ["-Wl,--shared-memory", "-Wl,--import-memory"]
        if form.params == "wasi":  # where an engine's WASI looks for what it is to read and write
            options += ["-Wl,--export-memory"]
    options += [f"-Wl,--export={symbol}" for symbol in exports]
    options += [f"-Wl,-z,stack-size={_STACK_BYTES}"]
    options += [f"-Wl,--initial-memory={memory}", f"-Wl,--max-memory={most}"]
    features = [feature.replace("-", "_") for feature in target.features]
    cpu = "+".join(["generic", "bulk_memory", *features])
    zig("cc", "-target", "wasm32-wasi", f"-mcpu={cpu}", *options, *objects, "-o", linked)
    if target.threaded:  # the linker's: it fills the shared memory, once among all instances
        export_start(linked, INIT_SYMBOL)
    return linked


def check_memory(plan: Plan, target: Target) -> None:
    """Raise ModelError if a plan is larger than what a module can address."""
    workers = _WORKER_PAGES * PAGE_BYTES if target.threaded else 0
    needed = plan.param_bytes + plan.arena_bytes + _STACK_BYTES + _CONSTANTS_BYTES + MOST_STRIDE + workers
    if target.kind == "wasm" and needed > 1 << 32:
        raise ModelError(
            f"the model's tensors take {needed:,} bytes ({plan.param_bytes:,} of them parameters); a"
            " WebAssembly module has 4 GiB. Bind smaller shapes, or compile it for native."
        )


def link(
    directory: Path,
    target: Target,
    plan: Plan,
    constants: Sequence[Array],
    phases: Mapping[str, Sequence[Phase]],
    form: Form,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> tuple[Path, str]:
    """Link ``graph.o`` in ``directory`` with entry and parameters; ``phases`` as for ``entry_source``.

    Leaves ``graph.params``, ``entry.c`` and the archive beside it, and the parameters where the module
    looks for them, if it reads them from a file. Returns the linked file and that file's sha256, or "".
    """
    check_memory(plan, target)
    params, digest = directory / "graph.params", ""
    write_params(params, plan, constants)
    texts = {"entry.c": entry_source(plan, phases)}
    if form.params == "wasi":
        digest = place_params(params)
        texts["params.c"] = _filled("params.c", params_values(params, digest))
    else:
        texts["params.S"] = _params_source(params, target)
    if form.command:
        texts["command.c"] = _filled("command.c", command_values(plan, inputs, outputs))
    compiled: dict[str, Path] = {}
    for name, text in texts.items():
        source = directory / name
        source.write_text(text)
        compiled[source.stem] = source.with_suffix(".o")
        compile_object(source, compiled[source.stem], target, form.flags)
    archive = directory / archive_name(target)
    zig("ar", "rcs", archive, directory / "graph.o", compiled.pop("entry"))
    objects = [archive, *compiled.values()]
    data_bytes = plan.param_bytes + plan.arena_bytes
    linked = link_objects(objects, directory, target, data_bytes, form, (PLAIN_SYMBOL,))
    if target.kind == "wasm":
        with linked.open("rb") as stream:
            plain = read_module(stream).global_values[PLAIN_SYMBOL]
        pipeline(linked, plain)
    return linked, digest


def archive_name(target: Target) -> str:
    """The archive of kernels and entry, for whoever links a module of their own."""
    return "libgraph_wasm32.a" if target.kind == "wasm" else "libgraph_native.a"
