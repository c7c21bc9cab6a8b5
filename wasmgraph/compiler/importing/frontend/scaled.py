"""Tensors of float32 that are integers times a scale, as DequantizeLinear makes them.

What a graph computes with such tensors is computed with their integers, where that gives the same: products
and convolutions, sums of which are exact, and everything that moves elements or picks the greatest. The
float32 tensors are made all the same; where nothing uses them they vanish.

Integers of eight bits are held as int16, less their zero point. Products of them take both at once: two
products of 16 bits and their sum are one instruction of every vector unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from tvm import relax

from wasmgraph.compiler.importing.frontend.schemas import domain_of
from wasmgraph.compiler.importing.frontend.values import Value, is_known
from wasmgraph.tensors import Array

if TYPE_CHECKING:
    from wasmgraph.compiler.importing.frontend.graph import Operator

BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class Scaled:
    """Integers (int16 from -255 to 255, or sums in int32) and their scale: one, or one for each index of
    ``axis``."""

    integers: Value
    scale: Array
    axis: int | None = None


# A function of an Operator and its inputs that returns its outputs, or None if integers do not serve.
_Rule = Callable[..., Any]
RULES: dict[str, _Rule] = {}


def by_integers(*operators: str) -> Callable[[_Rule], _Rule]:
    """Register the rule of operators for inputs that are integers times a scale."""

    def register(rule: _Rule) -> _Rule:
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


@dataclass
class ScaledTensors:
    """What is known about the tensors of one import."""

    _scaled: dict[Any, tuple[Value, Scaled]] = field(default_factory=dict)
    _centred: dict[Any, tuple[Value, Value]] = field(default_factory=dict)

    def of(self, value: Value) -> Scaled | None:
        """The integers and the scale of a tensor; None if there are none."""
        found = self._scaled.get(_key(value))
        return found[1] if found else None

    def note(self, value: Value, scaled: Scaled) -> None:
        """Remember what a tensor is."""
        self._scaled[_key(value)] = value, scaled

    def centred(self, quantized: Value, zero: Value) -> Value:
        """A quantised tensor less its zero point, if it has been computed."""
        found = self._centred.get((_key(quantized), _number(zero)))
        return found[1] if found else None

    def note_centred(self, quantized: Value, zero: Value, centred: Value) -> None:
        """Remember a quantised tensor less its zero point."""
        if (number := _number(zero)) is not None:
            self._centred[_key(quantized), number] = quantized, centred

    def rule(self, node: onnx.NodeProto, inputs: Sequence[Value]) -> _Rule | None:
        """The rule that may take a node."""
        if domain_of(node) or node.op_type not in RULES:
            return None
        if node.op_type == "DequantizeLinear":
            return RULES[node.op_type] if all(map(is_known, inputs[1:])) else None
        return RULES[node.op_type] if inputs and self.of(inputs[0]) else None


def _key(value: Value) -> Any:
    return value if isinstance(value, relax.Expr) else id(value)


def _number(zero: Value) -> int | None:
    """A known zero point of the whole tensor; None: it is another."""
    if zero is None:
        return 0
    return int(zero.reshape(-1)[0]) if isinstance(zero, np.ndarray) and zero.size == 1 else None


def scale_of(op: Operator, value: Value) -> Scaled | None:
    """The integers and the scale of a tensor; None if there are none."""
    return op.walk.scaled.of(value)
