"""The walk through an ONNX graph: known values are computed during the walk, the rest becomes Relax.

Shapes are static, so everything that only depends on shapes and constants is known here: conditions,
trip counts, axes, sizes. Control flow over known values is executed during the walk: branches are chosen,
short loops are unrolled. The result is a straight line of tensor operators, in which marks enclose the
bodies of other loops (``repeating.py``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax, te, tirx

from wasmgraph.compiler.constants import array_of
from wasmgraph.compiler.importing.frontend import half
from wasmgraph.compiler.importing.frontend.computed import Computed, FurtherDimsError
from wasmgraph.compiler.importing.frontend.empties import without_elements
from wasmgraph.compiler.importing.frontend.registry import (
    CONVERTERS,
    SHAPE_ONLY,
    converts,
    input_name,
    tvm_has,
)
from wasmgraph.compiler.importing.frontend.scaled import ScaledTensors
from wasmgraph.compiler.importing.frontend.schemas import (
    domain_of,
    fold,
    function_body,
    instantiate,
    known,
)
from wasmgraph.compiler.importing.frontend.size_arithmetic import fold_sizes
from wasmgraph.compiler.importing.frontend.values import (
    ComputedError,
    IndexCheck,
    Sizes,
    Value,
    dtype_of,
    expression,
    has_no_elements,
    is_known,
    shape_of,
    size_array,
    typed_shape,
)
from wasmgraph.compiler.importing.static_inputs import STATIC_INPUTS
from wasmgraph.compiler.operators.packing import OPAQUE
from wasmgraph.compiler.sizes import call_te
from wasmgraph.compiler.tvm_private import frontend_converters, onnx_input
from wasmgraph.dims import Expression, Shape, Size, is_closed, product
from wasmgraph.errors import ModelError, UnsupportedOperatorError, WasmgraphError

# The opset of the operators by which converters express other operators.
OWN_OPSET = 21


@dataclass
class Operator:
    """One node, as its converter gets it. Calling this object applies another operator::

    op("Add", a, b)      # ONNX's Add, of opset OWN_OPSET
    """

    walk: Walk
    node: onnx.NodeProto
    opset: int
    scope: Mapping[str, Value]
    attributes: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.attributes = {a.name: helper.get_attribute_value(a) for a in self.node.attribute}

    def __call__(self, operator: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Apply another operator; return its output, or a list of its outputs if there are several."""
        names = [f"o{i}" for i in range(outputs)]
        node = helper.make_node(operator, [f"i{i}" for i in range(len(inputs))], names, **attributes)
        operands = [np.asarray(v) if isinstance(v, np.generic) else v for v in inputs]
        with self.walk.for_result(self.node):
            results = self.walk.apply(node, operands, OWN_OPSET, {})
        return results[0] if outputs == 1 else results

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value; strings as ``str``."""
        value = self.attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            return [item.decode() for item in value]
        return value

    @property
    def outputs(self) -> int:
        """The number of outputs that may be used: all up to the last one that has a name."""
        return max((i + 1 for i, name in enumerate(self.node.output) if name), default=0)

    def emit(self, expr: relax.Expr) -> relax.Expr:
        """Bind a Relax expression; return its variable."""
        return self.walk.builder.emit(expr)

    def te(self, compute: Callable[..., Any], *inputs: Value) -> relax.Expr:
        """Bind the result of a function of TE tensors."""
        return self.walk.te(compute, *inputs, name=self.node.op_type.lower())

    def tvm(self, *inputs: Value, without: Sequence[str] = (), **attributes: Any) -> Any:
        """Convert this operator by TVM's frontend, with some attributes changed or removed."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        kept = [a for a in self.node.attribute if a.name not in attributes and a.name not in without]
        del node.attribute[:]
        node.attribute.extend(kept + [helper.make_attribute(k, v) for k, v in attributes.items()])
        return self.walk.convert_by_tvm(node, list(inputs), self.opset)

    def function(self, *inputs: Value) -> list[Value]:
        """Walk the function body by which ONNX defines this operator."""
        body = function_body(self.node, list(inputs), self.opset)
        if body is None:
            raise self.unsupported("has no function body for inputs of these types")
        return self.walk.call(body, self.node, list(inputs))

    def subgraph(
        self, attribute: str, *inputs: Value, outside: Mapping[str, Value] | None = None
    ) -> list[Value]:
        """Walk the graph in an attribute. It can refer to the names in the scope of this node; ``outside``
        has other values for some of them."""
        graph = self.attributes[attribute]
        given = dict(zip((v.name for v in graph.input), inputs, strict=True))
        scope = {**self.scope, **(outside or {}), **given}
        return self.walk.graph(graph, scope, self.walk.opsets)

    def outside(self, attribute: str) -> dict[str, Value]:
        """The computed tensors in the scope of this node to which the graph in an attribute refers."""
        names = _mentioned(self.attributes[attribute])
        return {
            name: value
            for name, value in self.scope.items()
            if name in names and not isinstance(value, list) and not is_known(value)
        }

    def in_sequences(self, attribute: str) -> list[Value]:
        """The computed tensors in the sequences to which the graph in an attribute refers."""
        names = _mentioned(self.attributes[attribute])
        return [
            item
            for name, value in self.scope.items()
            if name in names and isinstance(value, list)
            for item in _items(value)
            if not is_known(item)
        ]

    def said(self, most: Size | None, count: relax.Expr, axis: int | None = None) -> Expression:
        """A dimension whose value a tensor (int64 ``[1]``) says when the graph runs. It is at most
        ``most``, if that is known; ``axis`` is where it becomes a size of the node's first output.

        Raises
        ------
        UnboundDimensionError
            Nothing bounds it.
        """
        if self.walk.result:  # the size may be that of another tensor than the declared one
            axis = None
        return self.walk.computed.dimension(self.walk.result or _first(self.node), most, count, axis)

    def said_sizes(
        self, value: Value, most: Sequence[Size | None], axes: Sequence[int] | None = None
    ) -> list[Size]:
        """The sizes that the elements of a tensor of integers are when the graph runs: those of the node's
        first output along ``axes``, of which each is at most ``most``; None: sizes of something else.
        Errors are those of :meth:`said`."""
        flat = self("Reshape", value, size_array([len(most)]))

        def element(place: int) -> relax.Expr:
            def compute(x: te.Tensor) -> te.Tensor:
                return te.compute((1,), lambda _: x[place].astype("int64"), name="count")

            return self.walk.te(compute, flat, name="count", alone=True)

        axis_of = [None] * len(most) if axes is None else axes
        return [self.said(most[n], element(n), axis_of[n]) for n in range(len(most))]

    def unsupported(self, what: str) -> UnsupportedOperatorError:
        """The error for a variant of the operator that has no implementation."""
        return UnsupportedOperatorError(f"{self.node.op_type} {what}")


