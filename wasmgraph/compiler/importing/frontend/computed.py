"""Dimensions that the graph computes: their names, their bounds, and the tensors that say their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from tvm import relax

from wasmgraph.dims import Dim, Expression, Size
from wasmgraph.dims import most as greatest
from wasmgraph.errors import UnboundDimensionError

_SPARE = 64


class FurtherDimsError(Exception):
    """A walk met dimensions whose names were not set apart before it began."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = list(names)


def declared_shapes(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    """The sizes that a model declares for its tensors, by name; None for those that are no numbers.
    Exporters write 0 for what they do not know."""
    return {
        value.name: [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        for value in (*graph.value_info, *graph.output)
        if (tensor := value.type.tensor_type).HasField("shape")
    }


@dataclass
class Computed:
    """The dimensions that one walk through a graph finds data to decide.

    A dimension is named after the first output of its node: ``y_count``, ``y_count_1`` and so on. Relax
    wants names before a function begins. So those that are not yet ``apart`` get a spare name, which is
    enough to find ``further`` names, with which the walk is done once more.

    Attributes
    ----------
    dims : all open dimensions, to which these are added
    asked : bounds that the user gives, by name
    apart : names that were set apart
    declared : as :func:`declared_shapes`
    counts : by name, the tensors (int64 ``[1]``) that say the values
    """

    dims: dict[str, Dim] = field(default_factory=dict)
    asked: Mapping[str, Dim] = field(default_factory=dict)
    apart: Sequence[str] = ()
    declared: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    counts: dict[str, relax.Expr] = field(default_factory=dict)
    further: list[str] = field(default_factory=list)

    @property
    def reserved(self) -> list[str]:
        """All names that are set apart, the spare ones last."""
        return [*self.apart, *(f"computed_{n}" for n in range(_SPARE))]

    def mark(self) -> tuple[int, int]:
        """The present state, to which :meth:`forget` returns."""
        return len(self.counts), len(self.further)

    def forget(self, mark: tuple[int, int]) -> None:
        """Forget the dimensions that were met since a mark."""
        for name in list(self.counts)[mark[0] :]:
            del self.counts[name], self.dims[name]
        del self.further[mark[1] :]

    def dimension(
        self, result: str, most: Size | None, count: relax.Expr, axis: int | None = None
    ) -> Expression:
        """A dimension of a tensor, whose value ``count`` says: at most ``most``, or what the model declares
        for that axis, or what the user asks for.

        Raises
        ------
        UnboundDimensionError
            Nothing bounds it.
        """
        wanted = name = f"{result}_count"
        number = 0
        while name in self.dims or name in self.further:
            number += 1
            name = f"{wanted}_{number}"
        bounds = [] if most is None else [greatest(most)]
        shape = self.declared.get(result, ())
        if axis is not None and axis < len(shape) and (size := shape[axis]) is not None:
            bounds.append(size)
        asked = self.asked.get(name)
        if asked is not None:
            bounds.append(asked.most)
        if not bounds:
            error = UnboundDimensionError(
                f"the size of its result depends on data and has no bound. Give it one, for example with"
                f" --dim {name}=0..1000 (dims={{{name!r}: (0, 1000)}} in Python)"
            )
            error.dim = name
            raise error
        if name not in self.apart:
            self.further.append(name)
            if not self.apart or len(self.further) > _SPARE:
                raise FurtherDimsError(self.further)
            name = f"computed_{len(self.further) - 1}"
        least = 0 if asked is None else min(asked.least, *bounds)
        self.dims[name] = Dim(name, least, min(bounds))
        self.counts[name] = count
        return Expression.of(name)
