"""Control flow over known values: conditions and trip counts determine at compile time which nodes run."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, is_known, scalar, shape_of
from wasmgraph.errors import ModelError

# Loops with more iterations than this are not unrolled but refused.
MOST_TURNS = 10_000


@converts("If")
def if_(op: Operator, condition: Value) -> Any:
    """Convert the branch that is taken, if the condition is known."""
    if not is_known(condition):
        return _select(op, condition)
    return tuple(op.subgraph("then_branch" if scalar(condition) else "else_branch"))


def _select(op: Operator, condition: Value) -> Any:
    """Compute both branches and select between their results. An index out of range is an error only if its
    branch is taken."""
    condition = op("Reshape", condition, np.array([], np.int64))
    branches = []
    for name, holds in (("then_branch", condition), ("else_branch", op("Not", condition))):
        with op.walk.only_if(holds, op):
            branches.append(op.subgraph(name))
    for one, other in zip(*branches, strict=True):
        if isinstance(one, list) or isinstance(other, list) or shape_of(one) != shape_of(other):
            raise op.unsupported("depends on data, and its branches give different shapes")
    return tuple(op("Where", condition, one, other) for one, other in zip(*branches, strict=True))


@converts("Loop")
def loop(op: Operator, count: Value, condition: Value, *carried: Value) -> Any:
    """Unroll the loop: convert the body once for each iteration."""
    if count is not None and not is_known(count):
        raise op.unsupported("has a trip count that depends on data")
    most = scalar(count, MOST_TURNS + 1)
    state, scans = list(carried), _Scans(op, "body", 1 + len(carried))
    turn = 0
    while turn < most and _holds(op, condition):
        if turn == MOST_TURNS:
            raise op.unsupported(f"runs more than {MOST_TURNS:,} times")
        condition, *results = op.subgraph("body", np.array(turn, np.int64), condition, *state)
        state = results[: len(state)]
        scans.append(results[len(state) :])
        turn += 1
    return (*state, *scans.stacked([0] * len(scans.collected)))


def _holds(op: Operator, condition: Value) -> bool:
    if not is_known(condition):
        raise op.unsupported("ends on a condition that depends on data")
    return bool(scalar(condition, True))


class _Scans:
    """The scan outputs of each iteration of a body."""

    def __init__(self, op: Operator, attribute: str, first: int) -> None:
        self.op = op
        self.declared = list(op.attributes[attribute].output)[first:]
        self.collected: list[list[Value]] = [[] for _ in self.declared]

    def append(self, results: list[Value]) -> None:
        for items, result in zip(self.collected, results, strict=True):
            items.append(result)

    def stacked(self, axes: list[int], backwards: list[int] | None = None) -> list[Value]:
        return [
            self._stack(items[::-1] if back else items, axis, declared)
            for items, axis, declared, back in zip(
                self.collected, axes, self.declared, backwards or [0] * len(axes), strict=True
            )
        ]

    def _stack(self, items: list[Value], axis: int, declared: Any) -> Value:
        if not items:
            tensor = declared.type.tensor_type
            dims = [d.dim_value for d in tensor.shape.dim]
            return np.zeros([0, *dims], helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        axis %= len(shape_of(items[0])) + 1
        rows = [self.op("Unsqueeze", item, np.array([axis], np.int64)) for item in items]
        return rows[0] if len(rows) == 1 else self.op("Concat", *rows, axis=axis)


@converts("Scan")
def scan(op: Operator, *inputs: Value) -> Any:
    """Convert the body once for each slice of the scanned inputs."""
    if op.opset < 9:
        raise op.unsupported(
            f"of opset {op.opset} is not implemented; convert the model to opset 9 or later"
        )
    scanned = int(op.attr("num_scan_inputs"))
    state, sequences = list(inputs[:-scanned]), inputs[-scanned:]
    scans = _Scans(op, "body", len(state))
    outputs = len(scans.declared)
    axes = op.attr("scan_input_axes", [0] * scanned)
    backwards = op.attr("scan_input_directions", [0] * scanned)
    axes = [a % len(shape_of(s)) for a, s in zip(axes, sequences, strict=True)]
    lengths = {shape_of(s)[a] for a, s in zip(axes, sequences, strict=True)}
    if len(lengths) != 1:
        raise ModelError(f"the scanned inputs have different lengths: {sorted(lengths)}")
    (length,) = lengths
    if length > MOST_TURNS:
        raise op.unsupported(f"runs more than {MOST_TURNS:,} times")
    for turn in range(length):
        slices = [
            op("Gather", s, np.array(length - 1 - turn if back else turn, np.int64), axis=a)
            for s, a, back in zip(sequences, axes, backwards, strict=True)
        ]
        results = op.subgraph("body", *state, *slices)
        state = results[: len(state)]
        scans.append(results[len(state) :])
    return (
        *state,
        *scans.stacked(
            list(op.attr("scan_output_axes", [0] * outputs)),
            list(op.attr("scan_output_directions", [0] * outputs)),
        ),
    )
