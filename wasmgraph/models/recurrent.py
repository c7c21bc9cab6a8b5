"""Recurrent layers alone, with seeded random weights → ONNX: for speed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from wasmgraph.models.building import GraphBuilder

Kind = Literal["LSTM", "GRU", "RNN"]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def build(
    kind: Kind,
    steps: int,
    width: int = 256,
    hidden: int = 256,
    batch: int = 1,
    bidirectional: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """One layer as PyTorch exports it: ``input`` ``[steps, batch, width]`` to ``sequence``
    ``[steps, directions, batch, hidden]``."""
    rng = np.random.default_rng(seed)
    rows, ways = _GATES[kind] * hidden, 1 + bidirectional
    graph = GraphBuilder()
    bound = hidden**-0.5
    weights = [
        graph.constant(name, rng.uniform(-bound, bound, (ways, *shape)).astype(np.float32))
        for name, shape in (("W", (rows, width)), ("R", (rows, hidden)), ("B", (2 * rows,)))
    ]
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    direction = "bidirectional" if bidirectional else "forward"
    graph.node(kind, ["input", *weights], "sequence", hidden_size=hidden, direction=direction, **attributes)

    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    name = f"{kind.lower()}_{hidden}_{steps}"
    sides = [value("input", steps, batch, width)], [value("sequence", steps, ways, batch, hidden)]
    return graph.finish(name, *sides, {"weights": "random"})
