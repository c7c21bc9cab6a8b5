"""Matrix products in other spellings than ``MatMul`` of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm import relax

from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, expression, shape_of, size_array
from wasmgraph.dims import Size


def _reshape(op: Operator, value: Value, shape: Sequence[Size]) -> Any:
    return value if list(shape_of(value)) == shape else op("Reshape", value, size_array(shape))


@converts("MatMul")
def matmul(op: Operator, left: Value, right: Value) -> Any:
    """A vector is a matrix of one row on the left, and of one column on the right. Operands of int16, which
    ONNX does not have, are summed in int32."""
    a, b = shape_of(left), shape_of(right)
    if len(a) > 1 and len(b) > 1:
        if dtype_of(left) == "int16":
            return relax.op.matmul(expression(left), expression(right), out_dtype="int32")
        return op.tvm(left, right)
    rows = _reshape(op, left, [1, *a]) if len(a) == 1 else left
    columns = _reshape(op, right, [*b, 1]) if len(b) == 1 else right
    found = op("MatMul", rows, columns)
    outer = list(shape_of(found)[:-2])
    return _reshape(op, found, [*outer, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])])


@converts("Einsum")
def einsum(op: Operator, *operands: Value) -> Any:
    """A sum over products of two tensors is a ``MatMul`` of transposed and reshaped tensors."""
    equation = op.attr("equation").replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    names = inputs.split(",")
    plain = "." not in equation and arrow and len(names) == len(operands) == 2
    if not plain or any(len(set(n)) < len(n) for n in (*names, output)):
        return op.tvm(*operands)
    sizes: dict[str, Size] = {}
    for labels, operand in zip(names, operands, strict=True):
        if len(labels) != len(shape_of(operand)):
            raise op.unsupported(f"{equation!r} does not fit the shapes of its inputs")
        for label, size in zip(labels, shape_of(operand), strict=True):
            if sizes.setdefault(label, size) not in (size, 1) and size != 1:
                raise op.unsupported(f"{equation!r} has two sizes for {label!r}: {sizes[label]} and {size}")
            sizes[label] = max(sizes[label], size)
    broadcast = any(
        size != sizes[label]
        for labels, operand in zip(names, operands, strict=True)
        for label, size in zip(labels, shape_of(operand), strict=True)
    )
    if broadcast or not set(output) <= set(sizes):
        return op.tvm(*operands)
    left, right = names
    values = [
        _summed(op, operand, labels, (left, right)[1 - n], output)
        for n, (labels, operand) in enumerate(zip(names, operands, strict=True))
    ]
    left, right = (_kept(labels, other, output) for labels, other in ((left, right), (right, left)))
    outer = [label for label in output if label in left and label in right]
    summed = [label for label in left if label in right and label not in output]
    rows = [label for label in output if label in left and label not in right]
    columns = [label for label in output if label in right and label not in left]
    if not summed:
        return op.tvm(*operands)

    def arranged(value: Value, labels: str, *groups: list[str]) -> Any:
        """The tensor with the dimensions ``outer``, and one for each group of labels."""
        order = [labels.index(label) for label in (*outer, *groups[0], *groups[1])]
        moved = value if order == sorted(order) else op("Transpose", value, perm=order)
        shape = [sizes[label] for label in outer]
        return _reshape(op, moved, [*shape, *(prod(sizes[label] for label in group) for group in groups)])

    product = op(
        "MatMul", arranged(values[0], left, rows, summed), arranged(values[1], right, summed, columns)
    )
    found = [*outer, *rows, *columns]
    product = _reshape(op, product, [sizes[label] for label in found])
    order = [found.index(label) for label in output]
    return product if order == sorted(order) else op("Transpose", product, perm=order)


def _kept(labels: str, other: str, output: str) -> str:
    """The labels of an operand that the other operand or the output has."""
    return "".join(label for label in labels if label in other or label in output)


def _summed(op: Operator, value: Value, labels: str, other: str, output: str) -> Value:
    """Sum an operand over the labels that only it has."""
    alone = [n for n, label in enumerate(labels) if label not in other and label not in output]
    return op("ReduceSum", value, size_array(alone), keepdims=0) if alone else value
