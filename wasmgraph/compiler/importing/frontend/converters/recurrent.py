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


def _shaped(op: Operator, value: Value, *shape: int) -> Any:
    return op("Reshape", value, np.array(shape, np.int64))


def _packed(op: Operator, r: Value, product: Product) -> Any:
    """Some rows of weights ``[direction][gate · hidden][hidden]`` in blocks
    ``[direction][block][hidden][row]``."""
    p, (directions, _, hidden) = product, shape_of(r)
    ends = p.first, p.first + p.columns
    rows = op("Slice", r, *(np.array([n], np.int64) for n in (*ends, 1)))
    missing = p.blocks * p.block - p.columns
    if missing:
        rows = op("Pad", rows, np.array([0, 0, 0, 0, missing, 0], np.int64))
    return op("Transpose", _shaped(op, rows, directions, p.blocks, p.block, hidden), perm=[0, 1, 3, 2])


def _biases(op: Operator, layer: Layer, b: Value) -> tuple[Any, Any]:
    """What is added to the inputs' products, and what to the last gate's product with the state: None if
    that is the same."""
    d, gates = layer.directions, GATES[layer.kind]
    whole = _shaped(op, b, d, 2, gates, layer.hidden)
    of_input, of_state = (op("Gather", whole, np.array(n), axis=1) for n in (0, 1))
    inner = None
    if layer.reset_after:
        inner = op("Gather", of_state, np.array(gates - 1), axis=1)
        others = np.arange(gates) < gates - 1
        of_state = op("Mul", of_state, others.astype(layer.dtype).reshape(1, gates, 1))
    return _shaped(op, op("Add", of_input, of_state), -1), inner


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
    columns = op("Transpose", _shaped(op, w, directions * layer.columns, -1), perm=[1, 0])
    projected, inner = op("MatMul", data, columns), None
    if b is not None:
        bias, inner = _biases(op, layer, b)
        projected = op("Add", projected, bias)
    arguments = [_shaped(op, projected, steps, batch, directions, -1)]
    arguments += [_packed(op, r, product) for product in layer.products]
    if layer.reset_after:
        arguments.append(np.zeros((directions, hidden), layer.dtype) if inner is None else inner)
    if peepholes is not None:
        arguments.append(peepholes)
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
