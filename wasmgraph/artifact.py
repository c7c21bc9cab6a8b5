"""The artifact file: the only thing that crosses from compiling to running.

A **wasm** artifact is a WebAssembly module with two custom sections at its end: ``wasmgraph``
(the manifest, JSON) and ``wasmgraph.sha256`` (the digest of every byte before that section).
A **native** artifact is a shared library with a trailer: manifest, digest of every byte before
it (32 bytes), length of the manifest (8 bytes, little endian), magic number (8 bytes). The
dynamic loader does not look at a trailer.

The manifest is a claim by whoever made the file. The digest shows that the file is whole, not
who made it.

The parameters of a module with ``params="wasi"`` lie beside it, in ``wasmgraph-params/``, under the first
digits of their digest: modules of other targets, of the same model, find the same file there.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

from wasmgraph.errors import ArtifactError, SchemaError
from wasmgraph.files import replacing, sha256_file
from wasmgraph.targets import Kind
from wasmgraph.tensors import TensorSpec
from wasmgraph.wasm.wasmfile import MAGIC, MalformedError, Module, custom_section, read_module

SCHEMA = 3
MANIFEST_SECTION = "wasmgraph"
DESCRIPTION_KEY = "wasmgraph"  # of an ONNX file's metadata: JSON that ends up in the manifest
DIGEST_SECTION = "wasmgraph.sha256"
PARAMS_FOLDER = "wasmgraph-params"
Params = Literal["embedded", "wasi"]
_LARGEST = 1 << 56  # elements of a tensor, were each dimension at least 1
_NATIVE_MAGIC = b"WGNATIVE"
_NATIVE_TAIL = struct.Struct("<32sQ8s")
DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_REBUILD = "Compile the model again, or fetch the file again."


@dataclass(frozen=True)
class Placed:
    """A tensor and the byte offset at which it lies: in linear memory (wasm), in the arena (native)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def spec(self) -> TensorSpec:
        """The tensor without its place."""
        return TensorSpec(self.name, self.shape, self.dtype)


@dataclass(frozen=True)
class Step:
    """One call of the plan: the kernel's symbol, the operators it does, the rule that scheduled it,
    its floating-point operations (a convolution's as if direct), the bytes of its operands."""

    kernel: str
    operator: str
    rule: str
    flops: int
    traffic_bytes: int


# What `wasmgraph_run` returns for the first of a manifest's checks; for the next one 1 more, and so on.
FIRST_CHECK = 256


