"""The kernels as a compiler engineer reads them: WebAssembly text, and what Cranelift makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import wasmtime

from wasmgraph.compiler.link.pipelining import pipelined

# LLVM's assembly names some instructions otherwise than the text format.
_RENAMED = {
    "end_block": "end",
    "end_loop": "end",
    "end_if": "end",
    "i32.select": "select",
    "i64.select": "select",
    "f32.select": "select",
    "f64.select": "select",
    "v128.select": "select",
}
_CONSTANT_SHAPES = {2: "i64x2", 4: "i32x4", 8: "i16x8", 16: "i8x16"}
_FUNCTION_TYPE = re.compile(r"\.functype\s+(\S+) \((.*?)\) -> \((.*?)\)")
_MEMORY_OPERAND = re.compile(r"(?:([A-Za-z_.$][\w.$]*)\+?)?(\d*)(?::p2align=(\d+))?$")


def wat(assembly: str) -> str:
    """Rewrite LLVM's assembly for wasm as a WebAssembly text module.

    Kernels become exported functions. Memory is declared, not filled; functions of the C library are
    imports; an address that the linker would fill in is an immutable global of value 0 under its symbol.
    """
    types: dict[str, tuple[str, str]] = {}
    symbols: set[str] = set()
    bodies: dict[str, list[str]] = {}
    body: list[str] | None = None
    label = ""
    for raw in assembly.splitlines():
        line = raw.split("#")[0].strip()
        declared = _FUNCTION_TYPE.match(line)
        if declared:
            name, parameters, results = declared.groups()
            types[name] = parameters.replace(",", ""), results.replace(",", "")
            # A function's own type is repeated after its label; a declaration stands before any.
            if name == label:
                body = bodies[name] = []
        elif line.endswith(":") and not line.startswith(".L"):
            label = line[:-1]
        elif line == "end_function":
            body = None
        elif body is not None and line and not line.endswith(":"):
            if line.startswith(".local "):
                body.append(f"(local {line[6:].replace(',', '').strip()})")
            elif not line.startswith("."):
                body.extend(_instruction(line, symbols))
    return "\n".join(_module(types, bodies, symbols)) + "\n"


def _signature(types: tuple[str, str]) -> str:
    parameters, results = types
    return " ".join([f"(param {parameters})"] * bool(parameters) + [f"(result {results})"] * bool(results))


def _module(
    types: dict[str, tuple[str, str]], bodies: dict[str, list[str]], symbols: set[str]
) -> Iterator[str]:
    yield "(module"
    text = "\n".join(line for lines in bodies.values() for line in lines)
    for name, signature in types.items():
        if name not in bodies and f"call ${name}\n" in text + "\n":
            yield f'  (import "env" "{name}" (func ${name} {_signature(signature)}))'
    yield '  (memory (export "memory") 1)'
    for symbol in sorted(symbols):
        mutable = symbol == "__stack_pointer"
        yield f"  (global ${symbol} {'(mut i32)' if mutable else 'i32'} (i32.const 0))"
    for name, lines in bodies.items():
        yield f'  (func ${name} (export "{name}") {_signature(types[name])}'
        depth = 2
        for line in lines:
            word = line.split()[0]
            depth -= word in ("end", "else")
            yield "  " * depth + line
            depth += word in ("block", "loop", "if", "else")
        yield "  )"
    yield ")"


def _instruction(line: str, symbols: set[str]) -> list[str]:
    name, *rest = line.split(None, 1)
    operands = [operand.strip() for operand in rest[0].split(",")] if rest else []
    name = re.sub(r"^i\d+x\d+\.(?=load\d+x)", "v128.", _RENAMED.get(name, name))
    if name.endswith(".const"):
        operands = [operand.replace("infinity", "inf") for operand in operands]
    if name in ("block", "loop", "if"):
        return [f"{name} (result {operands[0]})" if operands else name]
    if name in ("memory.fill", "memory.copy"):
        return [name]
    if name in ("call", "global.get", "global.set"):
        if name != "call":
            symbols.add(operands[0])
        return [f"{name} ${operands[0]}"]
    if name == "br_table":
        return [f"{name} {' '.join(operands).strip('{}')}"]
    if name == "v128.const":
        floats = any("." in operand or "p" in operand or "n" in operand for operand in operands)
        shape = _CONSTANT_SHAPES[len(operands)]
        return [f"{name} {shape.replace('i', 'f') if floats else shape} {' '.join(operands)}"]
    if re.search(r"\.(load|store)", name):
        return _memory_access(name, operands, symbols)
    if name == "i32.const" and not re.match(r"-?\d", operands[0]):
        symbol, _, offset = operands[0].partition("+")
        symbols.add(symbol)
        return [f"global.get ${symbol}"] + ([f"i32.const {offset}", "i32.add"] if offset else [])
    return [" ".join([name, *operands])]


def _memory_access(name: str, operands: list[str], symbols: set[str]) -> list[str]:
    matched = _MEMORY_OPERAND.match(operands[0])
    symbol, offset, alignment = matched.groups() if matched else (operands[0], "", None)
    words = [name]
    if offset and offset != "0":
        words.append(f"offset={offset}")
    if alignment is not None:
        words.append(f"align={1 << int(alignment)}")
    words += operands[1:]
    if symbol:
        words.append(f"(;{symbol};)")
    return [" ".join(words)]


def machine_code(text: str) -> bytes:
    """Compile a module of :func:`wat` with Cranelift: an ELF file, for ``objdump -d``.

    The functions are those that the linked module runs in Wasmtime, instruction by instruction, but carry
    their names.
    """
    module = wasmtime.Module(wasmtime.Engine(), pipelined(wasmtime.wat2wasm(text)))
    return bytes(module.serialize())
