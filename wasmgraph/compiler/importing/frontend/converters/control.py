"""Control flow. Known conditions and trip counts determine at compile time which nodes run. A loop's body
is converted once where that is possible (``frontend/repeating.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper
from tvm import te

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.repeating import FEW_TURNS, Start, Turn, repeat, within
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    is_known,
    scalar,
    shape_of,
    size_array,
    size_list,
)
from wasmgraph.compiler.sizes import number as number_of
from wasmgraph.errors import ModelError

# Loops with more iterations than this are not unrolled: they are converted once, or refused.
MOST_TURNS = 10_000
_NEEDED = (
    "such a loop can only be compiled if its state keeps the same shapes in every turn and, if it has scan"
    " outputs, something bounds the number of turns"
)


@converts("If")
def if_(op: Operator, condition: Value) -> Any:
    """Convert the branch that is taken, if the condition is known."""
    if not is_known(condition):
        return _select(op, condition)
    return tuple(op.subgraph("then_branch" if scalar(condition) else "else_branch"))


def _select(op: Operator, condition: Value) -> Any:
    """Compute both branches and select between their results. An index out of range is an error only if its
    branch is taken."""
    condition = op("Reshape", condition, size_array([]))
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
    """Convert the body once, as a loop; if it cannot be one, once for each iteration."""
    if is_known(condition) and not scalar(condition, True):
        scans = _Scans(op, "body", 1 + len(carried))
        return (*carried, *scans.stacked([0] * len(scans.collected)))
    if (found := _repeated(op, count, condition, carried)) is not None:
        return found
    if count is not None and not is_known(count):
        raise op.unsupported(f"has a trip count that depends on data; {_NEEDED}")
    most = MOST_TURNS + 1 if count is None else size_list(count)[0]
    if not isinstance(most, int):
        raise op.unsupported(f"runs {most} times; {_NEEDED}")
    state, scans = list(carried), _Scans(op, "body", 1 + len(carried))
    turn = 0
    while turn < most and _holds(op, condition):
        if turn == MOST_TURNS:
            raise op.unsupported(f"runs more than {MOST_TURNS:,} times; {_NEEDED}")
        condition, *results = op.subgraph("body", size_array(turn), condition, *state)
        state = results[: len(state)]
        scans.append(results[len(state) :])
        turn += 1
    return (*state, *scans.stacked([0] * len(scans.collected)))


def _repeated(op: Operator, count: Value, condition: Value, carried: Sequence[Value]) -> Any:
    """The results of a loop whose body is converted once, or None."""
    scans = len(op.attributes["body"].output) - 1 > len(carried)
    if scans and not is_known(count):
        (size,) = op.said_sizes(op("Max", count, size_array(0)), [None])
        count = size_array([size])
    turns = size_list(count)[0] if is_known(count) and count is not None else None
    if isinstance(turns, int) and turns < FEW_TURNS:
        return None

    outside = op.outside("body")

    def body(number: Value, again: Value, state: list[Value], tensors: list[Value]) -> Turn:
        scope = dict(zip(outside, tensors, strict=False))
        again, *results = op.subgraph("body", number, again, *state, outside=scope)
        return Turn(again, results[: len(carried)], results[len(carried) :])

    first = np.array(True) if condition is None else condition
    if is_known(count):
        start = Start(carried, turns, first, None, list(outside.values()), op.in_sequences("body"))
    else:
        most = op("Reshape", count, size_array([]))
        some = op("Less", size_array(0), most)
        first = some if is_known(first) else op("And", op("Reshape", first, size_array([])), some)
        start = Start(
            carried,
            None,
            first,
            lambda done: op("Less", done, most),
            list(outside.values()),
            [most, *op.in_sequences("body")],
        )
    found = repeat(op, body, start)
    return None if found is None else (*found[0], *found[1])


def _holds(op: Operator, condition: Value) -> bool:
    if not is_known(condition):
        raise op.unsupported(f"ends on a condition that depends on data; {_NEEDED}")
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
        rows = [self.op("Unsqueeze", item, size_array([axis])) for item in items]
        return rows[0] if len(rows) == 1 else self.op("Concat", *rows, axis=axis)


@converts("Scan")
def scan(op: Operator, *inputs: Value) -> Any:
    """Convert the body once, as a loop; if it cannot be one, once for each slice of the scanned inputs."""
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
    length, *others = (shape_of(s)[a] for a, s in zip(axes, sequences, strict=True))
    if any(other != length for other in others):
        said = ", ".join(map(str, [length, *others]))
        raise ModelError(f"the scanned inputs have different lengths: {said}")
    back_out = list(op.attr("scan_output_directions", [0] * outputs))
    axes_out = list(op.attr("scan_output_axes", [0] * outputs))
    if not isinstance(length, int) or length >= FEW_TURNS:
        outside = op.outside("body")

        def body(number: Value, _: Value, state: list[Value], tensors: list[Value]) -> Turn:
            scope = dict(zip(outside, tensors[scanned:], strict=False))
            slices = [
                _slice(op, s, a, number, bool(back))
                for s, a, back in zip(tensors, axes, backwards, strict=False)
            ]
            results = op.subgraph("body", *state, *slices, outside=scope)
            return Turn(None, results[: len(state)], results[len(state) :])

        tensors = [*sequences, *outside.values()]
        start = Start(state, length, np.array(True), None, tensors, op.in_sequences("body"))
        if (found := repeat(op, body, start)) is not None:
            final, rows = found
            return (*final, *(_laid(op, *each) for each in zip(rows, axes_out, back_out, strict=True)))
    if not isinstance(length, int):
        raise op.unsupported(f"runs {length} times; {_NEEDED}")
    if length > MOST_TURNS:
        raise op.unsupported(f"runs more than {MOST_TURNS:,} times; {_NEEDED}")
    for turn in range(length):
        slices = [
            op("Gather", s, size_array(length - 1 - turn if back else turn), axis=a)
            for s, a, back in zip(sequences, axes, backwards, strict=True)
        ]
        results = op.subgraph("body", *state, *slices)
        state = results[: len(state)]
        scans.append(results[len(state) :])
    return (*state, *scans.stacked(axes_out, back_out))


def _slice(op: Operator, sequence: Value, axis: int, number: Value, backwards: bool) -> Value:
    """The slice of a turn."""
    shape = list(shape_of(sequence))
    length = shape.pop(axis)

    def compute(tensor: te.Tensor, turn: te.Tensor) -> te.Tensor:
        at = within(turn(), length)
        at = number_of(length - 1, "int64") - at if backwards else at
        return te.compute(shape, lambda *i: tensor[(*i[:axis], at, *i[axis:])], name="slice")

    return op.te(compute, sequence, number)


def _laid(op: Operator, rows: Value, axis: int, back: int) -> Value:
    """Rows of all turns along another axis than the first, or in the other order."""
    rank = len(shape_of(rows))
    if back:
        ends = size_array([-1]), size_array([-(1 << 31)])
        rows = op("Slice", rows, *ends, size_array([0]), size_array([-1]))
    if axis % rank == 0:
        return rows
    order = list(range(1, rank))
    order.insert(axis % rank, 0)
    return op("Transpose", rows, perm=order)