@dataclass
class Walk:
    """The state of one import. ``builder`` is inside ``main``; ``functions`` are defined by the model."""

    builder: relax.BlockBuilder
    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str], onnx.FunctionProto]
    computed: Computed = field(default_factory=Computed)
    scaled: ScaledTensors = field(default_factory=ScaledTensors)
    done: Callable[[int], None] = lambda _: None
    checks: list[tuple[IndexCheck, relax.Expr]] = field(default_factory=list)
    # The results of the current nodes are used only if this holds; None if they are used in any case.
    condition: Value = None
    where: tuple[str, str] = ("", "")  # place and operator of the innermost current node with a name
    loops: int = 0  # that were converted as loops
    # The first output of the outermost current node that others define: a function, or its converter.
    result: str = ""

    @contextlib.contextmanager
    def for_result(self, node: onnx.NodeProto) -> Iterator[None]:
        """Mark the nodes applied in this block: they define another one."""
        outer, self.result = self.result, self.result or _first(node)
        try:
            yield
        finally:
            self.result = outer

    def next_loop(self) -> int:
        """The number of another loop."""
        self.loops += 1
        return self.loops

    @contextlib.contextmanager
    def only_if(self, condition: Value, apply: Callable[..., Any]) -> Iterator[None]:
        """Mark the nodes applied in this block: their results are only used where ``condition`` holds."""
        outer = self.condition
        self.condition = condition if outer is None else apply("And", outer, condition)
        try:
            yield
        finally:
            self.condition = outer

    def te(self, compute: Callable[..., Any], *inputs: Value, name: str, alone: bool = False) -> relax.Expr:
        """Bind the result of a function of TE tensors, in a kernel of that name. With ``alone``, nothing is
        fused with the kernel."""
        operands = [expression(value) for value in inputs]
        attributes = {"op_pattern": OPAQUE} if alone else None
        found = call_te(
            self.builder, compute, *operands, primfunc_name_hint=name, primfunc_attrs=attributes
        )
        return self.builder.emit(found)

    def enter(self, tensor: relax.Expr) -> Value:
        """Return a tensor in the form that converters expect: empty tensors are known, float16 is float32.

        float16 is only a storage format. Arithmetic on it is done in float32 and rounded where the graph
        casts, as onnxruntime does on processors without float16 arithmetic.
        """
        shape = typed_shape(tensor.ty)
        if has_no_elements(shape) and is_closed(shape):
            return known(np.zeros(shape, dtype_of(tensor)))
        return self.te(half.decode, tensor, name="from_half") if dtype_of(tensor) == "float16" else tensor

    def graph(
        self, graph: onnx.GraphProto, scope: dict[str, Value], opsets: Mapping[str, int]
    ) -> list[Value]:
        """Return a graph's outputs. ``scope`` has its inputs and the values of the scope around it."""
        for tensor in graph.initializer:
            scope[tensor.name] = known(numpy_helper.to_array(tensor))
        self.nodes(graph.node, scope, opsets)
        return [scope[output.name] for output in graph.output]

    def nodes(
        self, nodes: Sequence[onnx.NodeProto], scope: dict[str, Value], opsets: Mapping[str, int]
    ) -> None:
        """Apply nodes in their order, which ONNX requires to be topological."""
        for number, node in enumerate(nodes):
            inputs = [scope[name] if name else None for name in node.input]
            with _naming(node), self._at(node):
                results = self.apply(node, inputs, opsets.get(domain_of(node), 1), scope)
            scope.update({name: v for name, v in zip(node.output, results, strict=False) if name})
            self.done(number)

    @contextlib.contextmanager
    def _at(self, node: onnx.NodeProto) -> Iterator[None]:
        outer = self.where
        if node.name or not outer[1]:
            self.where = (_place(node), node.op_type)
        try:
            yield
        finally:
            self.where = outer

    def apply(
        self, node: onnx.NodeProto, inputs: list[Value], opset: int, scope: Mapping[str, Value]
    ) -> list[Value]:
        """The outputs of one node."""
        domain, kind = domain_of(node), node.op_type
        function = self.functions.get((domain, kind))
        if function is None and (found := without_elements(node, inputs, opset)) is not None:
            return found
        if kind in SHAPE_ONLY and not domain and not is_known(inputs[0]):
            shape = shape_of(inputs[0])
            if not is_closed(shape):
                return self.settle(_of_shape(node, shape, dtype_of(inputs[0]), self))
            inputs = [np.zeros(shape, dtype_of(inputs[0]))]
        if function is not None:
            return self.call(function, node, inputs)
        if (rule := self.scaled.rule(node, inputs)) is not None:
            settled = rule(Operator(self, node, opset, scope), *inputs)
            if settled is not None:
                return settled if isinstance(settled, list) else [settled]
        if any(isinstance(value, Sizes) for value in inputs):
            if (found := fold_sizes(node, inputs, opset)) is not None:
                return found
            kept = STATIC_INPUTS.get(kind, ())
            inputs = [
                self.settle(expression(value))[0] if isinstance(value, Sizes) and n not in kept else value
                for n, value in enumerate(inputs)
            ]
        elif (found := fold(node, inputs, opset)) is not None:
            return found
        if (domain, kind) in CONVERTERS:
            operator = Operator(self, node, opset, scope)
            try:
                return self.settle(CONVERTERS[domain, kind](operator, *inputs))
            except ComputedError as error:
                position = next((i for i, value in enumerate(inputs) if value is error.value), None)
                if position is None:
                    raise
                raise _computed(node, position, opset) from None
        if tvm_has(domain, kind):
            return self.settle(self.convert_by_tvm(node, inputs, opset))
        body = function_body(node, inputs, opset)
        if body is None:
            raise UnsupportedOperatorError(f"no implementation of {domain + '.' if domain else ''}{kind}")
        return self.call(body, node, inputs)

    def call(self, function: onnx.FunctionProto, node: onnx.NodeProto, inputs: list[Value]) -> list[Value]:
        """The outputs of a function, called by a node."""
        scope: dict[str, Value] = dict.fromkeys(function.input)
        scope.update(zip(function.input, inputs, strict=False))
        inside = {**self.opsets, **{opset.domain: opset.version for opset in function.opset_import}}
        with self.for_result(node):
            self.nodes(instantiate(function, node), scope, inside)
        return [scope.get(name) for name in function.output]

    def convert_by_tvm(self, node: onnx.NodeProto, inputs: list[Value], opset: int) -> Any:
        """Let TVM's frontend convert a node."""
        for position in STATIC_INPUTS.get(node.op_type, ()):
            if position < len(inputs) and not is_known(inputs[position]):
                raise _computed(node, position, opset)
        converter = frontend_converters()[node.op_type].get_converter(opset)
        attributes: dict[str, Any] = {}
        for a in node.attribute:
            value = helper.get_attribute_value(a)
            attributes[a.name] = tuple(value) if isinstance(value, list) else value
        attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
        operands = onnx_input(None if value is None else expression(value) for value in inputs)
        return converter(self.builder, operands, attributes, [{}, {}])

    def settle(self, found: Any) -> list[Value]:
        """Bind what a converter returned to variables, each of a static shape."""
        if isinstance(found, (tuple, relax.Tuple)):
            items = list(found.fields if isinstance(found, relax.Tuple) else found)
            return [value for item in items for value in self.settle(item)]
        if found is None or isinstance(found, (np.ndarray, list)):
            return [found]
        if isinstance(found, tvm.ir.GenericConst):
            return [known(array_of(found))]
        if not isinstance(found, relax.Var):
            # The expression is not bound yet: the builder binds it at its first use. A residual block's
            # bias is then added next to its sum, and equal blocks get equal kernels.
            found = self.builder.normalize(found)
            if isinstance(found, relax.TupleGetItem):  # TVM's converters accept only calls and variables
                found = self.builder.emit(found)
        if isinstance(found.ty, relax.TupleType):
            fields = range(len(found.ty.fields))
            return [v for i in fields for v in self.settle(relax.TupleGetItem(found, i))]
        return [self.enter(found)]


