"""Sequences and optionals inside a graph: their lengths are static, so they are Python lists here."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, integers, scalar, shape_of, size_array


def _items(sequence: Value) -> list[Value]:
    assert isinstance(sequence, list)
    return sequence


@converts("SequenceEmpty")
def sequence_empty(op: Operator) -> Any:
    """An empty sequence."""
    return []


@converts("SequenceConstruct")
def sequence_construct(op: Operator, *items: Value) -> Any:
    """A sequence of the given tensors."""
    return list(items)


@converts("SequenceLength")
def sequence_length(op: Operator, sequence: Value) -> Any:
    """The number of tensors in a sequence."""
    return size_array(len(_items(sequence)))


@converts("SequenceAt")
def sequence_at(op: Operator, sequence: Value, position: Value) -> Any:
    """One tensor of a sequence."""
    item = _items(sequence)[scalar(position)]
    return [item] if isinstance(item, list) else item


@converts("SequenceInsert")
def sequence_insert(op: Operator, sequence: Value, item: Value, position: Value = None) -> Any:
    """A sequence with one more tensor."""
    items = list(_items(sequence))
    at = scalar(position, len(items))
    items.insert(at if at >= 0 else len(items) + at, item)
    return items


@converts("SequenceErase")
def sequence_erase(op: Operator, sequence: Value, position: Value = None) -> Any:
    """A sequence with one tensor removed."""
    items = list(_items(sequence))
    del items[scalar(position, -1)]
    return items


@converts("SequenceMap")
def sequence_map(op: Operator, sequence: Value, *others: Value) -> Any:
    """Convert the body once for each tensor of the sequence."""
    items = _items(sequence)
    rows = [
        op.subgraph("body", item, *(o[i] if isinstance(o, list) else o for o in others))
        for i, item in enumerate(items)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return tuple(columns) if columns else tuple([] for _ in range(op.outputs))


@converts("ConcatFromSequence")
def concat_from_sequence(op: Operator, sequence: Value) -> Any:
    """Join all tensors of a sequence into one."""
    items, axis = _items(sequence), int(op.attr("axis"))
    if op.attr("new_axis", 0):
        axis %= len(shape_of(items[0])) + 1
        items = [op("Unsqueeze", item, size_array([axis])) for item in items]
    return op("Concat", *items, axis=axis)


@converts("SplitToSequence")
def split_to_sequence(op: Operator, data: Value, split: Value = None) -> Any:
    """Split a tensor. Without ``split`` the pieces have length 1; a scalar gives the length of each piece;
    a vector lists their lengths."""
    axis = int(op.attr("axis", 0)) % len(shape_of(data))
    length = shape_of(data)[axis]
    if split is None:
        sizes = [1] * length
    elif len(shape_of(split)) == 0:
        step = integers(split)[0]
        sizes = [min(step, length - at) for at in range(0, length, step)]
    else:
        sizes = integers(split)
    pieces = op("Split", data, size_array(sizes), axis=axis, outputs=len(sizes))
    pieces = pieces if isinstance(pieces, list) else [pieces]
    if split is None and not op.attr("keepdims", 1):
        pieces = [op("Squeeze", piece, size_array([axis])) for piece in pieces]
    return pieces


@converts("Optional")
def optional(op: Operator, value: Value = None) -> Any:
    """An optional with or without a value."""
    return value


@converts("OptionalHasElement")
def optional_has_element(op: Operator, value: Value = None) -> Any:
    """Whether an optional has a value."""
    return np.array(value is not None)


@converts("OptionalGetElement")
def optional_get_element(op: Operator, value: Value) -> Any:
    """The value of an optional."""
    if value is None:
        raise op.unsupported("of an empty optional")
    return value