@dataclass(frozen=True)
class Check:
    """Indices that must lie from ``low`` to ``high``. A run leaves a code of the worst of them, an
    int64, at ``offset``; it is above ``2 * high + 1`` if that one is out of range.
    ``node`` says in words which node takes them."""

    node: str
    operator: str
    low: int
    high: int
    offset: int

    def index(self, code: int) -> int:
        """The index of a code; from 2**60 on, or below its negative, only that."""
        distance = code >> 1
        return self.high + self.low - distance if code & 1 else distance


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself. Sizes are in bytes; ``features`` are LLVM's names; ``memory_pages``
    are least and most of the shared memory that a module with threads imports, in pages of 64 KiB;
    ``params_sha256`` is the digest of a parameter file; a ``command`` is for WASI engines, not for loading.
    """

    schema: int
    model_name: str
    model_sha256: str
    weights: str
    description: Mapping[str, Any]
    target: str
    kind: Kind
    features: tuple[str, ...]
    cpu_features: tuple[str, ...]
    inputs: tuple[Placed, ...]
    outputs: tuple[Placed, ...]
    arena_bytes: int
    param_bytes: int
    params: Params
    steps: tuple[Step, ...]
    kernels: int
    ops_scheduled: int
    ops_fallback: int
    versions: Mapping[str, str]
    memory_pages: tuple[int, int] | None = None
    params_sha256: str = ""
    command: bool = False
    checks: tuple[Check, ...] = ()

    @property
    def params_file(self) -> str:
        """Name of the parameter file; empty if the parameters are in the module."""
        return params_file(self.params_sha256) if self.params == "wasi" else ""

    @property
    def embedded_bytes(self) -> int:
        """Bytes of the file that are parameters."""
        return self.param_bytes if self.params == "embedded" else 0

    def to_json(self) -> bytes:
        """Compact JSON, UTF-8."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True).encode()

    def _check(self) -> None:
        """Raise TypeError or ValueError where a field is not what the format says."""
        whole = ("schema", "arena_bytes", "param_bytes", "kernels", "ops_scheduled", "ops_fallback")
        for name in whole:
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise TypeError(f"{name} is {value!r}")
        for name in ("description", "versions"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name} is not an object")
        words = (self.model_name, self.model_sha256, self.weights, self.target, self.params_sha256)
        lists = (*self.features, *self.cpu_features, *self.versions.values())
        if self.kind not in ("wasm", "native") or not all(isinstance(w, str) for w in (*words, *lists)):
            raise TypeError("kind, names, digests, target, features and versions must be text")
        for step in self.steps:
            counts = (step.flops, step.traffic_bytes)
            if not all(isinstance(word, str) for word in (step.kernel, step.operator, step.rule)) or any(
                type(count) is not int or count < 0 for count in counts
            ):
                raise TypeError(f"a step is {step}")
        if self.memory_pages is not None and [type(n) for n in self.memory_pages] != [int, int]:
            raise TypeError(f"memory_pages are {self.memory_pages!r}")
        if self.params not in ("embedded", "wasi") or type(self.command) is not bool:
            raise TypeError(f"params are {self.params!r}, command is {self.command!r}")
        if self.params == "wasi" and not re.fullmatch("[0-9a-f]{64}", self.params_sha256):
            raise ValueError(f"params_sha256 is {self.params_sha256!r}")
        for tensor in (*self.inputs, *self.outputs):
            sizes = (tensor.offset, *tensor.shape)
            if not isinstance(tensor.name, str):
                raise TypeError(f"a tensor is called {tensor.name!r}")
            if any(type(size) is not int or size < 0 for size in sizes):
                raise TypeError(f"tensor {tensor.name!r} has offset and shape {sizes}")
            if tensor.dtype not in DTYPES:
                raise ValueError(f"tensor {tensor.name!r} has dtype {tensor.dtype!r}")
            if prod(max(size, 1) for size in tensor.shape) >= _LARGEST:  # [0, 2**60] is too big for numpy
                raise ValueError(f"tensor {tensor.name!r} has shape {tensor.shape}")
            if self.kind == "native" and tensor.offset + tensor.spec.nbytes > self.arena_bytes:
                raise ValueError(f"tensor {tensor.name!r} lies outside the arena")
        for check in self.checks:
            numbers = (check.low, check.high, check.offset)
            if not all(isinstance(word, str) for word in (check.node, check.operator)) or any(
                type(number) is not int for number in numbers
            ):
                raise TypeError(f"a check is {check}")
            if check.offset < 0 or (self.kind == "native" and check.offset + 8 > self.arena_bytes):
                raise ValueError(f"a check's code is at {check.offset}")

    @staticmethod
    def from_json(raw: bytes, where: str) -> Manifest:
        """Parse and check the form of a manifest; ``where`` names the file in errors."""
        try:
            data = json.loads(raw)
            schema = data["schema"]
            if not isinstance(schema, int):
                raise TypeError("schema is not a number")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArtifactError(f"{where}: the manifest cannot be read ({error}). {_REBUILD}") from error
        if schema > SCHEMA:
            raise SchemaError(
                f"{where}: its manifest has schema {schema}, this wasmgraph reads up to {SCHEMA}."
                " Update wasmgraph, or compile the model with this version."
            )
        try:
            for side in ("inputs", "outputs"):
                data[side] = tuple(Placed(**{**t, "shape": tuple(t["shape"])}) for t in data[side])
            data["steps"] = tuple(Step(**step) for step in data["steps"])
            data["checks"] = tuple(Check(**check) for check in data.get("checks", ()))
            if data.get("memory_pages") is not None:
                data["memory_pages"] = tuple(data["memory_pages"])
            for key in ("features", "cpu_features"):
                data[key] = tuple(data[key])
            manifest = Manifest(**data)
            manifest._check()
            return manifest
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{where}: the manifest is incomplete ({error}). {_REBUILD}") from error


def params_file(sha256: str) -> str:
    """What a parameter file of that digest is called."""
    return f"{sha256[:16]}.params"


