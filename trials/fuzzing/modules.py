"""Mutated wasm artifacts against the loader. Half of them have a repaired digest, so that they reach the
checks after it. A graph of open dimensions whose manifest is changed is run, if it loads.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import wasmgraph as wg
from wasmgraph.artifact import DIGEST_SECTION, MANIFEST_SECTION, PARAMS_FOLDER
from wasmgraph.errors import ArtifactError, ExecutionError, FeedError, ModelError
from wasmgraph.runtimes.checks import CHECKS
from wasmgraph.tensors import noise
from wasmgraph.wasm.wasmfile import MAGIC, Reader, custom_section, leb128, read_module

_FORMS: tuple[dict[str, Any], ...] = (
    {"target": "wasm32"},
    {"target": "wasm32-simd128"},
    {"target": "wasm32-simd128-threads"},
    {"target": "wasm32-simd128", "params": "wasi"},
    {"target": "wasm32-simd128-threads", "params": "wasi"},
    {"target": "wasm32", "command": True},
    {"target": "wasm32-simd128", "dims": {"n": (1, 8)}},
)
EVERY_CHECK = {*CHECKS, "form", "digest", "engine", "instance", "params", "command"}
_IMPORT, _MEMORY, _EXPORT, _START, _CODE, _DATA = 2, 5, 7, 8, 10, 11
_NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    7,
    8,
    2**31,
    2**32 - 8,
    2**63,
    10**30,
    -(2**31),
    0.5,
    None,
    "8",
    [],
    {},
    True,
    float("inf"),
    float("nan"),
    "\x1b[2J",
    [0],
)


def _model() -> onnx.ModelProto:
    """A convolution, a dense layer and a softmax: a few kilobytes with every kind of section."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    rng = random.Random(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        count = 1
        for size in shape:
            count *= size
        numbers = [rng.uniform(-1, 1) for _ in range(count)]
        return onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, numbers)

    graph = onnx.helper.make_graph(
        [
            make("Conv", ["x", "w"], ["c"], pads=[1] * 4),
            make("Relu", ["c"], ["r"]),
            make("Flatten", ["r"], ["f"]),
            make("Gemm", ["f", "d"], ["g"]),
            make("Softmax", ["g"], ["y"]),
        ],
        "fuzzed",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("y", onnx.TensorProto.FLOAT, [1, 5])],
        [weights("w", 4, 3, 3, 3), weights("d", 256, 5)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def _open_model() -> onnx.ModelProto:
    """Products of an open number of rows, and a dimension that the graph computes."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    kinds = onnx.TensorProto
    weights = onnx.helper.make_tensor("w", kinds.FLOAT, [8, 5], [n / 7 - 2 for n in range(40)])
    nodes = [
        make("MatMul", ["x", "w"], ["p"]),
        make("Softmax", ["p"], ["s"]),
        make("Concat", ["s", "s"], ["y"], axis=0),
        make("NonZero", ["x"], ["places"]),
        make("Gather", ["x", "i"], ["row"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "fuzzed",
        [value("x", kinds.FLOAT, ["n", 8]), value("i", kinds.INT64, [1])],
        [value(name, kind, None) for name, kind in (("y", kinds.FLOAT), ("places", kinds.INT64))],
        [weights],
    )
    graph.output.append(value("row", kinds.FLOAT, None))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@cache
def _templates() -> tuple[tuple[bytes, tuple[str, bytes] | None], ...]:
    """Valid artifacts, with name and content of their parameter file."""
    artifacts = [wg.compile(_open_model() if "dims" in form else _model(), **form) for form in _FORMS]
    return tuple(
        (a.path.read_bytes(), (a.params_path.name, a.params_path.read_bytes()) if a.params_path else None)
        for a in artifacts
    )


@dataclass
class Parts:
    """A parsed artifact: sections as id and content, with the manifest and the digest kept separately."""

    sections: list[tuple[int, bytes]]
    manifest: bytes

    @staticmethod
    def of(raw: bytes) -> Parts:
        """Parse a valid artifact."""
        module = read_module(BytesIO(raw))
        named = {MANIFEST_SECTION, DIGEST_SECTION}
        sections = [
            (s.id, raw[s.offset : s.offset + s.size]) for s in module.sections if s.name not in named
        ]
        found = module.custom(MANIFEST_SECTION)
        assert found is not None
        return Parts(sections, raw[found.offset : found.offset + found.size])

    def joined(self) -> bytes:
        """The file without its digest."""
        body = b"".join(bytes([number]) + leb128(len(c)) + c for number, c in self.sections)
        return MAGIC + body + custom_section(MANIFEST_SECTION, self.manifest)

    def replace(self, number: int, change: Callable[[bytes], bytes]) -> None:
        """Change a section's content."""
        self.sections = [(n, change(c) if n == number else c) for n, c in self.sections]

    def insert(self, number: int, content: bytes) -> None:
        """Insert a section in its proper order, beside one of its kind if there is one."""
        at = next((i for i, (n, _) in enumerate(self.sections) if n > number), len(self.sections))
        self.sections.insert(at, (number, content))


def _bytes(rng: random.Random, raw: bytes) -> bytes:
    """Flip, drop, repeat or overwrite some bytes."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not out:
            break
        at, length = rng.randrange(len(out)), rng.choice((1, 1, 2, 4, 16))
        match rng.randrange(4):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[at : at + length]
            case _:
                out[at : at + length] = rng.randbytes(length)
    return bytes(out)


def _expression(rng: random.Random, deep: int = 0) -> Any:
    """A size as a manifest holds it, or nearly so."""
    if rng.random() < 0.4 or deep > 4:
        return rng.choice(("n", "places_count", "m", "", 0, 1, 3, -1, 2**31, 2**62, 10**30, 1.5, None))
    if rng.random() < 0.02:
        size: Any = "n"
        for _ in range(rng.choice((70, 900))):
            size = ["*", size, size if rng.random() < 0.1 else "n"]
        return size
    operator = rng.choice(("+", "-", "*", "//", "min", "max", "%", "**", ""))
    return [operator, *(_expression(rng, deep + 1) for _ in range(rng.choice((2, 2, 2, 2, 1, 3))))]


def _sizes(rng: random.Random, said: dict[str, Any]) -> None:
    """Change a size, or a dimension: its bounds, its name, where its value lies."""
    match rng.randrange(4):
        case 0:
            shape = rng.choice(said["inputs"] + said["outputs"])["shape"]
            shape[rng.randrange(len(shape))] = _expression(rng)
        case 1:
            rng.choice(said["steps"])[rng.choice(("flops", "traffic_bytes", "turns"))] = _expression(rng)
        case 2 if said["checks"]:
            rng.choice(said["checks"])[rng.choice(("low", "high"))] = _expression(rng)
        case _:
            dim = rng.choice(said["dims"])
            match rng.randrange(4):
                case 0:
                    dim["least"], dim["most"] = (rng.choice((-1, 0, 1, 9, 4096, 2**31)) for _ in range(2))
                case 1:
                    dim["name"] = rng.choice(("n", "m", "places_count", "", 3, "n" * 5_000))
                case 2:
                    dim["offset"] = rng.choice((*_NUMBERS, 4 * rng.randrange(1 << 14)))
                case _:
                    dim["computed"] = not dim["computed"]


def _manifest(rng: random.Random, parts: Parts) -> None:
    """Change a value somewhere in the manifest, remove it, or replace it by one of another type."""
    said = json.loads(parts.manifest)
    if "dims" in said and rng.random() < 0.7:
        _sizes(rng, said)
        parts.manifest = json.dumps(said).encode()
        return
    tensor = rng.choice(said["inputs"] + said["outputs"])
    match rng.randrange(9):
        case 0:
            said[rng.choice(list(said))] = rng.choice(_NUMBERS)
        case 1:
            del said[rng.choice(list(said))]
        case 2:
            tensor["offset"] = rng.choice((*_NUMBERS, rng.randrange(1 << 22), 8 * rng.randrange(1 << 19)))
        case 3:
            tensor["shape"] = [
                rng.choice((0, 1, 3, 2**16, 2**40, -1, "2")) for _ in range(rng.randrange(5))
            ]
        case 4:
            tensor["dtype"] = rng.choice(("float64", "bool", "object", "V8", "S4", "float128", 3))
        case 5:
            said["features"] = ["simd128", rng.choice(("memory64", "telepathy", 3))]
        case 6 | 7:
            _anywhere(rng, said)
        case _:
            said["inputs"] = said["inputs"] * 2
            said["inputs"][1] = {**said["inputs"][0], "offset": said["inputs"][0]["offset"] + (1 << 20)}
    parts.manifest = json.dumps(said).encode()
    if rng.random() < 0.02:
        parts.manifest = b"[" * 100_000


def _anywhere(rng: random.Random, value: Any) -> None:
    """Replace a random part of a JSON value."""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.2:
            value[key] = rng.choice(_NUMBERS)
            return
        value = value[key]


def _memory(rng: random.Random, content: bytes) -> bytes:
    """Change the memory section: 64-bit, shared, growing, no memory, several memories."""
    sizes = [rng.choice((0, 1, 2, 18, 65536, 65537, 2**32)) for _ in range(2)]
    limits = bytes([rng.randrange(16)]) + leb128(sizes[0]) + leb128(sizes[1])
    return rng.choice((b"\1" + limits, b"\2" + limits * 2, b"\0"))


def _export(rng: random.Random, content: bytes) -> bytes:
    """Remove an export, rename it, or let it refer to something else."""
    reader = Reader(content)
    entries = [(reader.text(), reader.byte(), reader.unsigned()) for _ in range(reader.unsigned())]
    at = rng.randrange(len(entries))
    match rng.randrange(3):
        case 0:
            del entries[at]
        case 1:
            entries[at] = (rng.choice(("wasmgraph_run", "memory", "x", "")), *entries[at][1:])
        case _:
            entries[at] = (entries[at][0], *rng.choice(((0, 0), (2, 0), (3, 0), (0, 99), (7, 1))))
    encoded = [
        leb128(len(n.encode())) + n.encode() + bytes([kind]) + leb128(index) for n, kind, index in entries
    ]
    return leb128(len(encoded)) + b"".join(encoded)


def _import(rng: random.Random) -> bytes:
    """An import of a function, a memory, a global or a table."""
    thing = rng.choice((b"\0\0", b"\2\0\1", b"\2\3\1\2", b"\3\x7f\0", b"\1\x70\0\0"))
    where = rng.choice((b"\3env", b"\x16wasi_snapshot_preview1"))
    return b"\1" + where + rng.choice((b"\6memory", b"\7fd_read", b"\0")) + thing


def mutated(seed: int) -> tuple[bytes, tuple[str, bytes] | None]:
    """A mutated artifact, and its parameter file, which may be mutated too."""
    rng = random.Random(seed)
    raw, params = rng.choice(_templates())
    if params and rng.random() < 0.2:
        return raw, (params[0], _bytes(rng, params[1]))
    return _changed(rng, raw, repair=seed % 2 == 0), params


def _changed(rng: random.Random, raw: bytes, repair: bool) -> bytes:
    if not repair:
        return _bytes(rng, raw)
    parts = Parts.of(raw)
    match rng.randrange(9):
        case 0:
            parts.insert(_IMPORT, _import(rng))
        case 1:
            parts.insert(_START, leb128(rng.randrange(6)))
        case 2:
            if any(number == _MEMORY for number, _ in parts.sections):
                parts.replace(_MEMORY, lambda c: _memory(rng, c))
            else:
                parts.insert(_MEMORY, _memory(rng, b""))
        case 3:
            parts.replace(_EXPORT, lambda c: _export(rng, c))
        case 4:
            parts.replace(_CODE, lambda c: _bytes(rng, c))
        case 5:
            parts.replace(_DATA, lambda c: _bytes(rng, c[:12]) + c[12:])
        case 6:
            number = rng.choice(parts.sections)[0]
            parts.replace(number, lambda c: _bytes(rng, c))
        case _:
            _manifest(rng, parts)
    content = parts.joined()
    return content + custom_section(DIGEST_SECTION, hashlib.sha256(content).digest())


def _run(session: wg.Session, rng: random.Random) -> str:
    """Run a graph at some values of its dimensions."""
    values = {
        dim.name: rng.choice((dim.least, dim.most, (dim.least + dim.most) // 2)) for dim in session.dims
    }
    try:
        session.run(
            noise([spec.at(values) for spec in session.inputs], np.random.default_rng(0)), dims=values
        )
    except (FeedError, ExecutionError) as error:
        return f"run refused: {type(error).__name__}"
    return "run"


def case(seed: int, place: Path) -> str:
    """Load one artifact; run it if its dimensions are open."""
    path, (module, params) = place / f"{seed}.wasm", mutated(seed)
    path.write_bytes(module)
    if params is not None:
        (place / PARAMS_FOLDER).mkdir(exist_ok=True)
        (place / PARAMS_FOLDER / params[0]).write_bytes(params[1])
    try:
        with wg.load(path) as session:
            if not session.dims or seed % 2:
                return "loaded"
            return _run(session, random.Random(seed))
    except ArtifactError as error:
        return f"refused: {error.check}"
    except ModelError:
        return "refused: not wasm"  # its first bytes are not wasm's, so it is read as ONNX
    finally:
        path.unlink()
