"""Stage 7: links kernels, a plan and parameters to a graph: a library whose entry makes the plan's
calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from wasmgraph.abi import ALIGNMENT, ARENA, FIRST_CHECK, FIRST_DIM, PLAIN_LOOPS
from wasmgraph.compiler.constants import let_go
from wasmgraph.compiler.form import Form
from wasmgraph.compiler.link.data_object import write_data_object
from wasmgraph.compiler.link.library import Library, check_memory, link_library, template
from wasmgraph.compiler.link.pipelining import pipeline
from wasmgraph.compiler.link.wasi import command_values, params_values, place_params
from wasmgraph.compiler.link.zig import compile_object, zig
from wasmgraph.compiler.lower.phases import Phase
from wasmgraph.compiler.plan import COPY, SET, Address, Argument, Call, Plan, Repeat, Scalar, symbol_of
from wasmgraph.compiler.sizes import dtype_bytes
from wasmgraph.dims import Size, replaced
from wasmgraph.targets import Target
from wasmgraph.tensors import Array, TensorSpec
from wasmgraph.wasm.wasmfile import read_module

_OUTGROWN = 64 << 10  # bytes of weights that each inference reads from memory again


def _expression(argument: Argument, dims: Sequence[str]) -> str:
    if isinstance(argument, Scalar):
        return f"(int32_t){_number(argument.size, dims)}"
    return f"{'ARENA' if argument.space == 'arena' else 'PARAMS'}({argument.offset}u)"


def _number(size: Size, dims: Sequence[str]) -> str:
    """A size in C; ``dims`` are in the order of their values in memory."""
    if isinstance(size, int):
        return f"{size}LL"
    if size.operator is None:
        return f"DIM({dims.index(size.operands[0])})"
    left, right = (_number(side, dims) for side in size.operands)
    if size.operator in ("+", "-", "*"):
        return f"({left} {size.operator} {right})"
    return f"{ {'//': 'quotient', 'min': 'least', 'max': 'most'}[size.operator] }({left}, {right})"


def _call(call: Call, phases: Sequence[Phase], dims: Sequence[str]) -> str:
    """The C code of a step; ``phases`` is empty for a target without threads."""
    arguments = [_expression(address, dims) for address in call.arguments]
    if call.kernel == SET:
        (name,) = call.values
        place = dims.index(name)
        value = f"*(int64_t *){arguments[0]}"
        taken = f"set(arena, {place}, {value})"
        found = f"return beyond({place}, {value});"  # all threads find the same
        return f"PHASE(1, {taken}) {found}" if phases else f"{taken}; {found}"
    if call.kernel == COPY:
        source, destination = arguments
        copy = f"__builtin_memcpy({destination}, {source}, (unsigned){_number(call.copied_bytes, dims)})"
        return f"PHASE(1, {copy}) return 0;" if phases else f"{copy}; return 0;"
    passed = ", ".join(arguments)
    if phases:
        return (
            " ".join(
                f"PHASE((int32_t){_number(replaced(p.turns, call.values), dims)},"
                f" {symbol_of(p.symbol)}({passed}, begin, end))"
                for p in phases
            )
            + " return 0;"
        )
    return f"return {symbol_of(call.kernel)}({passed});"


def entry_source(plan: Plan, phases: Mapping[str, Sequence[Phase]]) -> str:
    """The C source of a plan's entry; ``phases`` by kernel, empty for a target without threads."""
    dims = [dim.name for dim in plan.dims]
    signatures = {
        call.kernel: ["int32_t" if isinstance(a, Scalar) else "void *" for a in call.arguments]
        for call in plan.calls
        if call.kernel not in (COPY, SET)
    }
    turns = ["int32_t", "int32_t"] if phases else []
    declared = [
        f"extern int32_t {symbol_of(symbol)}({', '.join(parameters + turns)});"
        for kernel, parameters in signatures.items()
        for symbol in ([p.symbol for p in phases[kernel]] if phases else [kernel])
    ]
    alone = [Phase(COPY, 1)] if phases else []
    steps = [
        f"    case {i}: {_call(call, phases.get(call.kernel, alone), dims)}"
        for i, call in enumerate(plan.calls)
    ]
    values = {
        "RUN": "\n".join(_sequence(0, len(plan.calls), plan.repeats, dims)),
        "DIMS": f"{plan.dims_at}u",
        "FIRST_DIM": str(FIRST_DIM),
        "LOWEST": ", ".join(str(dim.least) for dim in plan.dims) or "0",
        "GREATEST": ", ".join(str(dim.most) for dim in plan.dims) or "0",
        "BOUNDS": "\n".join(
            f"    if (VALUE({i}) < {dim.least} || VALUE({i}) > {dim.most}) return {FIRST_DIM + i};"
            for i, dim in enumerate(plan.dims)
            if dim.name not in plan.computed
        ),
        "DECLARATIONS": "\n".join(declared),
        "STEPS": "\n".join(steps),
        "CHECKS": "\n".join(
            f"    if (*(int64_t *)ARENA({check.offset}u) > {_number(check.limit, dims)})"
            f" return {FIRST_CHECK + i};"
            for i, check in enumerate(plan.checks)
        ),
        "ARENA_BYTES": str(max(plan.arena_bytes, ALIGNMENT)),
    }
    return template("entry.c", values)


