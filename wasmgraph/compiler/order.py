"""The order of the steps: each after those that compute the tensors, and the dimensions, that it uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tvm import relax
from tvm.ir import PrimType

from wasmgraph.compiler.sizes import shape_of, size_of
from wasmgraph.dims import names


def in_order(
    main: relax.Function, counts: Mapping[tuple[relax.Var, int], Sequence[str]]
) -> Iterator[relax.Binding]:
    """The bindings of ``main``, each after those that compute the dimensions that it uses: Relax knows only
    of tensors, and fusion may place a kernel before the one that says how large its result is."""
    bindings = {b.var: b for block in main.body.blocks for b in block.bindings}
    makers = {name: var for (var, _), names_of in counts.items() for name in names_of}
    done: set[relax.Var] = set()

    def before(binding: relax.Binding) -> Iterator[relax.Var]:
        yield from (v for v in relax.analysis.free_vars(binding.value) if v in bindings)
        used = [*_dims_in(binding.value), *_dims_in(binding.var)]
        yield from (makers[name] for name in used if name in makers and makers[name] != binding.var)

    for first in bindings.values():
        waiting = [first]
        while waiting:
            binding = waiting[-1]
            left = [] if binding.var in done else [v for v in before(binding) if v not in done]
            if left:
                waiting.append(bindings[left[0]])
                continue
            waiting.pop()
            if binding.var not in done:
                done.add(binding.var)
                yield binding


def _dims_in(expression: relax.Expr) -> list[str]:
    """The names of dimensions in the types of an expression and of its arguments."""
    fields = [expression]
    if isinstance(expression, relax.Call):
        fields += [f for a in expression.args for f in (a.fields if isinstance(a, relax.Tuple) else [a])]
    found: list[str] = []
    for field in fields:
        if isinstance(field.ty, PrimType):
            found += names(size_of(field))
            continue
        types = field.ty.fields if isinstance(field.ty, relax.TupleType) else [field.ty]
        for ty in types:
            if isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr):
                found += [name for size in shape_of(ty) for name in names(size)]
    return found


def counted(main: relax.Function, names: Sequence[str]) -> dict[tuple[relax.Var, int], list[str]]:
    """Which results of which calls are the last tensors that ``main`` returns."""
    bound = {b.var: b.value for block in main.body.blocks for b in block.bindings}

    def source(value: relax.Expr) -> relax.Expr:
        while isinstance(value, relax.Var) and not isinstance(bound[value], relax.Call):
            value = bound[value]
        return value

    found: dict[tuple[relax.Var, int], list[str]] = {}
    for field, name in zip(source(main.body.body).fields[-len(names) :], names, strict=True):
        value = source(field)
        if isinstance(value, relax.TupleGetItem):
            found.setdefault((source(value.tuple_value), value.index), []).append(name)
        else:
            found.setdefault((value, 0), []).append(name)
    return found
