"""Recurrent layers: one product of the input for all steps, then a kernel with a loop over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tvm import relax

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, expression, shape_of
from wasmgraph.compiler.operators.recurrent import GATES, Function, Layer, Product, recurrent_kernel

# The functions that take an alpha, or a beta.
_ALPHAS = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
_BETAS = ("affine", "scaledtanh", "hardsigmoid")


def _parameters(
    op: Operator, before: int, functions: Sequence[str]
) -> Iterator[tuple[str, float | None, float | None]]:
    """Activation functions with their alphas and betas. The node lists alphas and betas only for functions
    that take one, in the order of the functions of both directions. ``before`` is the number of functions
    of the preceding directions.
    """
    names = [name.lower() for name in op.attr("activations", [])]
    alphas, betas = list(op.attr("activation_alpha", [])), list(op.attr("activation_beta", []))
    taken = names[:before]
    alpha = sum(name in _ALPHAS for name in taken)
    beta = sum(name in _BETAS for name in taken)
    for name in functions:
        a = b = None
        if name.lower() in _ALPHAS:
            a = alphas[alpha] if alpha < len(alphas) else None
            alpha += 1
        if name.lower() in _BETAS:
            b = betas[beta] if beta < len(betas) else None
            beta += 1
        yield name, a, b


# The parameters of functions that have some, if the node gives none.
_DEFAULTS = {
    "LeakyRelu": (0.01, 0.0),
    "ThresholdedRelu": (1.0, 0.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
    "ScaledTanh": (1.0, 1.0),
    "Affine": (1.0, 0.0),
}
_PLAIN = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")


def _function(op: Operator, name: str, alpha: float | None, beta: float | None) -> Function:
    if name in _PLAIN:
        return Function(name)
    if name not in _DEFAULTS:
        raise op.unsupported(f"with the activation {name}")
    a, b = _DEFAULTS[name]
    return Function(name, a if alpha is None else alpha, b if beta is None else beta)


class _Weights:
    """The weights of a layer, in the order in which its kernel reads them."""

    def __init__(self, op: Operator, layer: Layer) -> None:
        self.op, self.layer = op, layer

    def shaped(self, value: Value, *shape: int) -> Any:
        return self.op("Reshape", value, np.array(shape, np.int64))

    def gates(self, value: Value, first: int, count: int, padded: int) -> Any:
        """Some gates of ``[direction][gate · hidden][row]``, as ``[direction][gate][padded][row]``."""
        op, layer = self.op, self.layer
        begin, end = first * layer.hidden, (first + count) * layer.hidden
        part = op("Slice", value, *(np.array([n], np.int64) for n in (begin, end, 1)))
        part = self.shaped(part, layer.directions, count, layer.hidden, -1)
        pads = [0] * 6 + [padded - layer.hidden, 0]
        return op("Pad", part, np.array(pads, np.int64)) if any(pads) else part

    def tiles(self, value: Value, product: Product, first: int, order: Sequence[int]) -> Any:
        """The gates of a product in tiles; axes are direction, gate, tile, unit, row, in ``order``."""
        p = product
        part = self.gates(value, first, p.gates, p.tiles * p.units)
        part = self.shaped(part, self.layer.directions, p.gates, p.tiles, p.units, -1)
        return self.op("Transpose", part, perm=list(order))

    def products(self) -> Iterator[tuple[int, Product]]:
        """Each product with the number of its first gate."""
        first = 0
        for product in self.layer.products:
            yield first, product
            first += product.gates

    def recurrent(self, r: Value) -> list[Any]:
        """For each product ``[direction][tile][hidden][gate · unit]``."""
        d, hidden = self.layer.directions, self.layer.hidden
        return [
            self.shaped(self.tiles(r, p, first, (0, 2, 4, 1, 3)), d, p.tiles, hidden, p.sums)
            for first, p in self.products()
        ]

    def columns(self, w: Value) -> Any:
        """``[row][direction · column]``, for a product from the left."""
        d = self.layer.directions
        parts = [
            self.shaped(self.tiles(w, p, first, (4, 0, 2, 1, 3)), -1, d, p.columns)
            for first, p in self.products()
        ]
        return self.shaped(self.op("Concat", *parts, axis=2), -1, d * self.layer.columns)

    def biases(self, b: Value) -> tuple[Any, Any]:
        """What is added to the inputs' products, and what to the last gate's product with the state: None
        if this is the same."""
        op, layer = self.op, self.layer
        d, gates = layer.directions, GATES[layer.kind]
        whole = self.shaped(b, d, 2, gates, layer.hidden)
        of_input, of_state = (op("Gather", whole, np.array(n), axis=1) for n in (0, 1))
        inner = None
        if layer.reset_after:
            inner = self.gates(self.shaped(of_state, d, -1, 1), gates - 1, 1, layer.padded)
            inner = self.shaped(inner, d, layer.padded)
            others = np.arange(gates) < gates - 1
            of_state = op("Mul", of_state, others.astype(layer.dtype).reshape(1, gates, 1))
        return self.columns(self.shaped(op("Add", of_input, of_state), d, -1, 1)), inner


def _layer(
    op: Operator,
    functions: list[str],
    inputs: tuple[Value, ...],
    initial: list[Value],
    peepholes: Value = None,
) -> Any:
    """Convert a layer. Return every step's hidden state, and the last states."""
    data, w, r, b, lengths = inputs
    kind, batchwise = op.node.op_type, bool(op.attr("layout", 0))
    if batchwise:
        data = op("Transpose", data, perm=[1, 0, 2])
        initial = [None if s is None else op("Transpose", s, perm=[1, 0, 2]) for s in initial]
    steps, batch, _ = shape_of(data)
    directions, _, hidden = shape_of(r)
    named, count = op.attr("activations") or functions * directions, len(functions)
    layer = Layer(
        kind,
        steps,
        batch,
        hidden,
        directions,
        op.attr("direction", "forward") == "reverse",
        dtype_of(data),
        tuple(
            tuple(_function(op, *f) for f in _parameters(op, n * count, named[n * count :][:count]))
            for n in range(directions)
        ),
        clip=op.attr("clip"),
        lengths=lengths is not None,
        peepholes=peepholes is not None,
        coupled=kind == "LSTM" and bool(op.attr("input_forget", 0)),
        reset_after=kind == "GRU" and bool(op.attr("linear_before_reset", 0)),
    )
    weights = _Weights(op, layer)
    projected, inner = op("MatMul", data, weights.columns(w)), None
    if b is not None:
        bias, inner = weights.biases(b)
        projected = op("Add", projected, weights.shaped(bias, -1))
    arguments = [weights.shaped(projected, steps, batch, directions, -1), *weights.recurrent(r)]
    if layer.reset_after:
        arguments.append(np.zeros((directions, layer.padded), layer.dtype) if inner is None else inner)
    if peepholes is not None:
        held = weights.gates(weights.shaped(peepholes, directions, -1, 1), 0, 3, layer.padded)
        arguments.append(weights.shaped(held, directions, 3, layer.padded))
    if lengths is not None:
        arguments.append(lengths)
    zero = np.zeros((directions, batch, hidden), layer.dtype)
    arguments += [zero if s is None else s for s in initial]
    sequence, *last = _call(op, layer, arguments, len(initial))
    if batchwise:
        sequence = op("Transpose", sequence, perm=[2, 0, 1, 3])
        last = [op("Transpose", s, perm=[1, 0, 2]) for s in last]
    return (sequence, *last)


