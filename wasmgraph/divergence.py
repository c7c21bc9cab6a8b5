"""Where a compiled model departs from onnxruntime: the first node whose output differs.

First every intermediate tensor is made an output of the compiled graph, which shows each node's result. If
nothing differs then, the fault is in what is fused only without those outputs: prefixes of the graph are
compiled, and the shortest that differs is searched for by halves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wasmgraph.compiler import compile
from wasmgraph.compiler.importing import bind_shapes, check_dims, check_shapes, may_be_computed, read_model
from wasmgraph.dims import Dim, is_closed, parse, solved
from wasmgraph.dims import names as names_in
from wasmgraph.files import replacing
from wasmgraph.runtimes import load
from wasmgraph.tensors import Array, TensorSpec, check_feeds, check_values, noise

Say = Callable[[str], None]
_FEW = 5  # what an open dimension is where no array says it


@dataclass(frozen=True)
class Statistics:
    """A tensor in figures; of no elements, or of truth values, they are of their numbers as float64."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    least: float
    greatest: float
    mean: float
    not_finite: int


@dataclass(frozen=True)
class Divergence:
    """A node whose output differs: by how much at most, what went in, and whether the node alone differs.

    ``difference`` is the largest absolute difference, divided by the largest absolute value expected.
    """

    node: str
    operator: str
    output: str
    difference: float
    inputs: Sequence[Statistics]
    alone: bool
    saved: Path


@dataclass(frozen=True)
class Comparison:
    """The outputs' differences by name, and the first node that diverges, if any output does."""

    outputs: Mapping[str, float]
    divergence: Divergence | None


def compare_with_onnxruntime(
    model: str | Path,
    target: str,
    shapes: Mapping[str, Sequence[int | str]],
    feeds: Mapping[str, Array],
    tolerance: float,
    save: Path,
    say: Say = lambda _: None,
    strict: bool = True,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
) -> Comparison:
    """Run a model both ways, and find the first node that differs if an output does.

    Parameters
    ----------
    feeds : arrays by input name; inputs that are not given are seeded noise
    tolerance : the largest difference that is none, relative to the largest absolute value expected
    save : where the smallest model that shows the divergence is written, with its inputs in an ``.npz``
        of the same name
    strict : as for :meth:`wasmgraph.runtimes.base.Session.run`
    dims : bounds of dimensions that are left open; where no given array says a value, it is a small one

    Raises
    ------
    FeedError
        A given array's name, shape or dtype is wrong.
    """
    read = read_model(model)
    proto, name = read.proto, read.name
    opened, asked = bind_shapes(proto, check_shapes(shapes), *check_dims(dims))
    inputs = _feeds(proto, feeds, strict, opened)
    with tempfile.TemporaryDirectory(prefix="wasmgraph-") as directory:
        search = _Search(proto, inputs, target, tolerance, Path(directory), say, {**opened, **asked})
        wanted = [value.name for value in proto.graph.output]
        say(f"{name}: compiling for {target}, and running both")
        outputs = search.differences(proto, wanted)
        if all(d <= tolerance for d in outputs.values()):
            return Comparison(outputs, None)
        return Comparison(outputs, search.first(save))


def _feeds(
    proto: onnx.ModelProto, given: Mapping[str, Array], strict: bool, dims: Mapping[str, Dim]
) -> dict[str, Array]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    values = [value for value in proto.graph.input if value.name not in constants]
    specs: list[TensorSpec] = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = tuple(parse(d.dim_param, dims) if d.dim_param else d.dim_value for d in tensor.shape.dim)
        specs.append(TensorSpec(value.name, shape, str(dtype)))
    if dims:
        sizes = [
            z for s in specs if s.name in given for z in zip(s.shape, np.shape(given[s.name]), strict=False)
        ]
        said = solved(sizes, dims, {})
        at = {name: said.get(name, min(dim.most, max(dim.least, _FEW))) for name, dim in dims.items()}
        check_values(list(dims.values()), at)
        specs = [spec.at(at) for spec in specs]
    feeds = check_feeds(specs, {**noise(specs, np.random.default_rng(0)), **given}, strict)
    return {spec.name: array for spec, array in zip(specs, feeds, strict=True)}


