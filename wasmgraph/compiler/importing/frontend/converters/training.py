"""Optimisers of ``ai.onnx.preview.training``: one step of each, for every tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, size_array

_DOMAIN = "ai.onnx.preview.training"


def _groups(values: tuple[Value, ...], kinds: int) -> list[tuple[Value, ...]]:
    """Regroup inputs by tensor. The node lists them by kind: all tensors, then all gradients, …"""
    count = len(values) // kinds
    return [tuple(values[kind * count + n] for kind in range(kinds)) for n in range(count)]


def _in_order(results: list[tuple[Value, ...]]) -> tuple[Value, ...]:
    return tuple(value for kind in zip(*results, strict=True) for value in kind)


def _regularized(op: Operator, x: Value, gradient: Value) -> Any:
    factor = np.array(op.attr("norm_coefficient", 0.0), dtype_of(x))
    return op("Add", op("Mul", factor, x), gradient)


@converts("Adagrad", domain=_DOMAIN)
def adagrad(op: Operator, rate: Value, step: Value, *values: Value) -> Any:
    """Duchi, Hazan & Singer, "Adaptive Subgradient Methods", 2011."""
    results: list[tuple[Value, ...]] = []
    for x, gradient, squares in _groups(values, 3):
        dtype = dtype_of(x)
        decay = np.array(op.attr("decay_factor", 0.0), dtype)
        slower = op("Add", np.array(1, dtype), op("Mul", op("CastLike", step, x), decay))
        g = _regularized(op, x, gradient)
        total = op("Add", squares, op("Mul", g, g))
        adapted = op("Add", op("Sqrt", total), np.array(op.attr("epsilon", 0.0), dtype))
        moved = op("Div", op("Mul", op("Div", rate, slower), g), adapted)
        results.append((op("Sub", x, moved), total))
    return _in_order(results)


@converts("Momentum", domain=_DOMAIN)
def momentum(op: Operator, rate: Value, step: Value, *values: Value) -> Any:
    """Stochastic gradient descent with momentum, plain or Nesterov's."""
    results: list[tuple[Value, ...]] = []
    for x, gradient, velocity in _groups(values, 3):
        dtype = dtype_of(x)
        alpha, beta = np.array(op.attr("alpha"), dtype), np.array(op.attr("beta"), dtype)
        first = op("Greater", step, size_array(0))
        factor = op("Where", first, beta, np.array(1, dtype))
        g = _regularized(op, x, gradient)
        new = op("Add", op("Mul", alpha, velocity), op("Mul", factor, g))
        by = new if op.attr("mode") == "standard" else op("Add", g, op("Mul", alpha, new))
        results.append((op("Sub", x, op("Mul", rate, by)), new))
    return _in_order(results)


@converts("Adam", domain=_DOMAIN)
def adam(op: Operator, rate: Value, step: Value, *values: Value) -> Any:
    """Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2014."""
    results: list[tuple[Value, ...]] = []
    for x, gradient, mean, square in _groups(values, 4):
        dtype = dtype_of(x)

        def number(value: float, dtype: str = dtype) -> Any:
            return np.array(value, dtype)

        alpha, beta = number(op.attr("alpha", 0.9)), number(op.attr("beta", 0.999))
        g = _regularized(op, x, gradient)
        new_mean = op("Add", op("Mul", alpha, mean), op("Mul", number(1) - alpha, g))
        new_square = op("Add", op("Mul", beta, square), op("Mul", number(1) - beta, op("Mul", g, g)))
        root = op("Add", op("Sqrt", new_square), number(op.attr("epsilon", 0.0)))
        times = op("CastLike", step, x)
        left = op("Sub", number(1), op("Pow", beta, times))
        right = op("Sub", number(1), op("Pow", alpha, times))
        corrected = op("Div", op("Mul", rate, op("Sqrt", left)), right)
        started = op("Greater", step, size_array(0))
        adjusted = op("Where", started, corrected, rate)
        new = op("Sub", x, op("Div", op("Mul", adjusted, new_mean), root))
        shrink = number(1 - op.attr("norm_coefficient_post", 0.0))
        results.append((op("Mul", shrink, new), new_mean, new_square))
    return _in_order(results)
