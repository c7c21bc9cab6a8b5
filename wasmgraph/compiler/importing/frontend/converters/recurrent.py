"""Recurrent layers: the inputs' products for all steps at once, then one kernel with a loop over the steps
(``compiler/operators/recurrent.py``). Gate orders and equations are those of ONNX's operator documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, expression, shape_of
from wasmgraph.compiler.operators.recurrent import GATES, Function, Layer, recurrent_kernel

# The functions of one direction, and the alpha and beta of each that takes one, if the node names none.
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ALPHAS = {"Affine": 1.0, "LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "ScaledTanh": 1.0}
_ALPHAS |= {"HardSigmoid": 0.2, "Elu": 1.0}
_BETAS = {"Affine": 0.0, "ScaledTanh": 1.0, "HardSigmoid": 0.5}
_PLAIN = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")


def _functions(op: Operator, directions: int) -> tuple[tuple[Function, ...], ...]:
    """The activation functions of each direction. The node lists alphas and betas only for functions that
    take one, in the order of the functions of both directions."""
    default = _DEFAULTS[op.node.op_type]
    known = {name.lower(): name for name in (*_PLAIN, *_ALPHAS)}
    named = [known.get(name.lower()) or name for name in op.attr("activations") or default * directions]
    alphas, betas = iter(op.attr("activation_alpha", [])), iter(op.attr("activation_beta", []))
    found = []
    for name in named[: directions * len(default)]:
        if name not in known.values():
            raise op.unsupported(f"with the activation {name}")
        alpha = next(alphas, _ALPHAS[name]) if name in _ALPHAS else 0.0
        beta = next(betas, _BETAS[name]) if name in _BETAS else 0.0
        found.append(Function(name, float(alpha), float(beta)))
    return tuple(tuple(found[n * len(default) : (n + 1) * len(default)]) for n in range(directions))


def _orders(layer: Layer) -> list[np.ndarray]:
    """For each product, the row of the weights of each column; the number of rows where it is padding."""
    found, first = [], 0
    for product in layer.products:
        tile, gate, unit = np.meshgrid(
            *(np.arange(n) for n in (product.tiles, product.gates, product.units)), indexing="ij"
        )
        hidden = tile * product.units + unit
        row = (first + gate) * layer.hidden + hidden
        none = GATES[layer.kind] * layer.hidden
        found.append(np.where(hidden < layer.hidden, row, none).reshape(-1).astype(np.int64))
        first += product.gates
    return found


class _Weights:
    """Weights and biases in the order in which the kernel reads them."""

    def __init__(self, op: Operator, layer: Layer) -> None:
        self.op, self.layer, self.orders = op, layer, _orders(layer)

    def rows(self, value: Value, order: np.ndarray) -> Any:
        """``[direction][row]…`` in another order; padding is 0."""
        zero = np.zeros((self.layer.directions, 1, *shape_of(value)[2:]), self.layer.dtype)
        return self.op("Gather", self.op("Concat", value, zero, axis=1), order, axis=1)

    def shaped(self, value: Value, *shape: int) -> Any:
        return self.op("Reshape", value, np.array(shape, np.int64))

    def projected(self, data: Value, w: Value, bias: Value) -> Any:
        """The inputs' products of all steps, with biases."""
        layer, op, order = self.layer, self.op, np.concatenate(self.orders)
        columns = layer.directions * layer.columns
        matrix = self.shaped(self.rows(w, order), columns, shape_of(w)[2])
        found = op("MatMul", data, op("Transpose", matrix, perm=[1, 0]))
        if bias is not None:
            found = op("Add", found, self.shaped(self.rows(bias, order), columns))
        return self.shaped(found, layer.steps, layer.batch, layer.directions, layer.columns)

    def packed(self, r: Value) -> list[Any]:
        """The recurrent weights of each product, ``[direction][tile][part][state][sum]``."""
        found = []
        for product, order in zip(self.layer.products, self.orders, strict=True):
            shape = self.layer.directions, product.tiles, product.parts, product.part, self.layer.hidden
            found.append(
                self.op("Transpose", self.shaped(self.rows(r, order), *shape), perm=[0, 1, 2, 4, 3])
            )
        return found

    def padded(self, value: Value) -> Any:
        """``[…][hidden]`` with zeros behind."""
        rest = self.layer.padded - self.layer.hidden
        if not rest:
            return value
        zero = np.zeros((*shape_of(value)[:-1], rest), self.layer.dtype)
        return self.op("Concat", value, zero, axis=-1)


