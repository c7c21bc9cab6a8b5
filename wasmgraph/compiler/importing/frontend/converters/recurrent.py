"""Recurrent layers, unrolled: the number of steps is static.

Gate orders and equations are those of ONNX's operator documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, shape_of

State = tuple[Value, ...]
Step = Callable[["_Direction", Value, State], State]


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


def _activation(op: Operator, name: str, alpha: float | None, beta: float | None) -> Callable[[Value], Any]:
    given: dict[str, Any] = {k: v for k, v in (("alpha", alpha), ("beta", beta)) if v is not None}
    if name in ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"):
        return lambda x: op(name, x)
    if name in ("LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Elu"):
        return lambda x: op(name, x, **given)
    if name == "ScaledTanh":
        a, b = np.float32(alpha or 1), np.float32(beta or 1)
        return lambda x: op("Mul", op("Tanh", op("Mul", x, np.asarray(b))), np.asarray(a))
    if name == "Affine":
        a, b = np.float32(1 if alpha is None else alpha), np.float32(beta or 0)
        return lambda x: op("Add", op("Mul", x, np.asarray(a)), np.asarray(b))
    raise op.unsupported(f"with the activation {name}")


class _Direction:
    """One direction of a layer: its weights, transposed for products from the left."""

    def __init__(
        self, op: Operator, number: int, gates: int, weights: list[Value], functions: list[str]
    ) -> None:
        self.op, self.gates = op, gates
        w, r, b, peephole = (None if v is None else self._row(v, number) for v in weights)
        self.w, self.r = op("Transpose", w, perm=[1, 0]), op("Transpose", r, perm=[1, 0])
        self.hidden = shape_of(self.r)[0]
        self.dtype = dtype_of(self.w)
        half = gates * self.hidden
        zero = np.zeros(half, self.dtype)
        self.wb = zero if b is None else self.cut(b, 0, half, 0)
        self.rb = zero if b is None else self.cut(b, half, 2 * half, 0)
        self.peepholes = None if peephole is None else self.parts(peephole, 3)
        self.activations = [
            _activation(op, name, alpha, beta)
            for name, alpha, beta in _parameters(op, number * len(functions), functions)
        ]

    def _row(self, value: Value, number: int) -> Any:
        return self.op("Gather", value, np.array(number, np.int64), axis=0)

    def cut(self, value: Value, begin: int, end: int, axis: int) -> Any:
        return self.op("Slice", value, *(np.array([n], np.int64) for n in (begin, end, axis)))

    def parts(self, value: Value, count: int | None = None) -> list[Any]:
        """Split a tensor into its gates, which are equal parts of its last axis."""
        axis = len(shape_of(value)) - 1
        return [
            self.cut(value, n * self.hidden, (n + 1) * self.hidden, axis)
            for n in range(count or self.gates)
        ]

    def limited(self, value: Value) -> Any:
        clip = self.op.attr("clip")
        if clip is None:
            return value
        return self.op("Clip", value, np.array(-clip, self.dtype), np.array(clip, self.dtype))


def _lstm(d: _Direction, projected: Value, state: State) -> State:
    op, (hidden, cell) = d.op, state
    f, g, h = d.activations
    added = op("Add", projected, op("Add", op("MatMul", hidden, d.r), d.rb))
    i_gate, o_gate, f_gate, candidate = d.parts(added)
    if d.peepholes is not None:
        p_i, p_o, p_f = d.peepholes
        i_gate = op("Add", i_gate, op("Mul", p_i, cell))
        f_gate = op("Add", f_gate, op("Mul", p_f, cell))
    opened = f(d.limited(i_gate))
    kept = op("Sub", np.array(1, d.dtype), opened) if op.attr("input_forget", 0) else f(d.limited(f_gate))
    fresh = op("Add", op("Mul", kept, cell), op("Mul", opened, g(d.limited(candidate))))
    if d.peepholes is not None:
        o_gate = op("Add", o_gate, op("Mul", p_o, fresh))
    return op("Mul", f(d.limited(o_gate)), h(fresh)), fresh


def _gru(d: _Direction, projected: Value, state: State) -> State:
    op, (hidden,) = d.op, state
    f, g = d.activations
    recurrent = op("MatMul", hidden, d.r)
    r_z, r_r, r_h = d.parts(op("Add", recurrent, d.rb))
    p_z, p_r, p_h = d.parts(projected)
    update, reset = f(d.limited(op("Add", p_z, r_z))), f(d.limited(op("Add", p_r, r_r)))
    if op.attr("linear_before_reset", 0):
        inner = op("Mul", reset, r_h)
    else:
        weights = d.parts(d.r)[2]
        inner = op("Add", op("MatMul", op("Mul", reset, hidden), weights), d.parts(d.rb)[2])
    candidate = g(d.limited(op("Add", p_h, inner)))
    new = op("Mul", op("Sub", np.array(1, d.dtype), update), candidate)
    return (op("Add", new, op("Mul", update, hidden)),)


def _rnn(d: _Direction, projected: Value, state: State) -> State:
    op, (hidden,) = d.op, state
    added = op("Add", projected, op("Add", op("MatMul", hidden, d.r), d.rb))
    return (d.activations[0](d.limited(added)),)


def _layer(
    op: Operator,
    step: Step,
    gates: int,
    functions: list[str],
    inputs: tuple[Value, ...],
    initial: list[Value],
    peepholes: Value,
) -> Any:
    """Convert a layer. Return every step's hidden state, and the last states."""
    data, w, r, b, lengths = inputs
    batchwise = bool(op.attr("layout", 0))
    if batchwise:
        data = op("Transpose", data, perm=[1, 0, 2])
        initial = [None if s is None else op("Transpose", s, perm=[1, 0, 2]) for s in initial]
    steps, batch, _ = shape_of(data)
    directions, hidden = shape_of(r)[0], shape_of(r)[2]
    dtype, kind = dtype_of(data), op.attr("direction", "forward")
    named = op.attr("activations") or functions * directions
    rows: list[list[Value]] = []
    last: list[list[Value]] = []
    for number in range(directions):
        chosen = named[number * len(functions) : (number + 1) * len(functions)]
        d = _Direction(op, number, gates, [w, r, b, peepholes], chosen)
        # One product for all steps; only the recurrent product has to be computed step by step.
        projected = op("Add", op("MatMul", data, d.w), d.wb)
        state: State = tuple(
            np.zeros((batch, hidden), dtype) if s is None else op("Gather", s, np.array(number), axis=0)
            for s in initial
        )
        backwards = kind == "reverse" or number == 1
        outputs: list[Value] = [None] * steps
        for t in reversed(range(steps)) if backwards else range(steps):
            new = step(d, op("Gather", projected, np.array(t), axis=0), state)
            outputs[t], state = _within(op, lengths, t, new, state, dtype)
        rows.append(outputs)
        last.append(list(state))
    axis = np.array([0], np.int64)
    sequence = op(
        "Concat",
        *(
            op("Unsqueeze", _stack(op, [rows[n][t] for n in range(directions)], 0), axis)
            for t in range(steps)
        ),
        axis=0,
    )
    final = [_stack(op, [last[n][i] for n in range(directions)], 0) for i in range(len(initial))]
    if batchwise:
        sequence = op("Transpose", sequence, perm=[2, 0, 1, 3])
        final = [op("Transpose", s, perm=[1, 0, 2]) for s in final]
    return (sequence, *final)


def _stack(op: Operator, values: list[Value], axis: int) -> Any:
    at = np.array([axis], np.int64)
    return op("Concat", *(op("Unsqueeze", v, at) for v in values), axis=axis)


def _within(
    op: Operator, lengths: Value, t: int, new: State, old: State, dtype: str
) -> tuple[Value, State]:
    """Handle steps after a sequence's end: the output is 0 and the state does not change."""
    if lengths is None:
        return new[0], new
    inside = op("Less", np.array(t, dtype_of(lengths)), op("Unsqueeze", lengths, np.array([1], np.int64)))
    output = op("Where", inside, new[0], np.array(0, dtype))
    return output, tuple(op("Where", inside, n, o) for n, o in zip(new, old, strict=True))


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
    return _layer(op, _lstm, 4, functions, (data, w, r, b, lengths), [hidden, cell], peepholes)


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
    return _layer(op, _gru, 3, ["Sigmoid", "Tanh"], (data, w, r, b, lengths), [hidden], None)


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
    return _layer(op, _rnn, 1, ["Tanh"], (data, w, r, b, lengths), [hidden], None)
