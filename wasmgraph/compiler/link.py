"""Stage 7: kernels, parameters and the entry become one module (or one native library).

Zig carries the C compiler, assembler, archiver and linker for every target in one wheel.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path

from wasmgraph.compiler.plan import ALIGNMENT, COPY, Address, Call, Plan
from wasmgraph.errors import CompileError
from wasmgraph.targets import Target
from wasmgraph.tensors import Array
from wasmgraph.wasmfile import PAGE_BYTES

_STACK_BYTES = 65536
_CONSTANTS_BYTES = 1 << 20
# Addresses of these symbols are exported as globals, so that the manifest can say where they are.
ARENA_SYMBOL = "wasmgraph_arena"
_WASM_EXPORTS = ("wasmgraph_run", "wasmgraph_step", ARENA_SYMBOL)


def _zig(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tool = " ".join(command[3:5])
        raise CompileError(f"zig {tool} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def _expression(address: Address) -> str:
    return f"{'ARENA' if address.space == 'arena' else 'PARAMS'}({address.offset}u)"


def _call(call: Call) -> str:
    arguments = [_expression(address) for address in call.arguments]
    if call.kernel == COPY:
        source, destination = arguments
        return f"__builtin_memcpy({destination}, {source}, {call.nbytes}u); return 0"
    return f"return {call.kernel}({', '.join(arguments)})"


def entry_source(plan: Plan) -> str:
    """The C text of the entry for a plan."""
    arity = {call.kernel: len(call.arguments) for call in plan.calls if call.kernel != COPY}
    declared = [f"extern int32_t {k}({', '.join(['void *'] * n)});" for k, n in arity.items()]
    steps = [f"    case {i}: {_call(call)};" for i, call in enumerate(plan.calls)]
    text = resources.files("wasmgraph.compiler").joinpath("csrc/entry.c").read_text()
    for key, value in {
        "DECLARATIONS": "\n".join(declared),
        "STEPS": "\n".join(steps),
        "COUNT": str(len(plan.calls)),
        "ARENA_BYTES": str(max(plan.arena_bytes, ALIGNMENT)),
    }.items():
        text = text.replace(f"@{key}@", value)
    return text


def write_params(path: Path, plan: Plan, constants: Sequence[Array]) -> str:
    """Write all constants at their offsets; return the file's sha256."""
    digest = sha256()
    with path.open("wb") as stream:
        for parameter, value in zip(plan.parameters, constants, strict=True):
            padding = bytes(parameter.offset - stream.tell())
            content = value.tobytes()
            stream.write(padding + content)
            digest.update(padding)
            digest.update(content)
        padding = bytes(max(plan.param_bytes, ALIGNMENT) - stream.tell())
        stream.write(padding)
        digest.update(padding)
    return digest.hexdigest()


def _params_source(params: Path, digest: str) -> str:
    # The digest keeps zig's cache honest: it does not notice that an .incbin file has changed.
    return (
        f'# {digest}\n.section .rodata.wasmgraph_params,"",@\n.globl wasmgraph_params\n'
        f'.p2align 6\nwasmgraph_params:\n.incbin "{params.as_posix()}"\n'
        f".size wasmgraph_params, {params.stat().st_size}\n"
    )


def _memory_bytes(plan: Plan) -> int:
    """Linear memory, which never grows: stack, parameters, arena, and room for kernels' constants."""
    needed = _STACK_BYTES + plan.param_bytes + plan.arena_bytes + _CONSTANTS_BYTES
    return -(-needed // PAGE_BYTES) * PAGE_BYTES


def link(directory: Path, target: Target, plan: Plan, constants: Sequence[Array]) -> Path:
    """Link ``graph.o`` in ``directory`` with entry and parameters.

    Leaves ``graph.params``, ``entry.c`` and the archive beside it. Returns the linked file.
    """
    params = directory / "graph.params"
    digest = write_params(params, plan, constants)
    entry, data = directory / "entry.c", directory / "params.S"
    entry.write_text(entry_source(plan))
    source = _params_source(params, digest)
    wasm = target.kind == "wasm"
    if not wasm:
        source = source.replace('"",@', '"a",%progbits')
    data.write_text(source)
    machine: list[str] = []
    position = [] if wasm else ["-fPIC"]
    if wasm:
        cpu = "+".join(["generic", "bulk_memory", *target.features])
        machine = ["-target", "wasm32-wasi", f"-mcpu={cpu}"]
    for text, done in ((entry, "entry.o"), (data, "params.o")):
        _zig("cc", *machine, "-O2", *position, "-c", text, "-o", directory / done)
    archive = directory / ("libgraph_wasm32.a" if wasm else "libgraph_native.a")
    _zig("ar", "rcs", archive, directory / "graph.o", directory / "entry.o")
    linked = directory / ("graph.wasm" if wasm else "graph.so")
    if wasm:
        exports = [f"-Wl,--export={symbol}" for symbol in _WASM_EXPORTS]
        # Zig puts the stack first: an overflow traps instead of overwriting data. As a reactor the
        # module gets an `_initialize` that does nothing, and imports nothing.
        options = ["-mexec-model=reactor", "-Wl,--no-entry", "-Wl,--gc-sections", "-s", *exports]
        memory = _memory_bytes(plan)
        options += [f"-Wl,-z,stack-size={_STACK_BYTES}"]
        options += [f"-Wl,--initial-memory={memory}", f"-Wl,--max-memory={memory}"]
        _zig("cc", *machine, *options, archive, directory / "params.o", "-o", linked)
    else:
        whole: list[str | Path] = ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive"]
        _zig("cc", "-shared", *whole, directory / "params.o", "-lm", "-s", "-o", linked)
    return linked