def kind_of(path: Path) -> Literal["wasm", "native", "onnx"]:
    """Tell a file's kind by its first bytes; what is neither wasm nor a library counts as ONNX.

    Raises
    ------
    ArtifactError
        The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}.") from error
    if head == MAGIC[:4]:
        return "wasm"
    libraries = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"MZ")
    return "native" if head.startswith(libraries) else "onnx"


class Artifact:
    """A compiled graph on disk, checked.

    Attributes
    ----------
    path : where the file is
    manifest : what it says of itself
    sha256 : digest of all that comes before the digest itself: the artifact's identity
    module : the wasm module's outside, or None for a native artifact
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        sha256: str,
        module: Module | None,
        owner: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256
        self.module = module
        self._owner = owner  # keeps an unsaved artifact's directory alive

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the graph takes."""
        return tuple(t.spec for t in self.manifest.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the graph gives."""
        return tuple(t.spec for t in self.manifest.outputs)

    @property
    def params_path(self) -> Path | None:
        """Where the parameter file lies, if there is one: beside the module."""
        name = self.manifest.params_file
        return self.path.parent / PARAMS_FOLDER / name if name else None

    def save(self, path: str | Path) -> Path:
        """Copy the artifact to ``path``, and its parameter file, if it has one, to a folder beside it: each
        whole, or not at all; the parameters first."""
        target = Path(path)
        try:
            if self.params_path is not None:
                folder = target.resolve().parent / PARAMS_FOLDER
                folder.mkdir(exist_ok=True)
                _copy(self.params_path, folder / self.params_path.name)
            _copy(self.path, target)
        except OSError as error:
            raise ArtifactError(f"{target} cannot be written: {error.strerror}.") from error
        return target

    @staticmethod
    def open(path: str | Path, owner: tempfile.TemporaryDirectory[str] | None = None) -> Artifact:
        """Read and check an artifact file; the kind is read from the file.

        Raises
        ------
        ArtifactError
            The file is truncated, altered, or was not made by wasmgraph.
        SchemaError
            It was made by a newer wasmgraph.
        """
        path = Path(path)
        kind = kind_of(path)
        if kind == "onnx":
            raise ArtifactError(
                f"{path} is not a wasmgraph artifact: neither a WebAssembly module nor a library."
                " Make one with `wasmgraph compile MODEL.onnx -o OUT.wasm`."
            )
        with path.open("rb") as stream:
            if kind == "wasm":
                manifest, digest, covered, module = _read_wasm(stream, str(path))
            else:
                manifest, digest, covered = _read_native(stream, str(path))
                module = None
        if sha256_file(path, covered) != digest:
            raise ArtifactError(
                f"{path} was altered: its content does not match its digest. {_REBUILD}", check="digest"
            )
        if manifest.kind != kind:
            raise ArtifactError(f"{path}: a {kind} file whose manifest says {manifest.kind}. {_REBUILD}")
        return Artifact(path, manifest, digest, module, owner)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as stream, replacing(target) as copy:
        shutil.copyfileobj(stream, copy, 1 << 22)


def seal(path: Path, manifest: Manifest) -> None:
    """Append manifest and digest to a freshly linked module or library, in place.

    The pages of a memory that the module imports are read from the module.
    """
    if manifest.kind == "wasm":
        with path.open("rb") as source:
            module = read_module(source)
        if module.memory_shared:
            manifest = replace(manifest, memory_pages=module.shared_pages)
    with path.open("ab") as stream:
        if manifest.kind == "wasm":
            stream.write(custom_section(MANIFEST_SECTION, manifest.to_json()))
        else:
            stream.write(manifest.to_json())
    digest = bytes.fromhex(sha256_file(path))
    with path.open("ab") as stream:
        if manifest.kind == "wasm":
            stream.write(custom_section(DIGEST_SECTION, digest))
        else:
            stream.write(_NATIVE_TAIL.pack(digest, len(manifest.to_json()), _NATIVE_MAGIC))


def _read_wasm(stream: BinaryIO, where: str) -> tuple[Manifest, str, int, Module]:
    try:
        module = read_module(stream)
    except MalformedError as error:
        raise ArtifactError(f"{where} is truncated or damaged: {error}. {_REBUILD}") from error
    section, digest = module.custom(MANIFEST_SECTION), module.custom(DIGEST_SECTION)
    if section is None:
        if module.sections:
            raise ArtifactError(
                f"{where} is a WebAssembly module without a wasmgraph manifest."
                " Only modules made by `wasmgraph compile` can be loaded."
            )
        raise ArtifactError(f"{where} is truncated: it ends after the magic number. {_REBUILD}")
    if digest is None or digest is not module.sections[-1] or digest.size != 32:
        raise ArtifactError(
            f"{where} is truncated or was added to: it does not end in its digest. {_REBUILD}"
        )
    stream.seek(section.offset)
    manifest = Manifest.from_json(stream.read(section.size), where)
    stream.seek(digest.offset)
    return manifest, stream.read(32).hex(), digest.start, module


def _read_native(stream: BinaryIO, where: str) -> tuple[Manifest, str, int]:
    length = stream.seek(0, 2)
    stream.seek(max(0, length - _NATIVE_TAIL.size))
    tail = stream.read()
    if len(tail) < _NATIVE_TAIL.size or not tail.endswith(_NATIVE_MAGIC):
        raise ArtifactError(f"{where} is truncated, or a library that wasmgraph did not make. {_REBUILD}")
    digest, size, _ = _NATIVE_TAIL.unpack(tail)
    covered = length - _NATIVE_TAIL.size
    if size > covered:
        raise ArtifactError(f"{where} is damaged: its manifest is longer than the file. {_REBUILD}")
    stream.seek(covered - size)
    return Manifest.from_json(stream.read(size), where), digest.hex(), covered
