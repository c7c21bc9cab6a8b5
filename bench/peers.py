"""The JavaScript peers, behind the same interface as our own engines; pinned in ``bench/js``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wasmgraph.dims import MOST, Dim, Expression, Size, names
from wasmgraph.errors import ExecutionError, MissingDependencyError, ModelError, UsageError
from wasmgraph.runtimes import Runtime, Session, get_runtime
from wasmgraph.runtimes.base import LoadOptions
from wasmgraph.runtimes.node import NodeProcess, ProcessSession, node_bytes, node_versions
from wasmgraph.tensors import Array, TensorSpec

_JS = Path(__file__).parent / "js"


def _package_version(name: str) -> str:
    manifest = _JS / "node_modules" / name / "package.json"
    if not manifest.exists():
        raise MissingDependencyError(
            f"the peer needs {name}: npm ci --prefix bench/js --ignore-scripts (`make bench` does it)."
        )
    version: str = json.loads(manifest.read_text())["version"]
    return version


def _engine_bytes(*used: str) -> int:
    """Node.js and the files that a peer loads, of all that its package brings."""
    return node_bytes() + sum((_JS / "node_modules" / name).stat().st_size for name in used)


class OrtWeb(Runtime):
    """onnxruntime-web: its own SIMD build for the CPU, under the same V8."""

    name = "ort-web"
    accepts = "onnx"

    def version(self) -> str:
        """Versions of the package and of V8."""
        return f"{_package_version('onnxruntime-web')}, V8 {node_versions()['v8']}"

    def config(self) -> str:
        """How it is set up."""
        return "wasm execution provider (SIMD), all graph optimisations, a process of its own"

    def engine_bytes(self) -> int:
        """Node.js, the library's script and its SIMD build."""
        dist = "onnxruntime-web/dist"
        return _engine_bytes(f"{dist}/ort.node.min.mjs", f"{dist}/ort-wasm-simd-threaded.wasm")

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Start a process and create the session in it."""
        _package_version("onnxruntime-web")
        process = NodeProcess(_JS / "ort_web.mjs", f"ort-web: {path}")
        message = {"command": "load", "path": str(path.resolve()), "threads": options.threads}
        answer = _loaded(process, message)
        inputs, outputs = (
            tuple(TensorSpec(t["name"], tuple(map(_size, t["shape"])), t["dtype"]) for t in answer[side])
            for side in ("inputs", "outputs")
        )
        return OrtWebSession(process, inputs, outputs)


def _size(given: int | str) -> Size:
    """A size as onnxruntime-web tells it: a number, or the name of a dimension."""
    return given if isinstance(given, int) else Expression.of(given or "?")


class OrtWebSession(ProcessSession):
    """A model in onnxruntime-web, which sees the sizes of this run in the arrays that it is fed."""

    def __init__(
        self, process: NodeProcess, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        open_names = dict.fromkeys(name for spec in inputs for size in spec.shape for name in names(size))
        super().__init__(process, inputs, outputs, tuple(Dim(name, 0, MOST) for name in open_names))

    def _told(self, arrays: list[Array], values: Mapping[str, int]) -> Mapping[str, Any]:
        return {"shapes": [array.shape for array in arrays]}

    def _answered(self, answer: Mapping[str, Any], values: Mapping[str, int]) -> Sequence[TensorSpec]:
        return [
            replace(spec, shape=tuple(shape))
            for spec, shape in zip(self.outputs, answer["shapes"], strict=True)
        ]


class TfjsWasm(Runtime):
    """TensorFlow.js on its WebAssembly backend (SIMD), under the same V8; the model as ``tfjs.py``
    translates it."""

    name = "tfjs-wasm"
    accepts = "onnx"

    def version(self) -> str:
        """Versions of the package and of V8."""
        return f"{_package_version('@tensorflow/tfjs-backend-wasm')}, V8 {node_versions()['v8']}"

    def config(self) -> str:
        """How it is set up."""
        return "SIMD, NHWC, fused kernels, BatchNorm folded, a process of its own"

    def engine_bytes(self) -> int:
        """Node.js, the library's scripts and its SIMD build."""
        core, wasm = "@tensorflow/tfjs-core/dist", "@tensorflow/tfjs-backend-wasm/dist"
        scripts = (f"{core}/tf-core.node.js", f"{wasm}/tf-backend-wasm.node.js")
        return _engine_bytes(*scripts, f"{wasm}/tfjs-backend-wasm-simd.wasm")

    def load(self, path: Path, options: LoadOptions) -> Session:
        """Translate the model, start a process and load the model into it."""
        if options.threads != 1:
            raise UsageError("tfjs-wasm has one thread under Node.js: its own are for browsers.")
        _package_version("@tensorflow/tfjs-backend-wasm")
        from bench.tfjs import translate

        model = translate(path)
        placed, offset = [], 0
        for name, value in model.constants.items():
            placed.append({"name": name, "shape": value.shape, "offset": offset})
            offset += value.nbytes
        message = {
            "command": "load",
            "inputs": [{"name": spec.name, "shape": spec.shape} for spec in model.inputs],
            "outputs": [name for name, _ in model.outputs],
            "steps": model.steps,
            "constants": placed,
        }
        process = NodeProcess(_JS / "tfjs_wasm.mjs", f"tfjs-wasm: {path}")
        _loaded(process, message, b"".join(value.tobytes() for value in model.constants.values()))
        return ProcessSession(process, tuple(model.inputs), tuple(spec for _, spec in model.outputs))


def _loaded(process: NodeProcess, message: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
    """The answer to a message that loads a model; the process ends if it fails."""
    try:
        answer, _ = process.ask(message, payload)
    except ExecutionError as error:
        process.close()
        raise ModelError(str(error)) from error
    return answer


PEERS: dict[str, Runtime] = {peer.name: peer for peer in (OrtWeb(), TfjsWasm())}


def engine(name: str) -> Runtime:
    """A peer, or one of our own runtimes."""
    return PEERS[name] if name in PEERS else get_runtime(name)
