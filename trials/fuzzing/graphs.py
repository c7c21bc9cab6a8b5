"""Generated graphs of thirty operators or more, with odd shapes, compared with onnxruntime.

Operators are drawn so that float32 represents their values well: growing values are squashed, and divisors
are kept away from zero. Each kind of operator is a function that extends the graph built so far.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from wasmgraph.tensors import Array

_OPERATORS = 30
_TOLERANCE = 2e-3  # of the largest value: sums of some hundred terms, through thirty operators
TARGETS = ("wasm32-simd128", "wasm32", "native", "wasm32-simd128-threads", "wasm32-relaxed-simd")
_ODD = (1, 2, 3, 5, 7, 11, 13, 17)
_MOST = 20_000  # elements of a tensor
# Only continuous functions: a step function turns an error in the last bit into an error of 1.
UNARY = (
    *("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Softplus", "Softsign", "Erf", "HardSigmoid", "HardSwish"),
    *("Elu", "Selu", "LeakyRelu", "Sin", "Cos", "Identity", "Mish", "Gelu"),
)
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")


class Builder:
    """Nodes and constants of a graph under construction, and what they are drawn from."""

    def __init__(self, seed: int) -> None:
        self.random, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add an initializer; return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def is_close(actual: Array, expected: Array) -> tuple[bool, float]:
    """Whether two arrays agree, and how far they are apart, relative to the largest value."""
    largest = max(float(np.abs(expected).max(initial=0)), 1e-3)
    apart = float(np.abs(actual - expected).max(initial=0)) / largest
    return apart <= _TOLERANCE, apart


class Generator(Builder):
    """A graph under construction; ``shapes`` has the shapes of its float32 tensors."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}
        for number in range(self.random.randrange(1, 4)):
            rank = self.random.choice((2, 3, 4, 4))
            self.inputs[f"x{number}"] = tuple(self.random.choice(_ODD) for _ in range(rank))
        self.shapes.update(self.inputs)

    def weights(self, *shape: int) -> str:
        """Weights that keep a sum over all but their first axis near one."""
        scale = 1 / np.sqrt(max(1, math.prod(shape[1:])))
        return self.constant(self.numbers.normal(0, scale, shape))

    def add(self, operator: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        self.shapes[name] = shape
        return name

    def some(self, least: int = 1, most: int = 5) -> str | None:
        """Choose a tensor with ``least`` to ``most`` axes; newer tensors are more likely."""
        found = [name for name, shape in self.shapes.items() if least <= len(shape) <= most]
        return self.random.choice(found[-6:]) if found else None

    def axis(self, shape: tuple[int, ...]) -> int:
        """Choose an axis, sometimes counted from the end."""
        at = self.random.randrange(len(shape))
        return at - len(shape) if self.random.random() < 0.5 else at

    def grow(self) -> None:
        """Add one operator, or nothing if the one drawn does not fit."""
        self.random.choice(_KINDS)(self)

    def model(self) -> onnx.ModelProto:
        """The graph's model; every tensor that no node uses is an output."""
        while len(self.nodes) < _OPERATORS:
            self.grow()
        used = {name for node in self.nodes for name in node.input}
        value = helper.make_tensor_value_info
        ends = [name for name in self.shapes if name not in used and name not in self.inputs]
        graph = helper.make_graph(
            self.nodes,
            "generated",
            [value(n, TensorProto.FLOAT, s) for n, s in self.inputs.items() if n in used],
            [value(name, TensorProto.FLOAT, self.shapes[name]) for name in ends],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _unary(g: Generator) -> None:
    if x := g.some():
        g.add(g.random.choice(UNARY), [x], g.shapes[x])


def _binary(g: Generator) -> None:
    if (x := g.some()) is None:
        return
    shape = g.shapes[x]
    same = [name for name, other in g.shapes.items() if other == shape]
    thin = tuple(1 if g.random.random() < 0.5 else d for d in shape[g.random.randrange(len(shape)) :])
    y = g.random.choice(same) if g.random.random() < 0.6 else g.constant(g.numbers.uniform(-2, 2, thin))
    g.add(g.random.choice(BINARY), [x, y], shape)


def _divide(g: Generator) -> None:
    if x := g.some():
        shape = g.shapes[x]
        g.add("Div", [x, g.constant(g.numbers.uniform(1, 3, shape[-1:]))], shape)


def _root(g: Generator) -> None:
    if x := g.some():
        g.add("Sqrt", [g.add("Abs", [x], g.shapes[x])], g.shapes[x])


def _clip(g: Generator) -> None:
    if x := g.some():
        g.add("Clip", [x, g.constant(-1.5), g.constant(2.0)], g.shapes[x])


def _where(g: Generator) -> None:
    if x := g.some():
        shape = g.shapes[x]
        chosen = g.constant(g.numbers.random(shape) < 0.5, np.bool_)
        g.add("Where", [chosen, x, g.constant(0.25)], shape)


def _compare(g: Generator) -> None:
    # Do not compare with a value that elements may equal except for rounding.
    if x := g.some():
        shape, name = g.shapes[x], f"b{len(g.nodes)}"
        bound = g.constant(g.numbers.uniform(5, 6, shape[-1:]))
        g.nodes.append(helper.make_node(g.random.choice(("Greater", "Less")), [x, bound], [name]))
        g.add("Cast", [name], shape, to=TensorProto.FLOAT)


def _conv(g: Generator) -> None:
    x = g.some(3, 4)
    if x is None:
        return
    batch, channels, *space = g.shapes[x]
    group = g.random.choice([d for d in (1, 1, 1, channels) if channels % d == 0])
    outer = g.random.choice(_ODD) * group
    kernel = [g.random.choice([k for k in (1, 2, 3, 5) if k <= s + 2]) for s in space]
    pads = [g.random.randrange((k + 1) // 2 + 1) for k in kernel * 2]
    strides = [g.random.choice((1, 1, 2, 3)) for _ in space]
    size = [
        (s + pads[i] + pads[i + len(space)] - k) // stride + 1
        for i, (s, k, stride) in enumerate(zip(space, kernel, strides, strict=True))
    ]
    shape = (batch, outer, *size)
    if min(size) < 1 or math.prod(shape) > _MOST:
        return
    inputs = [x, g.weights(outer, channels // group, *kernel)]
    if g.random.random() < 0.7:
        inputs.append(g.constant(g.numbers.normal(0, 0.5, outer)))
    g.add("Conv", inputs, shape, group=group, pads=pads, strides=strides)


def _pool(g: Generator) -> None:
    x = g.some(3, 4)
    if x is None:
        return
    (*head,) = g.shapes[x][:2]
    space = g.shapes[x][2:]
    kernel = [g.random.choice([k for k in (1, 2, 3) if k <= s]) for s in space]
    strides = [g.random.choice((1, 2)) for _ in space]
    size = [(s - k) // stride + 1 for s, k, stride in zip(space, kernel, strides, strict=True)]
    kind = g.random.choice(("MaxPool", "AveragePool"))
    g.add(kind, [x], (*head, *size), kernel_shape=kernel, strides=strides)


def _global_pool(g: Generator) -> None:
    if x := g.some(3, 4):
        shape = (*g.shapes[x][:2], *(1 for _ in g.shapes[x][2:]))
        g.add(g.random.choice(("GlobalAveragePool", "GlobalMaxPool")), [x], shape)


def _matmul(g: Generator) -> None:
    if x := g.some(2):
        outer = g.random.choice(_ODD)
        shape = (*g.shapes[x][:-1], outer)
        if math.prod(shape) <= _MOST:
            scale = 1 / np.sqrt(g.shapes[x][-1])
            g.add("MatMul", [x, g.constant(g.numbers.normal(0, scale, (g.shapes[x][-1], outer)))], shape)


def _gemm(g: Generator) -> None:
    if x := g.some(2, 2):
        rows, inner = g.shapes[x]
        outer = g.random.choice(_ODD)
        bias = g.constant(g.numbers.normal(0, 1, outer))
        g.add("Gemm", [x, g.weights(outer, inner), bias], (rows, outer), transB=1, alpha=0.5)


def _reduce(g: Generator) -> None:
    if x := g.some(2):
        shape, axis = g.shapes[x], g.axis(g.shapes[x])
        kind = g.random.choice(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum"))
        kept = tuple(1 if i == axis % len(shape) else d for i, d in enumerate(shape))
        g.add(kind, [x, g.constant([axis], np.int64)], kept, keepdims=1)


def _normalise(g: Generator) -> None:
    if (x := g.some(2)) is None:
        return
    shape = g.shapes[x]
    if g.random.random() < 0.5:
        g.add(g.random.choice(("Softmax", "LogSoftmax")), [x], shape, axis=g.axis(shape))
    else:
        scale, bias = (g.constant(g.numbers.uniform(0.5, 1.5, shape[-1:])) for _ in range(2))
        g.add("LayerNormalization", [x, scale, bias], shape, epsilon=0.1)


def _batch_norm(g: Generator) -> None:
    if x := g.some(3, 4):
        channels = g.shapes[x][1]
        parts = [g.constant(g.numbers.uniform(0.5, 1.5, channels)) for _ in range(4)]
        g.add("BatchNormalization", [x, *parts], g.shapes[x])


def _transpose(g: Generator) -> None:
    if x := g.some(2):
        order = list(range(len(g.shapes[x])))
        g.random.shuffle(order)
        g.add("Transpose", [x], tuple(g.shapes[x][i] for i in order), perm=order)


def _reshape(g: Generator) -> None:
    if x := g.some(2):
        shape = g.shapes[x]
        at = g.random.randrange(len(shape) - 1)
        joined = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
        wanted = list(joined)
        wanted[g.random.randrange(len(wanted))] = -1
        g.add("Reshape", [x, g.constant(wanted, np.int64)], joined)


def _unsqueeze(g: Generator) -> None:
    if x := g.some(1, 3):
        shape = list(g.shapes[x])
        at = g.random.randrange(len(shape) + 1)
        shape.insert(at, 1)
        g.add("Unsqueeze", [x, g.constant([at], np.int64)], tuple(shape))


def _concat(g: Generator) -> None:
    if (x := g.some()) is None:
        return
    shape, axis = g.shapes[x], g.axis(g.shapes[x])
    fit = [
        name
        for name, other in g.shapes.items()
        if len(other) == len(shape)
        and all(a == b or i == axis % len(shape) for i, (a, b) in enumerate(zip(shape, other, strict=True)))
    ]
    parts = [x, *(g.random.choice(fit) for _ in range(g.random.randrange(1, 3)))]
    total = sum(g.shapes[name][axis] for name in parts)
    joined = tuple(total if i == axis % len(shape) else d for i, d in enumerate(shape))
    if math.prod(joined) <= _MOST:
        g.add("Concat", parts, joined, axis=axis)


def _slice(g: Generator) -> None:
    if x := g.some():
        shape, axis = g.shapes[x], g.axis(g.shapes[x])
        size = shape[axis]
        begin, step = g.random.randrange(size), g.random.choice((1, 2, -1))
        end = g.random.choice((10**6, size)) if step > 0 else -(10**6)
        kept = len(range(size)[begin:end:step])
        operands = [g.constant([v], np.int64) for v in (begin, end, axis, step)]
        g.add(
            "Slice",
            [x, *operands],
            tuple(kept if i == axis % len(shape) else d for i, d in enumerate(shape)),
        )


def _pad(g: Generator) -> None:
    if x := g.some():
        shape = g.shapes[x]
        pads = [g.random.choice((0, 0, 1, 2)) for _ in shape * 2]
        padded = tuple(d + pads[i] + pads[i + len(shape)] for i, d in enumerate(shape))
        if math.prod(padded) <= _MOST:
            g.add("Pad", [x, g.constant(pads, np.int64), g.constant(0.5)], padded)


def _gather(g: Generator) -> None:
    if x := g.some():
        shape, axis = g.shapes[x], g.axis(g.shapes[x])
        count = g.random.choice((1, 2, 5))
        chosen = g.constant(g.numbers.integers(-shape[axis], shape[axis], count), np.int64)
        g.add(
            "Gather",
            [x, chosen],
            tuple(count if i == axis % len(shape) else d for i, d in enumerate(shape)),
            axis=axis,
        )


def _expand(g: Generator) -> None:
    if x := g.some():
        shape = tuple(g.random.choice((1, 3)) if d == 1 else d for d in g.shapes[x])
        if math.prod(shape) <= _MOST:
            g.add("Expand", [x, g.constant(shape, np.int64)], shape)


def _resize(g: Generator) -> None:
    if x := g.some(4, 4):
        batch, channels, rows, columns = g.shapes[x]
        shape = (batch, channels, rows * 2, columns * 2)
        if math.prod(shape) <= _MOST:
            mode = g.random.choice(("nearest", "linear"))
            g.add("Resize", [x, "", g.constant([1, 1, 2, 2])], shape, mode=mode)


def _cumulate(g: Generator) -> None:
    if x := g.some():
        squashed = g.add("Tanh", [x], g.shapes[x])
        g.add("CumSum", [squashed, g.constant(g.axis(g.shapes[x]), np.int64)], g.shapes[x])


_KINDS: tuple[Callable[[Generator], None], ...] = (
    *(_unary, _unary, _binary, _binary, _divide, _root, _clip, _where, _compare, _conv, _conv, _conv),
    *(_pool, _global_pool, _matmul, _gemm, _reduce, _normalise, _batch_norm, _transpose, _reshape),
    *(_unsqueeze, _concat, _slice, _pad, _gather, _expand, _resize, _cumulate),
)


def histogram(count: int, first: int = 0) -> Counter[str]:
    """How often each operator occurs in the graphs of these seeds."""
    return Counter(
        node.op_type for seed in range(first, first + count) for node in Generator(seed).model().graph.node
    )


def case(seed: int, place: Path) -> str:
    """Compile one graph for a target, run it, and compare its outputs with onnxruntime's."""
    generator = Generator(seed)
    path = place / f"{seed}.onnx"
    onnx.save(generator.model(), path)
    target = TARGETS[seed % len(TARGETS)]
    try:
        with wg.load(path) as reference, wg.load(wg.compile(path, target=target)) as session:
            rng = np.random.default_rng(seed)
            feeds = {s.name: rng.normal(0, 1, s.static_shape).astype(s.dtype) for s in session.inputs}
            expected, actual = reference.run(feeds), session.run(feeds)
    finally:
        path.unlink()
    for name, value in expected.items():
        close, apart = is_close(actual[name], value)
        if not close:
            return f"disagrees: {target}, {name} by {apart:.1e}"
    return f"agrees: {target}"