def _call(op: Operator, layer: Layer, arguments: list[Any], states: int) -> list[relax.Expr]:
    """Call the layer's kernel."""
    shape = (layer.directions, layer.batch, layer.hidden)
    kernel = op.walk.builder.add_func(recurrent_kernel(layer), layer.kind.lower())
    types = [relax.TensorType(s, layer.dtype) for s in ((layer.steps, *shape), *[shape] * states)]
    found = op.emit(relax.call_tir(kernel, [expression(a) for a in arguments], types))
    return [op.emit(relax.TupleGetItem(found, n)) for n in range(1 + states)]


@converts("LSTM")
def lstm(
    op: Operator,
    data: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    hidden: Value = None,
    cell: Value = None,
    peepholes: Value = None,
) -> Any:
    """Long short-term memory; gates in the order input, output, forget, cell."""
    functions = ["Sigmoid", "Tanh", "Tanh"]
    return _layer(op, functions, (data, w, r, b, lengths), [hidden, cell], peepholes)


@converts("GRU")
def gru(
    op: Operator,
    data: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    hidden: Value = None,
) -> Any:
    """Gated recurrent unit; gates in the order update, reset, hidden."""
    return _layer(op, ["Sigmoid", "Tanh"], (data, w, r, b, lengths), [hidden])


@converts("RNN")
def rnn(
    op: Operator,
    data: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    hidden: Value = None,
) -> Any:
    """A plain recurrent layer."""
    return _layer(op, ["Tanh"], (data, w, r, b, lengths), [hidden])
