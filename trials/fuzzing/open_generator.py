"""Generates graphs of open dimensions; sizes are those of :mod:`wasmgraph.dims`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trials.fuzzing.graphs import BINARY, UNARY, Builder
from wasmgraph.dims import Dim, Expression, Shape, Size, bounds, operation, product, same

_OPERATORS = 8  # a graph of thirty would seldom be taken as a whole, and a fault would hide in it

_ODD = (1, 2, 3, 4, 5, 8, 16, 17)
_MOST = 60_000  # elements of a tensor at the greatest values


class Generator(Builder):
    """A graph under construction; ``shapes`` has the shapes of its float32 tensors, ``dims`` the bounds of
    the open dimensions."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.shapes: dict[str, Shape] = {}
        self.dims: dict[str, Dim] = {}
        self.bounds: dict[str, Dim] = {}  # of these, and of dimensions that the graph computes
        for name in ("n", "m")[: self.random.choice((1, 1, 2))]:
            least = self.random.choice((1, 1, 1, 2, 3, 4, 8, 0))
            self.dims[name] = Dim(name, least, least + self.random.choice((1, 2, 7, 12, 30)))
        self.bounds.update(self.dims)
        self.inputs: dict[str, Shape] = {}
        for number in range(self.random.randrange(1, 4)):
            rank = self.random.choice((2, 3, 3, 4))
            self.inputs[f"x{number}"] = self._shape(rank)
        # Every dimension must be one of an input.
        self.inputs["x0"] = (*map(Expression.of, self.dims), *self.inputs["x0"][len(self.dims) :])
        self.shapes.update(self.inputs)

    def _shape(self, rank: int) -> Shape:
        sizes: list[Size] = [self.random.choice(_ODD) for _ in range(rank)]
        for at in self.random.sample(range(rank), self.random.choice((0, 1, 1, 2))):
            sizes[at] = Expression.of(self.random.choice(list(self.dims)))
            if self.random.random() < 0.1:
                sizes[at] = operation("+", sizes[at], 1)
        return tuple(sizes)

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output that is no float32 tensor; return the output's name."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def add(self, operator: str, inputs: Sequence[str], shape: Sequence[Size], **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        name = self.node(operator, inputs, **attributes)
        self.shapes[name] = tuple(shape)
        return name

    def computed(self, name: str, shape: Shape, axis: int) -> None:
        """Note that a tensor has one axis whose size data says, at most that of ``shape``."""
        dim = Dim(f"{name}_count", 0, bounds(shape[axis], self.bounds)[1])
        self.bounds[dim.name] = dim
        self.shapes[name] = _replaced(shape, axis, Expression.of(dim.name))

    def fits(self, shape: Sequence[Size]) -> bool:
        """Whether a tensor has some elements, and not too many."""
        return bounds(product(shape), self.bounds)[1] <= _MOST and all(self.least(s) >= 0 for s in shape)

    def least(self, size: Size) -> int:
        """The least that a size can be."""
        return bounds(size, self.bounds)[0]

    def some(self, least: int = 1, most: int = 5) -> str | None:
        """Choose a tensor with ``least`` to ``most`` axes; newer tensors are more likely."""
        found = [name for name, shape in self.shapes.items() if least <= len(shape) <= most]
        return self.random.choice(found[-5:]) if found else None

    def like(self, shape: Shape, but: int | None = None) -> list[str]:
        """Tensors of that shape, whatever the size of one axis is."""
        return [
            name
            for name, other in self.shapes.items()
            if len(other) == len(shape)
            and all(same(a, b) or i == but for i, (a, b) in enumerate(zip(shape, other, strict=True)))
        ]

    def model(self) -> onnx.ModelProto:
        """The graph's model; every tensor that no node uses is an output."""
        for _ in range(100 * _OPERATORS):
            if len(self.nodes) >= _OPERATORS:
                break
            self.random.choice(_KINDS)(self)
        used = {name for node in self.nodes for name in node.input}
        value = helper.make_tensor_value_info
        ends = [name for name in self.shapes if name not in used and name not in self.inputs]
        graph = helper.make_graph(
            self.nodes,
            "generated",
            [value(n, TensorProto.FLOAT, _written(s)) for n, s in self.inputs.items()],
            [value(name, TensorProto.FLOAT, None) for name in ends],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    def values(self, number: int) -> dict[str, int]:
        """Values of the dimensions: all at their least, all at their most, or anything between."""
        rng = random.Random(number)
        if number < 2:
            return {name: (dim.least, dim.most)[number] for name, dim in self.dims.items()}
        return {name: rng.randint(dim.least, dim.most) for name, dim in self.dims.items()}


def _written(shape: Shape) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in shape]


