"""Stage 3's layout: convolutions and pooling run on NHWC, and no tensor is transposed between them.

Every convolution is written as NHWC between two transposes. Each transpose is then moved behind operators
that do not depend on layout (element-wise, concatenation, reductions, reshapes ...) until it meets its
inverse and both vanish. The remaining transposes stand at a model's inputs and outputs, and before
operators that depend on layout.

A tensor's *axes* say how it is stored: its dimension ``i`` is dimension ``axes[i]`` of the stored one,
so a tensor is ``permute_dims(stored, axes)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator

from wasmgraph.compiler.sizes import naming, shape_of
from wasmgraph.dims import Size, is_one, is_zero, product, same, typical

Axes = tuple[int, ...]

_CHANNELS_LAST: Axes = (0, 3, 1, 2)


def _is_tensor(expr: relax.Expr) -> bool:
    return isinstance(expr.ty, relax.TensorType)


def _is_op(expr: Any, name: str) -> bool:
    return isinstance(expr, relax.Call) and isinstance(expr.op, Op) and expr.op.name == name


def _permutation(call: relax.Call) -> Axes:
    rank = len(shape_of(call.args[0]))
    axes = call.attrs.axes
    return tuple(reversed(range(rank))) if axes is None else tuple(int(a) % rank for a in axes)


@mutator
class _TransposeSinker(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        rule = _RULES.get(call.op.name) if isinstance(call.op, Op) else None
        if rule is None:
            return call
        with naming(*call.args, *map(self.bound, call.args)):
            moved = rule(self, call)
            return call if moved is None else moved

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> Any:
        item = self.visit_expr_post_order(item)
        whole = self.bound(item.tuple_value)
        return whole.fields[item.index] if isinstance(whole, relax.Tuple) else item

    def bound(self, expr: relax.Expr) -> relax.Expr:
        """The expression that a variable is finally bound to; any other expression unchanged."""
        while isinstance(expr, relax.Var):
            value = self.lookup_binding(expr)
            if value is None:
                break
            expr = value
        return expr

    def stored(self, tensor: relax.Expr) -> tuple[relax.Expr, Axes]:
        """The stored form of a tensor, and its axes."""
        value = self.bound(tensor)
        if _is_op(value, "relax.permute_dims"):
            return value.args[0], _permutation(value)
        return tensor, tuple(range(len(shape_of(tensor))))

    def store(self, tensor: relax.Expr, axes: Axes) -> relax.Expr:
        """``tensor`` stored with ``axes``; transposed only if necessary."""
        held, have = self.stored(tensor)
        if have == axes:
            return held
        order = [0] * len(axes)
        for mine, its in zip(axes, have, strict=True):
            order[mine] = its
        shape = shape_of(held)
        moving = [i for i in order if not is_one(shape[i])]
        if moving == sorted(moving):  # nothing but dimensions of 1 moves: no copy
            return self.builder_.emit(relax.op.reshape(held, [shape[i] for i in order]))
        return self.builder_.emit(relax.op.permute_dims(held, order))

    def tensor(self, stored: relax.Expr, axes: Axes) -> relax.Expr:
        """The tensor that has this stored form."""
        if axes == tuple(range(len(axes))):
            return stored
        return relax.op.permute_dims(self.builder_.emit(stored), list(axes))


Rule = Callable[[_TransposeSinker, relax.Call], relax.Expr | None]


def _transposed(sinker: _TransposeSinker, tensor: relax.Expr) -> tuple[relax.Expr, Axes] | None:
    """The stored form if it differs from the tensor."""
    held, axes = sinker.stored(tensor)
    return None if axes == tuple(range(len(axes))) else (held, axes)


def _conv2d(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    a = call.attrs
    if (a.data_layout, a.kernel_layout, a.out_layout) != ("NCHW", "OIHW", "NCHW"):
        return None
    data = sinker.store(call.args[0], _CHANNELS_LAST)
    weight = relax.op.permute_dims(call.args[1], [0, 2, 3, 1])
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}
    geometry = {"strides": a.strides, "padding": a.padding, "dilation": a.dilation, "groups": a.groups}
    inside = relax.op.nn.conv2d(data, weight, **geometry, **layouts, out_dtype=a.out_dtype)
    return sinker.tensor(inside, _CHANNELS_LAST)


def _pooling(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    found, a = _transposed(sinker, call.args[0]), call.attrs
    if found is None or found[1] != _CHANNELS_LAST or a.layout != "NCHW" or a.out_layout != "NCHW":
        return None
    data = found[0]
    if call.op.name == "relax.nn.adaptive_avg_pool2d":
        inside = relax.op.nn.adaptive_avg_pool2d(data, a.output_size, layout="NHWC")
    else:
        pool = getattr(relax.op.nn, call.op.name.rsplit(".", 1)[1])
        inside = pool(
            data,
            a.pool_size,
            strides=a.strides,
            padding=a.padding,
            dilation=a.dilation,
            ceil_mode=a.ceil_mode,
            count_include_pad=a.count_include_pad,
            layout="NHWC",
        )
    return sinker.tensor(inside, _CHANNELS_LAST)


def _elementwise(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    tensors = [arg for arg in call.args if _is_tensor(arg)]
    # Of equals, one that is stored transposed: the others follow it.
    largest = max(
        tensors,
        key=lambda t: (len(shape_of(t)), typical(product(shape_of(t))), _transposed(sinker, t) is not None),
    )
    found = _transposed(sinker, largest)
    if found is None:
        return None
    axes = found[1]

    def argument(arg: relax.Expr) -> relax.Expr:
        if not _is_tensor(arg) or not shape_of(arg):
            return arg
        missing = len(axes) - len(shape_of(arg))
        if missing:
            arg = sinker.builder_.emit(relax.op.reshape(arg, [1] * missing + list(shape_of(arg))))
        return sinker.store(arg, axes)

    arguments = [argument(arg) for arg in call.args]
    return sinker.tensor(relax.Call(call.op, arguments, call.attrs, call.ty_args), axes)


def _concat(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    whole = sinker.bound(call.args[0])
    if not isinstance(whole, relax.Tuple) or call.attrs.axis is None:
        return None
    largest = max(whole.fields, key=lambda t: typical(product(shape_of(t))))
    found = _transposed(sinker, largest)
    if found is None:
        return None
    axes = found[1]
    parts = [sinker.store(field, axes) for field in whole.fields]
    return sinker.tensor(relax.op.concat(parts, axes[int(call.attrs.axis)]), axes)


def _split(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    found = _transposed(sinker, call.args[0])
    if found is None:
        return None
    held, axes = found
    a = call.attrs
    where = a.indices_or_sections
    sections = int(where) if isinstance(where, (int, tvm.tirx.IntImm)) else [int(i) for i in where]
    parts = sinker.builder_.emit(relax.op.split(held, sections, axes[int(a.axis)]))
    count = len(parts.ty.fields)
    return relax.Tuple(
        [sinker.builder_.emit(sinker.tensor(relax.TupleGetItem(parts, i), axes)) for i in range(count)]
    )


def _reduction(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    found, a = _transposed(sinker, call.args[0]), call.attrs
    if found is None or a.axis is None:
        return None
    held, axes = found
    rank = len(axes)
    reduced = [int(i) % rank for i in a.axis]
    reduce = getattr(relax.op, call.op.name.rsplit(".", 1)[1])
    inside = reduce(held, [axes[i] for i in reduced], bool(a.keepdims))
    if a.keepdims:
        return sinker.tensor(inside, axes)
    left = sorted(axes[i] for i in range(rank) if i not in reduced)
    return sinker.tensor(inside, tuple(left.index(axes[i]) for i in range(rank) if i not in reduced))


def _softmax(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    """Of the innermost dimension of what is stored: its rule computes a row at a time."""
    held, axes = sinker.stored(call.args[0])
    at, last = axes[int(call.attrs.axis)], len(axes) - 1
    if at != last:
        axes = tuple(last if axis == at else axis - (axis > at) for axis in axes)
        held = sinker.store(call.args[0], axes)
    elif axes == tuple(range(len(axes))):
        return None
    softmax = getattr(relax.op.nn, call.op.name.rsplit(".", 1)[1])
    return sinker.tensor(softmax(held, last), axes)


def _permute(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    held, axes = sinker.stored(call.args[0])
    return sinker.tensor(held, tuple(axes[i] for i in _permutation(call)))


def _reshape(sinker: _TransposeSinker, call: relax.Call) -> relax.Expr | None:
    """Reshape the stored tensor, if dimensions that are joined or parted lie side by side; where they do
    not, they are brought together first, which is the one copy that a channel shuffle needs."""
    found = _transposed(sinker, call.args[0])
    if found is None:
        return None
    held, axes = found
    before, after = shape_of(call.args[0]), shape_of(call)
    groups = _matching_runs(before, after)
    if groups is None:
        return None
    groups.sort(key=lambda group: axes[group[0][0]])
    units = [i for i, size in enumerate(before) if is_one(size)]
    order = [axes[i] for i in units] + [axes[i] for run, _ in groups for i in run]
    stored_axes = [0] * len(axes)
    for position, dimension in enumerate(order):
        stored_axes[dimension] = position
    held = sinker.store(call.args[0], tuple(stored_axes[a] for a in axes))
    units = [i for i, size in enumerate(after) if is_one(size)]
    result = units + [i for _, run in groups for i in run]
    inside = relax.op.reshape(held, [after[i] for i in result])
    return sinker.tensor(inside, tuple(result.index(i) for i in range(len(after))))


def _matching_runs(
    before: Sequence[Size], after: Sequence[Size]
) -> list[tuple[list[int], list[int]]] | None:
    """Shortest runs of dimensions (other than 1) of two shapes that hold equally many elements."""
    left = [i for i, size in enumerate(before) if not is_one(size)]
    right = [i for i, size in enumerate(after) if not is_one(size)]
    if any(map(is_zero, before)) or not left:
        return None
    groups: list[tuple[list[int], list[int]]] = []
    while left:
        if not right:
            return None
        one, other = [left.pop(0)], [right.pop(0)]
        while not same(*(sides := (_elements(before, one), _elements(after, other)))):
            shorter, more = (one, left) if typical(sides[0]) < typical(sides[1]) else (other, right)
            if not more:
                return None  # the runs are equal only because of what open dimensions can be
            shorter.append(more.pop(0))
        groups.append((one, other))
    return groups


def _elements(shape: Sequence[Size], run: Sequence[int]) -> Size:
    return product(shape[i] for i in run)


_UNARY = "abs ceil clip cos erf exp floor log negative round rsqrt sigmoid sign sin sqrt square tanh astype"
_BINARY = "add subtract multiply divide maximum minimum power less less_equal greater greater_equal equal"
_ACTIVATIONS = "relu leakyrelu gelu gelu_tanh silu softplus selu"

_RULES: Mapping[str, Rule] = {
    "relax.nn.conv2d": _conv2d,
    **{f"relax.nn.{name}": _pooling for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")},
    **{f"relax.{name}": _elementwise for name in f"{_UNARY} {_BINARY} where".split()},
    **{f"relax.nn.{name}": _elementwise for name in _ACTIVATIONS.split()},
    "relax.concat": _concat,
    "relax.split": _split,
    **{f"relax.{name}": _reduction for name in ("mean", "sum", "max", "min", "prod")},
    **{f"relax.nn.{name}": _softmax for name in ("softmax", "log_softmax")},
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
}


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
class ChannelsLast:
    """Make a network NHWC."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``, which must spell every reshape as ``reshape``."""
        sinker = _TransposeSinker(mod)
        sinker.builder_.update_func(mod.get_global_var("main"), sinker.visit_expr(mod["main"]))
        return sinker.builder_.get()
