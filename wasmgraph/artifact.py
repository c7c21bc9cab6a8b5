"""The artifact file: the only thing that crosses from compiling to running.

A **wasm** artifact is a WebAssembly module with two custom sections at its end: ``wasmgraph``
(the manifest, JSON) and ``wasmgraph.sha256`` (the digest of every byte before that section).
A **native** artifact is a shared library with a trailer: manifest, digest of every byte before
it (32 bytes), length of the manifest (8 bytes, little endian), magic number (8 bytes). The
dynamic loader does not look at a trailer.

The manifest is a claim by whoever made the file. The digest shows that the file is whole, not
who made it.

The parameters of a module with ``params="wasi"`` are a file in ``wasmgraph-params/`` beside it, named by
the first digits of their digest. Modules of the same model for other targets find the same file there.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Literal

from wasmgraph.errors import ArtifactError, UsageError
from wasmgraph.files import expand, replacing, sha256_file
from wasmgraph.manifest import (
    CLOSED_SCHEMA,
    DESCRIPTION_KEY,
    DTYPES,
    REBUILD,
    SCHEMA,
    Check,
    Manifest,
    Params,
    Placed,
    PlacedDim,
    Step,
    check_computed,
    given,
    held,
    params_file,
)
from wasmgraph.tensors import TensorSpec, signature
from wasmgraph.text import plain
from wasmgraph.wasm.wasmfile import MAGIC, MalformedError, Module, custom_section, read_module

MANIFEST_SECTION = "wasmgraph"
DIGEST_SECTION = "wasmgraph.sha256"
PARAMS_FOLDER = "wasmgraph-params"
_NATIVE_MAGIC = b"WGNATIVE"
_NATIVE_TAIL = struct.Struct("<32sQ8s")


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
    manifest : its claims about itself
    sha256 : digest of all that comes before the digest itself: the artifact's identity
    module : the wasm module's outside, or None for a native artifact
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        sha256: str,
        module: Module | None,
        covered: int,
        owner: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256
        self.module = module
        self._covered = covered  # bytes that the digest is of
        self._owner = owner  # keeps an unsaved artifact's directory alive

    def __repr__(self) -> str:
        name, target = plain(self.manifest.model_name), plain(self.manifest.target)
        where = "unsaved" if self._owner else repr(str(self.path))
        return f"<Artifact {name} for {target}, {where}: {signature(self.inputs, self.outputs)}>"

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
        """Copy the artifact to ``path``, and its parameter file, if it has one, to a folder beside it. Each
        file is whole or absent; the parameters are written first."""
        target = expand(path)
        try:
            if self.params_path is not None:
                folder = target.resolve().parent / PARAMS_FOLDER
                folder.mkdir(exist_ok=True)
                _copy(self.params_path, folder / self.params_path.name)
            _copy(self.path, target)
        except OSError as error:
            raise ArtifactError(f"{target} cannot be written: {error.strerror}.") from error
        return target

    def copy_to(self, stream: BinaryIO) -> None:
        """Write the artifact to a stream, and check what was written.

        Raises
        ------
        ArtifactError
            The file is not there any more, or is another one than was opened.
        """
        digest, left = hashlib.sha256(), self._covered
        try:
            with self.path.open("rb") as source:
                while chunk := source.read(1 << 22):
                    digest.update(chunk[:left])
                    left = max(0, left - len(chunk))
                    stream.write(chunk)
            stream.flush()
        except FileNotFoundError as error:
            raise self._gone() from error
        if digest.hexdigest() != self.sha256:
            raise self._replaced()

    def check_unchanged(self) -> None:
        """Check that the file at the path is still the one that was opened, after something else read it.

        Raises
        ------
        ArtifactError
            It is not there any more, or is another one.
        """
        try:
            digest = sha256_file(self.path, self._covered)
        except FileNotFoundError as error:
            raise self._gone() from error
        if digest != self.sha256:
            raise self._replaced()

    def _gone(self) -> ArtifactError:
        return ArtifactError(f"{self.path} is not there any more.")

    def _replaced(self) -> ArtifactError:
        said = f"{self.path} was replaced while it was loaded. Load it again."
        return ArtifactError(said, check="digest")

    def __reduce__(self) -> tuple[Callable[[Path, str], Artifact], tuple[Path, str]]:
        if self._owner is not None:
            raise UsageError(
                f"{self.path} is temporary and goes away with this artifact, which cannot be pickled or"
                " copied. Save it, and pass on the path."
            )
        return _reopened, (self.path.resolve(), self.sha256)

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
        path = expand(path)
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
                f"{path} was altered: its content does not match its digest. {REBUILD}", check="digest"
            )
        if manifest.kind != kind:
            raise ArtifactError(f"{path}: a {kind} file whose manifest says {manifest.kind}. {REBUILD}")
        return Artifact(path, manifest, digest, module, covered, owner)


def _reopened(path: Path, sha256: str) -> Artifact:
    """A pickled artifact."""
    artifact = Artifact.open(path)
    if artifact.sha256 != sha256:
        raise ArtifactError(
            f"{path} has the sha256 {artifact.sha256}, not {sha256}: it was replaced after it was pickled.",
            check="sha256",
        )
    return artifact


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
        raise ArtifactError(f"{where} is truncated or damaged: {error}. {REBUILD}") from error
    section, digest = module.custom(MANIFEST_SECTION), module.custom(DIGEST_SECTION)
    if section is None:
        if module.sections:
            raise ArtifactError(
                f"{where} is a WebAssembly module without a wasmgraph manifest."
                " Only modules made by `wasmgraph compile` can be loaded."
            )
        raise ArtifactError(f"{where} is truncated: it ends after the magic number. {REBUILD}")
    if digest is None or digest is not module.sections[-1] or digest.size != 32:
        raise ArtifactError(
            f"{where} is truncated or was added to: it does not end in its digest. {REBUILD}"
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
        raise ArtifactError(f"{where} is truncated, or a library that wasmgraph did not make. {REBUILD}")
    digest, size, _ = _NATIVE_TAIL.unpack(tail)
    covered = length - _NATIVE_TAIL.size
    if size > covered:
        raise ArtifactError(f"{where} is damaged: its manifest is longer than the file. {REBUILD}")
    stream.seek(covered - size)
    return Manifest.from_json(stream.read(size), where), digest.hex(), covered


__all__ = [
    "CLOSED_SCHEMA",
    "DESCRIPTION_KEY",
    "DTYPES",
    "PARAMS_FOLDER",
    "SCHEMA",
    "Artifact",
    "Check",
    "Manifest",
    "Params",
    "Placed",
    "PlacedDim",
    "Step",
    "check_computed",
    "given",
    "held",
    "kind_of",
    "params_file",
    "seal",
]
