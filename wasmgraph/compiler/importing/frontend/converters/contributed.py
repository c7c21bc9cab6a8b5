"""Registering converters of ``com.microsoft``: operators that onnxruntime adds to ONNX's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.registry import MICROSOFT, Converter
from wasmgraph.compiler.importing.frontend.values import Value

# By operator: the names of the attributes that its converter considers.
ATTRIBUTES: dict[str, frozenset[str]] = {}


def contributed(
    operator: str, *attributes: str, domain: str = MICROSOFT, **fixed: Any
) -> Callable[[Converter], Converter]:
    """Register a converter. Nodes with attributes or inputs that it does not consider are refused.

    Parameters
    ----------
    operator : its name in ``domain``
    attributes : the attributes that may have any value
    fixed : the attributes of which one value is implemented, with that value
    """

    def register(converter: Converter) -> Converter:
        parameters = signature(converter).parameters.values()
        several = any(p.kind == p.VAR_POSITIONAL for p in parameters)
        most = math.inf if several else len(parameters) - 1
        ATTRIBUTES[operator] = frozenset(attributes) | fixed.keys()

        @wraps(converter)
        def considered(op: Operator, *inputs: Value) -> Any:
            for name in op.attributes:
                if name not in ATTRIBUTES[operator]:
                    raise op.unsupported(f"with the attribute {name!r} is not implemented")
                if name in fixed and op.attr(name) != fixed[name]:
                    raise op.unsupported(
                        f"with {name} = {op.attr(name)!r} is not implemented; {fixed[name]!r} is"
                    )
            if len(inputs) > most:
                raise op.unsupported(f"with {len(inputs)} inputs is not implemented; {most} are known")
            return converter(op, *inputs)

        return converts(operator, domain=domain)(considered)

    return register


def refuse_inputs(op: Operator, **inputs: Value) -> None:
    """Raise UnsupportedOperatorError if one of these inputs is given."""
    for name, value in inputs.items():
        if value is not None:
            raise op.unsupported(f"with the input {name!r} is not implemented")


def refuse_outputs(op: Operator, **positions: int) -> None:
    """Raise UnsupportedOperatorError if one of these outputs is used."""
    for name, position in positions.items():
        if position < op.outputs and op.node.output[position]:
            raise op.unsupported(f"with the output {name!r} is not implemented")