def _layer(
    op: Operator,
    inputs: Sequence[Value],
    states: Sequence[Value],
    peepholes: Value = None,
) -> Any:
    """Convert a layer. Return every step's hidden state, and the last states."""
    data, w, r, b, lengths = inputs
    kind, batchwise = op.node.op_type, bool(op.attr("layout", 0))
    if batchwise:
        data = op("Transpose", data, perm=[1, 0, 2])
        states = [None if s is None else op("Transpose", s, perm=[1, 0, 2]) for s in states]
    steps, batch, _ = shape_of(data)
    directions, hidden, dtype = shape_of(r)[0], shape_of(r)[2], dtype_of(data)
    clip = op.attr("clip")
    layer = Layer(
        kind,
        steps,
        batch,
        hidden,
        directions,
        backwards=op.attr("direction", "forward") == "reverse",
        dtype=dtype,
        functions=_functions(op, directions),
        clip=None if clip is None else float(clip),
        lengths=lengths is not None,
        peepholes=peepholes is not None,
        coupled=bool(op.attr("input_forget", 0)),
        reset_after=bool(op.attr("linear_before_reset", 0)) and kind == "GRU",
    )
    weights = _Weights(op, layer)
    bias, inner = _biases(op, layer, b)
    operands = [weights.projected(data, w, bias), *weights.packed(r)]
    if layer.reset_after:
        operands.append(weights.padded(inner))
    if peepholes is not None:
        operands.append(weights.padded(weights.shaped(peepholes, directions, 3, hidden)))
    if lengths is not None:
        operands.append(op("Cast", lengths, to=6))
    zero = np.zeros((directions, batch, hidden), dtype)
    operands += [zero if state is None else state for state in states]
    sequence, *last = _call(op, layer, operands)
    if batchwise:
        sequence = op("Transpose", sequence, perm=[2, 0, 1, 3])
        last = [op("Transpose", s, perm=[1, 0, 2]) for s in last]
    return (sequence, *last)


def _biases(op: Operator, layer: Layer, b: Value) -> tuple[Value, Value]:
    """The bias of the inputs' products, and that of the last gate's product with the state."""
    rows = GATES[layer.kind] * layer.hidden
    none = np.zeros((layer.directions, layer.hidden), layer.dtype)
    if b is None:
        return None, none

    def cut(begin: int, end: int) -> Any:
        return op("Slice", b, *(np.array([n], np.int64) for n in (begin, end, 1)))

    if not layer.reset_after:
        return op("Add", cut(0, rows), cut(rows, 2 * rows)), none
    kept = rows - layer.hidden
    added = op("Add", cut(0, kept), cut(rows, rows + kept))
    return op("Concat", added, cut(kept, rows), axis=1), cut(rows + kept, 2 * rows)


def _call(op: Operator, layer: Layer, operands: Sequence[Value]) -> list[Any]:
    """Bind a call of the layer's kernel."""
    state = (layer.directions, layer.batch, layer.hidden)
    shapes = [(layer.steps, *state), *[state] * (2 if layer.kind == "LSTM" else 1)]
    types = [relax.TensorType(shape, layer.dtype) for shape in shapes]
    name = op.walk.builder.add_func(recurrent_kernel(layer), layer.kind.lower())
    called = op.emit(relax.call_tir(name, [expression(value) for value in operands], types))
    return [op.emit(relax.TupleGetItem(called, n)) for n in range(len(types))]


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
    return _layer(op, (data, w, r, b, lengths), [hidden, cell], peepholes)


@converts("GRU", "RNN")
def gated_or_plain(
    op: Operator,
    data: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    hidden: Value = None,
) -> Any:
    """Gated recurrent unit, with gates in the order update, reset, hidden; plain recurrent layer."""
    return _layer(op, (data, w, r, b, lengths), [hidden])
