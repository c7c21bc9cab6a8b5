"""Recurrent layers: the inputs' products for all steps at once, then one kernel with a loop over the steps
(``compiler/operators/recurrent.py``). Gate orders and equations are those of ONNX's operator documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.contributed import contributed
from wasmgraph.compiler.importing.frontend.converters.quantized import centred
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, expression, shape_of, size_array
from wasmgraph.compiler.operators.packing import narrowed
from wasmgraph.compiler.operators.recurrent import GATES, Function, Layer, Product, recurrent_kernel
from wasmgraph.dims import Expression, Size

# The functions of one direction, and the alpha and beta of each that takes one, if the node names none.
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ALPHAS = {"Affine": 1.0, "LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "ScaledTanh": 1.0}
_ALPHAS |= {"HardSigmoid": 0.2, "Elu": 1.0}
_BETAS = {"Affine": 0.0, "ScaledTanh": 1.0, "HardSigmoid": 0.5}
_PLAIN = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")


def _kind(op: Operator) -> str:
    return op.node.op_type.removeprefix("DynamicQuantize")


def _functions(op: Operator, directions: int) -> tuple[tuple[Function, ...], ...]:
    """The activation functions of each direction. The node lists alphas and betas only for functions that
    take one, in the order of the functions of both directions."""
    default = _DEFAULTS[_kind(op)]
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


def _shaped(op: Operator, value: Value, *shape: Size) -> Any:
    return op("Reshape", value, size_array(shape))


def _cut(op: Operator, value: Value, begin: int, end: int) -> Any:
    """Some rows of ``[direction][row]…``."""
    return op("Slice", value, *(size_array([n]) for n in (begin, end, 1)))


def _projected(
    op: Operator,
    layer: Layer,
    data: Value,
    w: Value,
    bias: Value,
    rows: tuple[Size, Size],
    scales: Value = None,
) -> Any:
    """The inputs' products of all steps of a batch, with biases."""
    columns = layer.directions * layer.columns
    weight = op("Transpose", _shaped(op, w, columns, -1), perm=[1, 0])
    if scales is None:
        found = op("MatMul", data, weight)
    else:
        whole, scale, zero = op("DynamicQuantizeLinear", data, outputs=3)
        found = cast_to(op, op("MatMul", centred(op, whole, zero, -1), weight), "float32")
        found = op("Mul", found, op("Mul", scale, _shaped(op, scales, columns)))
    if bias is not None:
        found = op("Add", found, _shaped(op, bias, columns))
    return _shaped(op, found, *rows, layer.directions, layer.columns)


def _packed(op: Operator, layer: Layer, r: Value, product: Product) -> Any:
    """The weights of a product, ``[direction][block][state][column]``, or of integers
    ``[direction][block][pair][2 · column]``."""
    rows = _cut(op, r, product.first, product.first + product.columns)
    missing = product.blocks * product.block - product.columns
    if missing:
        zero = np.zeros((layer.directions, missing, layer.hidden), dtype_of(r))
        rows = op("Concat", rows, zero, axis=1)
    if layer.quantized:
        if layer.hidden % 2:
            column = np.zeros((layer.directions, product.blocks * product.block, 1), dtype_of(r))
            rows = op("Concat", rows, column, axis=2)
        blocks = _shaped(op, rows, layer.directions, product.blocks, product.block, layer.pairs, 2)
        turned = op("Transpose", blocks, perm=[0, 1, 3, 2, 4])
        return _shaped(op, turned, layer.directions, product.blocks, layer.pairs, 2 * product.block)
    blocks = _shaped(op, rows, layer.directions, product.blocks, product.block, layer.hidden)
    return op("Transpose", blocks, perm=[0, 1, 3, 2])


