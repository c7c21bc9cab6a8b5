"""An artifact's description of itself. It is a claim by whoever made the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Literal, NamedTuple

from wasmgraph.dims import MOST, Dim, Shape, Size, bounds, evaluate, from_json, names, to_json
from wasmgraph.errors import ArtifactError, ExecutionError, SchemaError
from wasmgraph.targets import Kind
from wasmgraph.tensors import TensorSpec

SCHEMA = 4  # the newest that is read; 4: shapes may depend on dimensions
CLOSED_SCHEMA = 3  # of a graph without dimensions, which older versions read too
DESCRIPTION_KEY = "wasmgraph"  # of an ONNX file's metadata: JSON that ends up in the manifest
Params = Literal["embedded", "wasi"]
DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
REBUILD = "Compile the model again, or fetch the file again."
# What of the records of a manifest may depend on dimensions.
_SIZES = {"steps": ("flops", "traffic_bytes", "turns"), "checks": ("low", "high")}
_LARGEST = 1 << 56  # elements of a tensor, were each dimension at least 1


@dataclass(frozen=True)
class Placed:
    """A tensor and the byte offset at which it lies: in linear memory (wasm), in the arena (native)."""

    name: str
    shape: Shape
    dtype: str
    offset: int

    @property
    def spec(self) -> TensorSpec:
        """The tensor without its place."""
        return TensorSpec(self.name, self.shape, self.dtype)


@dataclass(frozen=True)
class PlacedDim(Dim):
    """A dimension and the byte offset of its value, an int32. The host writes it before a run; if it is
    ``computed``, the graph does, and the host may read it afterwards."""

    offset: int = 0
    computed: bool = False


class StepWork(NamedTuple):
    """A step whose numbers depend on nothing."""

    kernel: str
    operator: str
    rule: str
    flops: int
    traffic_bytes: int
    product: bool
    turns: int


def given(dims: Sequence[PlacedDim]) -> tuple[PlacedDim, ...]:
    """The dimensions whose values the host writes."""
    return tuple(dim for dim in dims if not dim.computed)


def check_computed(dims: Sequence[PlacedDim], values: Mapping[str, int]) -> Mapping[str, int]:
    """Return values that a graph has computed.

    Raises
    ------
    ExecutionError
        One is out of its bounds, which no graph does that wasmgraph has made.
    """
    for dim in dims:
        if dim.computed and not dim.least <= values[dim.name] <= dim.most:
            raise ExecutionError(f"the graph computed {values[dim.name]} for {dim}.")
    return values


def held(dims: Sequence[PlacedDim], values: Mapping[str, int]) -> dict[str, int]:
    """The values of a graph that failed before it had computed them all, each held in its bounds: for the
    words of its error."""
    return {dim.name: min(max(values[dim.name], dim.least), dim.most) for dim in dims if dim.computed}


@dataclass(frozen=True)
class Step:
    """One call of the plan: the kernel's symbol, the operators it does, the rule that scheduled it,
    its floating-point operations (a convolution's as if direct), the bytes of its operands, whether it is a
    matrix product or a convolution, and how often it is done in a run: a call in a loop, once a turn. Its
    numbers may depend on dimensions."""

    kernel: str
    operator: str
    rule: str
    flops: Size
    traffic_bytes: Size
    product: bool = False
    turns: Size = 1

    def at(self, values: Mapping[str, int]) -> StepWork:
        """The step where each dimension has a value."""
        flops, traffic, turns = (evaluate(n, values) for n in (self.flops, self.traffic_bytes, self.turns))
        return StepWork(self.kernel, self.operator, self.rule, flops, traffic, self.product, turns)


@dataclass(frozen=True)
class Check:
    """Indices that must lie from ``low`` to ``high``, which may depend on dimensions. A run leaves a code
    of the worst of them, an int64, at ``offset``; it is above ``2 * high + 1`` if that one is out of range.
    ``node`` says in words which node takes them."""

    node: str
    operator: str
    low: Size
    high: Size
    offset: int

    def at(self, values: Mapping[str, int]) -> Check:
        """The same check where each dimension has a value."""
        return replace(self, low=evaluate(self.low, values), high=evaluate(self.high, values))

    def index(self, code: int) -> Any:
        """The index of a code; from 2**60 on, or below its negative, only that."""
        distance = code >> 1
        return self.high + self.low - distance if code & 1 else distance


@dataclass(frozen=True, kw_only=True)
class LibraryManifest:
    """What every module of functions says of itself: its target, its memory, where its parameters are.

    Sizes are in bytes; ``features`` are LLVM's names; ``memory_pages`` are least and most of the shared
    memory that a module with threads imports, in pages of 64 KiB; ``params_sha256`` is the digest of a
    parameter file.
    """

    schema: int
    target: str
    kind: Kind
    features: tuple[str, ...]
    cpu_features: tuple[str, ...]
    arena_bytes: int
    param_bytes: int
    params: Params
    versions: Mapping[str, str]
    memory_pages: tuple[int, int] | None = None
    params_sha256: str = ""

    @property
    def params_file(self) -> str:
        """Name of the parameter file; empty if the parameters are in the module."""
        return params_file(self.params_sha256) if self.params == "wasi" else ""

    @property
    def embedded_bytes(self) -> int:
        """Bytes of the file that are parameters."""
        return self.param_bytes if self.params == "embedded" else 0

    def _check(self) -> None:
        """Raise TypeError or ValueError where a field is not what the format says."""
        self._check_counts("schema", "arena_bytes", "param_bytes")
        if not isinstance(self.versions, dict):
            raise TypeError("versions is not an object")
        words = (
            self.target,
            self.params_sha256,
            *self.features,
            *self.cpu_features,
            *self.versions.values(),
        )
        if self.kind not in ("wasm", "native") or not all(isinstance(word, str) for word in words):
            raise TypeError("kind, names, digests, target, features and versions must be text")
        if self.memory_pages is not None and [type(n) for n in self.memory_pages] != [int, int]:
            raise TypeError(f"memory_pages are {self.memory_pages!r}")
        if self.params not in ("embedded", "wasi"):
            raise TypeError(f"params are {self.params!r}")
        if self.params == "wasi" and not re.fullmatch("[0-9a-f]{64}", self.params_sha256):
            raise ValueError(f"params_sha256 is {self.params_sha256!r}")

    def _check_counts(self, *fields: str) -> None:
        for name in fields:
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise TypeError(f"{name} is {value!r}")


@dataclass(frozen=True, kw_only=True)
class Manifest(LibraryManifest):
    """What a graph says of itself: a library with a plan, and an entry that runs it.

    ``ops_slow`` are calls for a product under a rule that is not made for products.
    ``dims`` are the dimensions that shapes of inputs and outputs depend on; a ``command`` is for WASI
    engines, not for loading; ``notes`` are remarks on how the graph was compiled, for its user.
    """

    model_name: str
    model_sha256: str
    weights: str
    description: Mapping[str, Any]
    inputs: tuple[Placed, ...]
    outputs: tuple[Placed, ...]
    steps: tuple[Step, ...]
    kernels: int
    ops_scheduled: int
    ops_fallback: int
    ops_slow: int = 0
    command: bool = False
    checks: tuple[Check, ...] = ()
    dims: tuple[PlacedDim, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Compact JSON, UTF-8."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        for side in ("inputs", "outputs"):
            data[side] = [{**vars(t), "shape": list(map(to_json, t.shape))} for t in data[side]]
        for name, of in _SIZES.items():
            data[name] = [
                {**vars(each), **{f: to_json(getattr(each, f)) for f in of}} for each in data[name]
            ]
        data["dims"] = [vars(dim) for dim in self.dims]
        for name in ("dims", "notes"):  # which older readers do not know
            if not data[name]:
                del data[name]
        return json.dumps(data, separators=(",", ":"), sort_keys=True).encode()

    def _check(self) -> None:
        super()._check()
        self._check_counts("kernels", "ops_scheduled", "ops_fallback", "ops_slow")
        if not isinstance(self.description, dict):
            raise TypeError("description is not an object")
        words = (self.model_name, self.model_sha256, self.weights, *self.notes)
        if not all(isinstance(word, str) for word in words):
            raise TypeError("the model's name, digest, weights and notes must be text")
        if type(self.command) is not bool:
            raise TypeError(f"command is {self.command!r}")
        dims = self._checked_dims()
        for step in self.steps:
            counts = (step.flops, step.traffic_bytes, step.turns)
            if (
                not all(isinstance(word, str) for word in (step.kernel, step.operator, step.rule))
                or any(bounds(count, dims)[1] < 0 for count in counts)
                or type(step.product) is not bool
            ):
                raise TypeError(f"a step is {step}")
        for check in self.checks:
            if (
                not all(isinstance(word, str) for word in (check.node, check.operator))
                or type(check.offset) is not int
            ):
                raise TypeError(f"a check is {check}")
            bounds(check.low, dims), bounds(check.high, dims)  # raise for a dimension without bounds
            if check.offset < 0 or (self.kind == "native" and check.offset + 8 > self.arena_bytes):
                raise ValueError(f"a check's code is at {check.offset}")
        for tensor in (*self.inputs, *self.outputs):
            self._check_tensor(tensor, dims)

    def _checked_dims(self) -> dict[str, PlacedDim]:
        dims = {dim.name: dim for dim in self.dims}
        if dims and self.schema <= CLOSED_SCHEMA:
            raise ValueError(f"schema {self.schema} has no dims")
        if len(dims) < len(self.dims):
            raise ValueError("two dims have the same name")
        for dim in self.dims:
            numbers = (dim.offset, dim.most)
            if [type(n) for n in numbers] != [int, int] or dim.offset < 0 or dim.most > MOST:
                raise ValueError(f"a dimension is {dim} at {dim.offset!r}")
            if type(dim.computed) is not bool:
                raise TypeError(f"computed is {dim.computed!r}")
            if self.kind == "native" and dim.offset + 4 > self.arena_bytes:
                raise ValueError(f"the value of {dim} lies outside the arena")
        return dims

    def _check_tensor(self, tensor: Placed, dims: Mapping[str, Dim]) -> None:
        if not isinstance(tensor.name, str):
            raise TypeError(f"a tensor is called {tensor.name!r}")
        if type(tensor.offset) is not int or tensor.offset < 0:
            raise TypeError(f"tensor {tensor.name!r} has the offset {tensor.offset!r}")
        if unknown := frozenset().union(*map(names, tensor.shape)) - dims.keys():
            raise ValueError(
                f"tensor {tensor.name!r} depends on {', '.join(sorted(unknown))}, which is not bound"
            )
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tensor {tensor.name!r} has dtype {tensor.dtype!r}")
        ranges = [bounds(size, dims) for size in tensor.shape]
        # [0, 2**60] is too big for numpy.
        if any(most < 0 for _, most in ranges) or prod(max(most, 1) for _, most in ranges) >= _LARGEST:
            raise ValueError(f"tensor {tensor.name!r} has shape {tensor.shape}")
        largest = TensorSpec(tensor.name, tuple(most for _, most in ranges), tensor.dtype)
        if self.kind == "native" and tensor.offset + largest.nbytes > self.arena_bytes:
            raise ValueError(f"tensor {tensor.name!r} lies outside the arena")

    @staticmethod
    def from_json(raw: bytes, where: str) -> Manifest:
        """Parse and check the form of a manifest; ``where`` names the file in errors."""
        try:
            data = json.loads(raw)
            schema = data["schema"]
            if not isinstance(schema, int):
                raise TypeError("schema is not a number")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArtifactError(f"{where}: the manifest cannot be read ({error}). {REBUILD}") from error
        if schema > SCHEMA:
            raise SchemaError(
                f"{where}: its manifest has schema {schema}, this wasmgraph reads up to {SCHEMA}."
                " Update wasmgraph, or compile the model with this version."
            )
        try:
            for side in ("inputs", "outputs"):
                shapes = [tuple(from_json(size) for size in t["shape"]) for t in data[side]]
                data[side] = tuple(
                    Placed(**{**t, "shape": shape}) for t, shape in zip(data[side], shapes, strict=True)
                )
            for name, of in _SIZES.items():
                data[name] = [
                    {**each, **{f: from_json(each[f]) for f in of if f in each}}
                    for each in data.get(name, ())
                ]
            data["checks"] = tuple(Check(**check) for check in data["checks"])
            data["dims"] = tuple(PlacedDim(**dim) for dim in data.get("dims", ()))
            data["steps"] = tuple(Step(**step) for step in data["steps"])
            if data.get("memory_pages") is not None:
                data["memory_pages"] = tuple(data["memory_pages"])
            for key in ("features", "cpu_features", "notes"):
                data[key] = tuple(data.get(key, ()))
            manifest = Manifest(**data)
            manifest._check()
            return manifest
        except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
            raise ArtifactError(f"{where}: the manifest is incomplete ({error}). {REBUILD}") from error


def params_file(sha256: str) -> str:
    """What a parameter file of that digest is called."""
    return f"{sha256[:16]}.params"