def _replaced(shape: Shape, axis: int, size: Size) -> Shape:
    return tuple(size if i == axis else s for i, s in enumerate(shape))


def _unary(g: Generator) -> None:
    if x := g.some():
        g.add(g.random.choice(UNARY), [x], g.shapes[x])


def _binary(g: Generator) -> None:
    if x := g.some():
        shape = g.shapes[x]
        thin = [1 if not isinstance(d, int) or g.random.random() < 0.5 else d for d in shape]
        y = g.constant(g.numbers.uniform(-2, 2, thin[g.random.randrange(len(thin)) :]))
        if g.random.random() < 0.6:
            y = g.random.choice(g.like(shape))
        g.add(g.random.choice(BINARY), [x, y], shape)


def _broadcast(g: Generator) -> None:
    """With what a reduction leaves of a tensor."""
    if x := g.some(2):
        shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
        if g.least(shape[axis]) < 1:
            return
        kept = _replaced(shape, axis, 1)
        mean = g.add("ReduceMean", [x, g.constant([axis], np.int64)], kept, keepdims=1)
        g.add(g.random.choice(("Sub", "Add", "Mul")), [x, mean], shape)


def _where(g: Generator) -> None:
    if x := g.some():
        mask = g.node("Greater", [g.random.choice(g.like(g.shapes[x])), g.constant(0.123456)])
        g.add("Where", [mask, x, g.constant(0.25)], g.shapes[x])