def _layer(
    op: Operator,
    inputs: Sequence[Value],
    states: Sequence[Value],
    peepholes: Value = None,
    scales: tuple[Value, Value] | None = None,
) -> Any:
    """Convert a layer. Return every step's hidden state, and the last states. With ``scales``, one for each
    direction and column, the weights for inputs and for states are integers."""
    data, w, r, b, lengths = inputs
    kind = _kind(op)
    batchwise = bool(op.attr("layout", 0))
    if batchwise:
        data = op("Transpose", data, perm=[1, 0, 2])
        states = [None if s is None else op("Transpose", s, perm=[1, 0, 2]) for s in states]
    steps, batch, _ = shape_of(data)
    directions, hidden, dtype = int(shape_of(r)[0]), int(shape_of(r)[2]), dtype_of(data)
    clip = op.attr("clip")
    layer = Layer(
        kind,
        steps if isinstance(steps, int) else Expression.of("steps"),
        batch if isinstance(batch, int) else Expression.of("batch"),
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
        weights=dtype if scales is None else dtype_of(r),
    )
    bias, inner = _biases(op, layer, b)
    operands = [_projected(op, layer, data, w, bias, (steps, batch), scales and scales[0])]
    operands += [_packed(op, layer, r, product) for product in layer.products]
    if scales is not None:
        operands.append(scales[1])
    if layer.reset_after:
        operands.append(inner)
    if peepholes is not None:
        operands.append(peepholes)
    if lengths is not None:
        operands.append(op("Cast", lengths, to=6))
    zero: Value = np.zeros((directions, 1, hidden), dtype)
    zero = op("Expand", zero, size_array((directions, batch, hidden)))
    operands += [zero if state is None else state for state in states]
    sequence, *last = _call(op, layer, operands, steps, batch)
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

    if not layer.reset_after:
        return op("Add", _cut(op, b, 0, rows), _cut(op, b, rows, 2 * rows)), none
    kept = rows - layer.hidden
    added = op("Add", _cut(op, b, 0, kept), _cut(op, b, rows, rows + kept))
    return op("Concat", added, _cut(op, b, kept, rows), axis=1), _cut(op, b, rows + kept, 2 * rows)


def _call(op: Operator, layer: Layer, operands: Sequence[Value], steps: Size, batch: Size) -> list[Any]:
    """Bind a call of the layer's kernel."""
    state = (layer.directions, batch, layer.hidden)
    shapes = [(steps, *state), *[state] * (2 if layer.kind == "LSTM" else 1)]
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


@contributed(
    "DynamicQuantizeLSTM",
    *("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size"),
    "input_forget",
)
def dynamic_quantize_lstm(
    op: Operator,
    data: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    hidden: Value = None,
    cell: Value = None,
    peepholes: Value = None,
    w_scale: Value = None,
    w_zero: Value = None,
    r_scale: Value = None,
    r_zero: Value = None,
) -> Any:
    """An LSTM whose weights ``[direction][input][gate]`` are of eight bits. Inputs and states are quantised
    when the graph runs."""
    known = (w, r, w_scale, r_scale, w_zero, r_zero)
    if not all(isinstance(value, np.ndarray) for value in known):
        raise op.unsupported("with weights, scales or zero points that are computed is not implemented")
    weights, scales = [], []
    for values, scale, zero in ((w, w_scale, w_zero), (r, r_scale, r_zero)):
        assert isinstance(values, np.ndarray) and isinstance(scale, np.ndarray)
        assert isinstance(zero, np.ndarray)
        directions, _, columns = values.shape
        whole = values.astype(np.int16) - zero.astype(np.int16).reshape(directions, 1, -1)
        weights.append(np.ascontiguousarray(whole.transpose(0, 2, 1)))
        wide = np.broadcast_to(scale.reshape(directions, -1), (directions, columns))
        scales.append(np.ascontiguousarray(wide, np.float32))
    states = narrowed(weights[1])
    inputs = (data, weights[0], states, b, lengths)
    return _layer(op, inputs, [hidden, cell], peepholes, (scales[0], scales[1]))


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