def _of_shape(node: onnx.NodeProto, shape: Shape, dtype: str, walk: Walk) -> Any:
    """What an operator gives that reads only the shape, where this depends on dimensions."""
    if node.op_type == "Shape":
        bounds = {a.name: a.i for a in node.attribute}
        return size_array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))])
    if node.op_type == "Size":
        return size_array(product(shape))
    own = {a.name: a.i for a in node.attribute}
    if "dtype" in own:
        dtype = str(helper.tensor_dtype_to_np_dtype(own["dtype"]))

    def eye() -> te.Tensor:
        def one(i: Any, j: Any) -> Any:
            return tirx.Select(j - i == own.get("k", 0), tirx.const(1, dtype), tirx.const(0, dtype))

        return te.compute(shape, one, name="eye")

    return walk.te(eye, name="eye")


def _first(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _computed(node: onnx.NodeProto, position: int, opset: int) -> UnsupportedOperatorError:
    what = input_name(node, position, opset)
    return UnsupportedOperatorError(
        f"{node.op_type} takes its {what!r} from data, and shapes must be known while compiling; export the"
        f" model with {what!r} as a constant"
    )


def _items(sequence: list[Value]) -> Iterator[Value]:
    for item in sequence:
        if isinstance(item, list):
            yield from _items(item)
        else:
            yield item


def _mentioned(graph: onnx.GraphProto) -> set[str]:
    """All names that a graph, and the graphs in it, refer to."""
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _mentioned(inner)
    return names


def _place(node: onnx.NodeProto) -> str:
    return f"node {node.name!r}" if node.name else f"the node that makes {', '.join(node.output)!r}"


def _plain(error: Exception) -> str:
    """The last line of an error, without TVM's descriptions of its operators and its types of numbers."""
    last = (str(error).strip() or repr(error)).splitlines()[-1]
    last = re.sub(r"^In ir\.Op\(.*support_level=\d+\), ", "", last)
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", last).rstrip(".")


@contextlib.contextmanager
def _naming(node: onnx.NodeProto) -> Iterator[None]:
    """Add to an error the node at which it happened: the innermost one with a name."""
    where = _place(node)
    try:
        yield
    except WasmgraphError as error:
        if not getattr(error, "node", None):
            error.node = where  # type: ignore[attr-defined]
            error.args = (f"{where} ({node.op_type}): {error}",)
        raise
    except FurtherDimsError:
        raise
    except Exception as error:  # converters, including TVM's, raise errors of any class
        located = ModelError(f"{where} ({node.op_type}): {_plain(error)}")
        located.node = where  # type: ignore[attr-defined]
        raise located from error


__all__ = ["OWN_OPSET", "Operator", "Walk", "converts"]