def _conv(g: Generator) -> None:
    x = g.some(3, 4)
    if x is None or not isinstance(g.shapes[x][1], int):
        return
    batch, channels, *space = g.shapes[x]
    assert isinstance(channels, int)
    group = g.random.choice((1, 1, channels))
    outer = g.random.choice(_ODD) * group
    kernel = [g.random.choice((1, 2, 3)) for _ in space]
    pads = [g.random.randrange(k) for k in kernel * 2]
    strides = [g.random.choice((1, 1, 2)) for _ in space]
    free = [
        operation("-", s, k - pads[i] - pads[i + len(space)])
        for i, (s, k) in enumerate(zip(space, kernel, strict=True))
    ]
    if any(g.least(size) < 0 for size in free):
        return
    size = [operation("+", operation("//", f, s), 1) for f, s in zip(free, strides, strict=True)]
    shape = (batch, outer, *size)
    if g.fits(shape):
        weights = g.numbers.normal(0, 0.4, (outer, channels // group, *kernel))
        inputs = [x, g.constant(weights), g.constant(g.numbers.normal(0, 0.5, outer))]
        g.add("Conv", inputs, shape, group=group, pads=pads, strides=strides)


def _pool(g: Generator) -> None:
    if (x := g.some(3, 4)) is None:
        return
    head, space = g.shapes[x][:2], g.shapes[x][2:]
    kernel, strides = ([g.random.choice((1, 2, 3)) for _ in space] for _ in range(2))
    free = [operation("-", s, k) for s, k in zip(space, kernel, strict=True)]
    if all(g.least(size) >= 0 for size in free):
        size = [operation("+", operation("//", f, s), 1) for f, s in zip(free, strides, strict=True)]
        kind = g.random.choice(("MaxPool", "AveragePool"))
        g.add(kind, [x], (*head, *size), kernel_shape=kernel, strides=strides)


def _global_pool(g: Generator) -> None:
    if (x := g.some(3, 4)) and all(g.least(size) for size in g.shapes[x][2:]):
        shape = (*g.shapes[x][:2], *(1 for _ in g.shapes[x][2:]))
        g.add(g.random.choice(("GlobalAveragePool", "GlobalMaxPool")), [x], shape)


def _matmul(g: Generator) -> None:
    x = g.some(2)
    if x is None or not isinstance(inner := g.shapes[x][-1], int):
        return
    outer = g.random.choice((*_ODD, 32, 33, 56, 264))
    shape = (*g.shapes[x][:-1], outer)
    if g.fits(shape):
        weights = g.constant(g.numbers.normal(0, 1 / np.sqrt(inner), (inner, outer)))
        y = g.add("MatMul", [x, weights], shape)
        if g.random.random() < 0.5:
            g.add("Add", [y, g.constant(g.numbers.normal(0, 1, outer))], shape)


def _product(g: Generator) -> None:
    """Of a tensor by itself, turned; and perhaps on through a softmax to attention."""
    if (x := g.some(2, 4)) is None:
        return
    *head, rows, inner = g.shapes[x]
    square = (*head, rows, rows)
    if not g.fits(square) or g.least(rows) < 1:
        return
    order = [*range(len(head)), len(head) + 1, len(head)]
    y = g.add("Transpose", [x], (*head, inner, rows), perm=order)
    small = g.add("Tanh", [x], g.shapes[x])
    z = g.add("MatMul", [small, g.add("Tanh", [y], g.shapes[y])], square)
    if g.random.random() < 0.6:
        g.add("MatMul", [g.add("Softmax", [z], square, axis=-1), x], g.shapes[x])


def _gemm(g: Generator) -> None:
    if (x := g.some(2, 2)) and isinstance(g.shapes[x][1], int):
        rows, inner = g.shapes[x]
        outer = g.random.choice(_ODD)
        weights = g.constant(g.numbers.normal(0, 0.3, (outer, inner)))
        bias = g.constant(g.numbers.normal(0, 1, outer))
        g.add("Gemm", [x, weights, bias], (rows, outer), transB=1, alpha=0.5)


def _reduce(g: Generator) -> None:
    if x := g.some(2):
        shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
        if g.least(shape[axis]) >= 1:
            kind = g.random.choice(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum"))
            keep = g.random.random() < 0.5
            left = _replaced(shape, axis, 1) if keep else (*shape[:axis], *shape[axis + 1 :])
            g.add(kind, [x, g.constant([axis], np.int64)], left, keepdims=int(keep))


def _normalise(g: Generator) -> None:
    if (x := g.some(2)) is None:
        return
    shape, last = g.shapes[x], g.shapes[x][-1]
    if g.random.random() < 0.5:
        at = g.random.randrange(len(shape))
        if g.least(shape[at]) >= 1:
            g.add(g.random.choice(("Softmax", "LogSoftmax")), [x], shape, axis=at)
    elif isinstance(last, int):
        scale, bias = (g.constant(g.numbers.uniform(0.5, 1.5, last)) for _ in range(2))
        g.add("LayerNormalization", [x, scale, bias], shape, epsilon=0.1)


def _batch_norm(g: Generator) -> None:
    if (x := g.some(3, 4)) and isinstance(g.shapes[x][1], int):
        parts = [g.constant(g.numbers.uniform(0.5, 1.5, g.shapes[x][1])) for _ in range(4)]
        g.add("BatchNormalization", [x, *parts], g.shapes[x])


def _transpose(g: Generator) -> None:
    if x := g.some(2):
        order = list(range(len(g.shapes[x])))
        g.random.shuffle(order)
        g.add("Transpose", [x], [g.shapes[x][i] for i in order], perm=order)


def _join(g: Generator) -> None:
    """Two axes become one: by −1 and 0, or by the product of sizes as exporters write it."""
    if (x := g.some(2)) is None:
        return
    shape = g.shapes[x]
    at = g.random.randrange(len(shape) - 1)
    joined = (*shape[:at], operation("*", shape[at], shape[at + 1]), *shape[at + 2 :])
    if g.random.random() < 0.5 and all(g.least(size) for size in shape):
        wanted = [0 if i < at else -1 if i == at else s for i, s in enumerate(joined)]
        if all(isinstance(size, int) for size in wanted):
            g.add("Reshape", [x, g.constant(wanted, np.int64)], joined)
        return
    whole = g.node("Shape", [x])
    sizes = [_element(g, whole, i) for i in range(len(shape))]
    sizes[at : at + 2] = [g.node("Mul", sizes[at : at + 2])]
    g.add("Reshape", [x, g.node("Concat", sizes, axis=0)], joined, allowzero=1)


def _element(g: Generator, sizes: str, at: int) -> str:
    return g.node("Gather", [sizes, g.constant([at], np.int64)], axis=0)


def _divide_axis(g: Generator) -> None:
    """Heads of attention: an axis of a known size becomes two."""
    if (x := g.some(2, 4)) is None:
        return
    shape = g.shapes[x]
    found = [i for i, size in enumerate(shape) if isinstance(size, int) and size % 2 == 0]
    if not found or sum(not isinstance(size, int) for size in shape) > 1:
        return
    at = g.random.choice(found)
    half = shape[at] // 2
    divided = (*shape[:at], half, 2, *shape[at + 1 :])
    wanted = [size if isinstance(size, int) else -1 for size in divided]
    if all(g.least(size) for size in shape):
        g.add("Reshape", [x, g.constant(wanted, np.int64)], divided)


def _unsqueeze(g: Generator) -> None:
    if x := g.some(1, 3):
        shape = list(g.shapes[x])
        at = g.random.randrange(len(shape) + 1)
        shape.insert(at, 1)
        g.add("Unsqueeze", [x, g.constant([at], np.int64)], shape)


def _concat(g: Generator) -> None:
    if x := g.some():
        shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
        parts = [x, *(g.random.choice(g.like(shape, axis)) for _ in range(g.random.randrange(1, 3)))]
        total: Size = 0
        for name in parts:
            total = operation("+", total, g.shapes[name][axis])
        joined = _replaced(shape, axis, total)
        if g.fits(joined):
            g.add("Concat", parts, joined, axis=axis)


def _slice(g: Generator) -> None:
    if (x := g.some()) is None:
        return
    shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
    size, least = shape[axis], g.least(shape[axis])
    begin, end, step = g.random.randrange(min(3, least) + 1), 1 << 60, g.random.choice((1, 1, 2, 3))
    kept = operation("//", operation("+", operation("-", size, begin), step - 1), step)
    match g.random.randrange(4):
        case 0 if begin < least:  # up to a fixed end
            end, step = g.random.randint(begin + 1, least), 1
            kept = end - begin
        case 1 if least > begin + 1:  # without the last
            end, step, kept = -1, 1, operation("-", size, begin + 1)
        case 2:  # backwards
            begin, end, step, kept = -1, -(1 << 60), -1, size
    if g.least(kept) >= 0:
        operands = [g.constant([v], np.int64) for v in (begin, end, axis, step)]
        g.add("Slice", [x, *operands], _replaced(shape, axis, kept))


def _pad(g: Generator) -> None:
    if x := g.some():
        shape = g.shapes[x]
        pads = [g.random.choice((0, 0, 1, 2)) for _ in [*shape, *shape]]
        padded = [operation("+", d, pads[i] + pads[i + len(shape)]) for i, d in enumerate(shape)]
        if g.fits(padded):
            g.add("Pad", [x, g.constant(pads, np.int64), g.constant(0.5)], padded)


def _gather(g: Generator) -> None:
    if x := g.some():
        shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
        least = g.least(shape[axis])
        if least >= 1:
            count = g.random.choice((1, 2, 5))
            chosen = g.constant(g.numbers.integers(-least, least, count), np.int64)
            g.add("Gather", [x, chosen], _replaced(shape, axis, count), axis=axis)


def _expand(g: Generator) -> None:
    """To the shape of another tensor, as exporters write it."""
    if (x := g.some(2)) is None:
        return
    shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
    row = g.constant(
        g.numbers.normal(
            0, 1, [1 if i == axis or not isinstance(s, int) else s for i, s in enumerate(shape)]
        )
    )
    g.add("Expand", [row, g.node("Shape", [x])], shape)


def _range(g: Generator) -> None:
    """Positions along an axis, scaled by its size."""
    if (x := g.some(2)) and isinstance(g.shapes[x][-1], int):
        shape, axis = g.shapes[x], len(g.shapes[x]) - 2
        size = g.node("Squeeze", [_element(g, g.node("Shape", [x]), axis), g.constant([0], np.int64)])
        steps = g.node("Range", [g.constant(0, np.int64), size, g.constant(1, np.int64)])
        at = g.node("Unsqueeze", [g.node("Cast", [steps], to=TensorProto.FLOAT), g.constant([1], np.int64)])
        count = g.node("Cast", [size], to=TensorProto.FLOAT)
        if g.least(shape[axis]) >= 1:
            at = g.node("Div", [at, count])
        g.add("Add", [x, at], shape)


def _tile(g: Generator) -> None:
    if x := g.some():
        shape = g.shapes[x]
        times = [g.random.choice((1, 1, 2)) for _ in shape]
        tiled = [operation("*", d, n) for d, n in zip(shape, times, strict=True)]
        if g.fits(tiled):
            g.add("Tile", [x, g.constant(times, np.int64)], tiled)


def _resize(g: Generator) -> None:
    if x := g.some(4, 4):
        batch, channels, rows, columns = g.shapes[x]
        shape = (batch, channels, operation("*", rows, 2), operation("*", columns, 2))
        if g.fits(shape) and all(g.least(size) for size in shape):
            mode = g.random.choice(("nearest", "linear"))
            g.add("Resize", [x, "", g.constant([1, 1, 2, 2])], shape, mode=mode)


def _conv_transpose(g: Generator) -> None:
    x = g.some(3, 4)
    if x is None or not isinstance(channels := g.shapes[x][1], int):
        return
    batch, _, *space = g.shapes[x]
    if not all(g.least(size) for size in space):
        return
    outer = g.random.choice(_ODD)
    shape = (batch, outer, *(operation("*", size, 2) for size in space))
    if g.fits(shape):
        weights = g.constant(g.numbers.normal(0, 0.4, (channels, outer, *(2 for _ in space))))
        g.add("ConvTranspose", [x, weights], shape, strides=[2 for _ in space])


def _split(g: Generator) -> None:
    if x := g.some():
        shape = g.shapes[x]
        found = [i for i, size in enumerate(shape) if isinstance(size, int) and size % 2 == 0]
        if found:
            at = g.random.choice(found)
            half = _replaced(shape, at, shape[at] // 2)
            names = [f"t{len(g.nodes)}{end}" for end in "ab"]
            g.nodes.append(helper.make_node("Split", [x], names, axis=at, num_outputs=2))
            g.shapes |= dict.fromkeys(names, half)


def _cumulate(g: Generator) -> None:
    if x := g.some():
        squashed = g.add("Tanh", [x], g.shapes[x])
        axis = g.random.randrange(len(g.shapes[x]))
        g.add("CumSum", [squashed, g.constant(axis, np.int64)], g.shapes[x])


def _recurrent(g: Generator) -> None:
    if (x := g.some(3, 3)) is None or not isinstance(width := g.shapes[x][2], int):
        return
    steps, batch, _ = g.shapes[x]
    kind, gates = g.random.choice((("LSTM", 4), ("GRU", 3)))
    hidden, both = g.random.choice((2, 4, 5)), g.random.random() < 0.5
    shape = (steps, 1 + both, batch, hidden)
    if g.fits(shape) and g.least(steps) >= 1:
        parts = [g.numbers.normal(0, 0.4, (1 + both, gates * hidden, n)) for n in (width, hidden)]
        way = "bidirectional" if both else "forward"
        g.add(kind, [x, *map(g.constant, parts)], shape, hidden_size=hidden, direction=way)


def _scan(g: Generator) -> None:
    """Running sums, row by row."""
    if (x := g.some(2, 3)) is None:
        return
    (steps, *rest), value = g.shapes[x], helper.make_tensor_value_info
    sizes = [size for size in rest if isinstance(size, int)]
    if g.least(steps) < 1 or len(sizes) < len(rest):
        return
    tensors = {name: value(name, TensorProto.FLOAT, sizes) for name in ("state", "row", "sum", "out")}
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "row"], ["sum"]), helper.make_node("Tanh", ["sum"], ["out"])],
        *("body", [tensors["state"], tensors["row"]], [tensors["sum"], tensors["out"]]),
    )
    name = f"t{len(g.nodes)}"
    start = g.constant(np.zeros(sizes))
    back = [int(g.random.random() < 0.5)]
    g.nodes.append(
        helper.make_node(
            *("Scan", [start, x], [f"{name}_end", name]),
            body=body,
            num_scan_inputs=1,
            scan_input_directions=back,
            scan_output_directions=back,
        )
    )
    g.shapes[name], g.shapes[f"{name}_end"] = (steps, *rest), tuple(rest)