class _Search:
    def __init__(
        self,
        proto: onnx.ModelProto,
        feeds: dict[str, Array],
        target: str,
        tolerance: float,
        directory: Path,
        say: Say,
        dims: Mapping[str, Dim],
    ) -> None:
        self.dims = dims
        self.feeds, self.target, self.tolerance = feeds, target, tolerance
        self.directory, self.say = directory, say
        self.proto = proto
        constants = {tensor.name for tensor in proto.graph.initializer}
        found = [o for n in proto.graph.node if n.op_type != "Constant" for o in n.output if o]
        self.tensors = [name for name in found if name not in constants]
        self.expected = self._reference()

    def _reference(self) -> dict[str, Array]:
        """Every tensor of the model as onnxruntime computes it, without optimisations."""
        import onnxruntime

        shown = _with_outputs(self.proto, self.tensors, {})
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        found = zip(names, session.run(None, self.feeds), strict=True)
        return {name: value for name, value in found if isinstance(value, np.ndarray)}

    def differences(self, proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, float]:
        """How much each of a model's outputs differs."""
        written = [d.dim_param for value in proto.graph.input for d in value.type.tensor_type.shape.dim]
        used = frozenset().union(*(names_in(parse(text, self.dims)) for text in written if text))
        dims = {
            name: (dim.least, dim.most)
            for name, dim in self.dims.items()
            if name in used or may_be_computed(name, proto)
        }
        with load(compile(proto, target=self.target, dims=dims)) as session:
            found = session.run({s.name: self._fed(s) for s in session.inputs})
        return {name: difference(found[name], self.expected[name]) for name in names}

    def _fed(self, spec: TensorSpec) -> Array:
        value = np.ascontiguousarray(self.feeds.get(spec.name, self.expected.get(spec.name)))
        return value.reshape(spec.shape) if is_closed(spec.shape) else value

    def first(self, save: Path) -> Divergence:
        """The first node that differs; one does."""
        self.say(f"looking at each of {len(self.tensors)} tensors")
        names = [name for name in self.tensors if name in self.expected]
        all_shown = self.differences(_with_outputs(self.proto, names, self.expected), names)
        guilty = next((name for name in names if not all_shown[name] <= self.tolerance), None)
        shown = all_shown
        if guilty is None:
            guilty, amount = self._by_halves(names)
            shown = {guilty: amount}
        node = next(n for n in self.proto.graph.node if guilty in n.output)
        alone = self._alone(node)
        wanted = [name for name in node.output if name]
        inputs = [v.name for v in alone.graph.input]
        statistics = [_statistics(name, self._value(name)) for name in node.input if name]
        with replacing(save) as stream:
            stream.write(alone.SerializeToString())
        with replacing(save.with_suffix(".npz")) as stream:
            np.savez(stream, allow_pickle=False, **{name: self._value(name) for name in inputs})
        differs = max(self.differences(alone, wanted).values())
        return Divergence(
            node.name or f"(makes {guilty})",
            node.op_type,
            guilty,
            shown[guilty],
            statistics,
            not differs <= self.tolerance,
            save,
        )

    def _by_halves(self, names: Sequence[str]) -> tuple[str, float]:
        low, high = 0, len(names) - 1
        amount = float("nan")
        while low < high:
            middle = (low + high) // 2
            self.say(f"compiling up to {names[middle]}: {high - low + 1} tensors left")
            found = self._prefix(names[middle])
            if found <= self.tolerance:
                low = middle + 1
            else:
                high, amount = middle, found
        return names[low], amount if amount == amount else self._prefix(names[low])

    def _prefix(self, name: str) -> float:
        shown = _with_outputs(self.proto, [name], self.expected, alone=True)
        return self.differences(shown, [name])[name]

    def _value(self, name: str) -> Array:
        for tensor in self.proto.graph.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        return np.asarray(self.feeds.get(name, self.expected.get(name)))

    def _alone(self, node: onnx.NodeProto) -> onnx.ModelProto:
        """The node by itself: what is computed before it becomes an input."""
        constants = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        names = dict.fromkeys(name for name in node.input if name)
        fed = [name for name in names if name not in constants]
        graph = helper.make_graph(
            [node],
            "diverging",
            [_value_info(name, self._value(name)) for name in fed],
            [_value_info(name, self.expected[name]) for name in node.output if name],
            [constants[name] for name in names if name in constants],
        )
        made = helper.make_model(graph, opset_imports=list(self.proto.opset_import))
        made.ir_version = self.proto.ir_version
        made.functions.extend(self.proto.functions)
        return made


def difference(found: Array, expected: Array) -> float:
    """The largest absolute difference over the largest absolute value expected.

    It is infinite where one of both is not a number, or shapes differ.
    """
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    if np.isnan(gap).any():
        return float("inf")
    finite = np.abs(b[np.isfinite(b)])
    scale = float(finite.max()) if finite.size and finite.max() else 1.0
    return float(gap.max()) / scale


def _statistics(name: str, value: Array) -> Statistics:
    numbers = value.astype(np.float64).ravel()
    finite = numbers[np.isfinite(numbers)]
    figures = (finite.min(), finite.max(), finite.mean()) if finite.size else (np.nan,) * 3
    least, greatest, mean = map(float, figures)
    dtype, missing = str(value.dtype), int(numbers.size - finite.size)
    return Statistics(name, dtype, value.shape, least, greatest, mean, missing)


def _value_info(name: str, value: Array) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, value.shape)


def _with_outputs(
    proto: onnx.ModelProto, names: Sequence[str], values: Mapping[str, Array], alone: bool = False
) -> onnx.ModelProto:
    """A model that shows these tensors, and its own outputs unless ``alone``. What ONNX infers no type of
    is like its value in ``values``, if it has one there."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    own = [] if alone else list(proto.graph.output)
    inferred = onnx.shape_inference.infer_shapes(proto)
    types = {name: _value_info(name, value) for name, value in values.items()}
    types |= {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    del shown.graph.output[:]
    shown.graph.output.extend(own)
    there = {value.name for value in own}
    extra: list[Any] = [
        types.get(name, helper.make_value_info(name, onnx.TypeProto()))
        for name in names
        if name not in there
    ]
    shown.graph.output.extend(extra)
    if alone:
        needed, nodes = set(names), []
        for node in reversed(shown.graph.node):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
        del shown.graph.node[:]
        shown.graph.node.extend(kept)
    return shown