def _sequence(
    first: int, end: int, repeats: Sequence[Repeat], dims: Sequence[str], depth: int = 1
) -> Iterator[str]:
    """The C code of the calls from ``first`` up to ``end``; ``repeats`` lie among them."""
    indent = "    " * depth
    inner = [r for r in repeats if first <= r.first and r.end <= end]
    outermost = [
        r for r in inner if not any(o is not r and o.first <= r.first and r.end <= o.end for o in inner)
    ]
    for each in sorted(outermost, key=lambda r: r.first):
        yield from _steps(first, each.first, indent)
        goes_on = ["!error"]
        if each.turns is not None:
            goes_on.insert(0, f"turn{depth} < {_number(each.turns, dims)}")
        if each.condition is not None:
            goes_on.append(f"*(byte *)ARENA({each.condition}u)")
        yield f"{indent}for (int64_t turn{depth} = 0; {' && '.join(goes_on)}; ++turn{depth}) {{"
        others = [r for r in inner if r is not each]
        yield from _sequence(each.first, each.end, others, dims, depth + 1)
        yield f"{indent}}}"
        first = each.end
    yield from _steps(first, end, indent)


def _steps(first: int, end: int, indent: str) -> Iterator[str]:
    if first < end:
        yield f"{indent}for (int32_t index = {first}; index < {end} && !error; ++index)"
        yield f"{indent}    error = step(arena, index SHARED);"


def write_params(path: Path, plan: Plan, constants: Sequence[Array]) -> None:
    """Write all constants at their offsets."""
    with path.open("wb") as stream:
        for parameter, value in zip(plan.parameters, constants, strict=True):
            stream.write(bytes(parameter.offset - stream.tell()))
            stream.write(np.ascontiguousarray(value).data)
            let_go(value)
        stream.write(bytes(max(plan.param_bytes, ALIGNMENT) - stream.tell()))


def _params_source(params: Path) -> str:
    """The assembler source that includes the parameters, for native code."""
    return (
        '.section .rodata.wasmgraph_params,"a",%progbits\n.globl wasmgraph_params\n'
        f'.p2align 6\nwasmgraph_params:\n.incbin "{params.as_posix()}"\n'
        f".size wasmgraph_params, {params.stat().st_size}\n"
    )


def link_graph(
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

    Leaves ``graph.params``, ``entry.c`` and the archive in ``directory``. If the module reads its
    parameters from a file, puts them where the module looks for them. Returns the linked file, and the
    sha256 of the parameter file, or "" if there is none.
    """
    check_memory(plan.param_bytes, plan.arena_bytes, target)
    params, digest = directory / "graph.params", ""
    write_params(params, plan, constants)
    texts = {"entry.c": entry_source(plan, phases)}
    if form.params == "wasi":
        digest = place_params(params)
        texts["params.c"] = template("params.c", params_values(params, digest))
    elif target.kind == "native":
        texts["params.S"] = _params_source(params)
    if form.command:
        texts["command.c"] = template("command.c", command_values(plan, inputs, outputs))
    compiled: dict[str, Path] = {}
    if form.params == "embedded" and target.kind == "wasm":
        compiled["params"] = directory / "params.o"
        write_data_object(params, "wasmgraph_params", compiled["params"], ALIGNMENT)
    for name, text in texts.items():
        source = directory / name
        source.write_text(text)
        compiled[source.stem] = source.with_suffix(".o")
        compile_object(source, compiled[source.stem], target, form.flags)
    archive = directory / archive_name(target)
    zig("ar", "rcs", archive, directory / "graph.o", compiled.pop("entry"))
    library = Library(
        objects=[archive, *compiled.values()],
        data_bytes=plan.param_bytes + plan.arena_bytes,
        addresses=(ARENA, PLAIN_LOOPS),
        form=form,
        named=True,
    )
    linked = link_library(library, directory, target)
    if target.kind == "wasm":
        with linked.open("rb") as stream:
            plain = read_module(stream).global_values[PLAIN_LOOPS]
        pipeline(linked, plain, _streaming(plan, phases))
    return linked, digest


def _streaming(plan: Plan, phases: Mapping[str, Sequence[Phase]]) -> set[str]:
    """The symbols of kernels whose weights are too large to stay cached between inferences."""
    sizes = {p.offset: prod(p.shape) * dtype_bytes(p.dtype) for p in plan.parameters}
    kernels = {
        call.kernel
        for call in plan.calls
        for a in call.arguments
        if isinstance(a, Address) and a.space == "params" and sizes[a.offset] >= _OUTGROWN
    }
    return {
        symbol_of(symbol)
        for kernel in kernels
        for symbol in ([p.symbol for p in phases[kernel]] if phases else [kernel])
    }


def archive_name(target: Target) -> str:
    """The file name of the archive of kernels and entry, for users who link it into their own module."""
    return "libgraph_wasm32.a" if target.kind == "wasm" else "libgraph_native.a"