def _chosen(g: Generator) -> None:
    """The slices of an input whose greatest element is large. Of other tensors, rounding could decide."""
    x = g.random.choice(list(g.inputs))
    shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
    if not g.least(product(shape)):
        return
    others = [n for n in range(len(shape)) if n != axis]
    greatest = g.node("ReduceMax", [x, g.constant(others, np.int64)], keepdims=0)
    holds = g.node("Greater", [greatest, g.constant(g.random.choice((0.0, 1.0, 2.0)))])
    g.computed(g.node("Compress", [x, holds], axis=axis), shape, axis)


def _cut(g: Generator) -> None:
    """A tensor up to a place that an input says."""
    if (x := g.some(2)) is None or not g.least(product(g.shapes["x0"])):
        return
    shape, axis = g.shapes[x], g.random.randrange(len(g.shapes[x]))
    flat = g.node("Reshape", ["x0", g.constant([-1], np.int64)])
    place = g.node("ArgMax", [flat], axis=0, keepdims=1)
    start, along = g.constant([g.random.choice((0, 1))], np.int64), g.constant([axis], np.int64)
    g.computed(g.node("Slice", [x, start, place, along]), shape, axis)


_KINDS: tuple[Callable[[Generator], None], ...] = (
    *(_unary, _unary, _binary, _binary, _broadcast, _where, _conv, _conv, _pool, _global_pool, _matmul),
    *(_matmul, _matmul, _product, _gemm, _reduce, _normalise, _batch_norm, _transpose, _join, _divide_axis),
    *(_unsqueeze, _concat, _slice, _pad, _gather, _expand, _range, _tile, _resize, _conv_transpose, _split),
    *(_cumulate, _recurrent, _scan, _chosen, _cut),
)
