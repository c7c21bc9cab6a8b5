"""What a tensor at the border of a graph is, and the check that feeds meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from wasmgraph.dims import Shape, evaluate
from wasmgraph.errors import FeedError, UsageError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and numpy dtype name (``"float32"``) of one input or output.

    A size of the shape is a number, or an expression over dimensions whose values are known when the graph
    runs (:mod:`wasmgraph.dims`).
    """

    name: str
    shape: Shape
    dtype: str

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape, all of whose sizes are numbers.

        Raises
        ------
        UsageError
            A size depends on a dimension: ask for the shape :meth:`at` its value.
        """
        sizes = tuple(size for size in self.shape if isinstance(size, int))
        if len(sizes) != len(self.shape):
            raise UsageError(f"the shape of {self} depends on dimensions that have no value here.")
        return sizes

    @property
    def nbytes(self) -> int:
        """Size in bytes, without padding, of a static shape."""
        return prod(self.static_shape) * np.dtype(self.dtype).itemsize

    def at(self, values: Mapping[str, int]) -> TensorSpec:
        """The same tensor where each dimension has a value."""
        return replace(self, shape=tuple(evaluate(size, values) for size in self.shape))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> list[Array]:
    """Return the fed arrays in the order of ``specs``.

    Shapes and dtypes must match exactly: a silent cast would change results.

    Raises
    ------
    FeedError
        A name is missing or unknown, a value is not a numpy array, or has another shape or dtype.
    """
    names = {spec.name for spec in specs}
    if names != feeds.keys():
        unknown = [name for name in feeds if name not in names]
        missing = [spec.name for spec in specs if spec.name not in feeds]
        expected = ", ".join(str(spec) for spec in specs)
        faults = [f"no input is called {name!r}" for name in unknown]
        faults += [f"input {name!r} is not given" for name in missing]
        raise FeedError(f"{'; '.join(faults)}. This graph takes {expected or 'no inputs'}.")
    arrays = []
    for spec in specs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise FeedError(
                f"input {spec.name!r} is a {type(array).__name__}; expected a numpy array, {spec}."
            )
        if array.shape != spec.shape or array.dtype != spec.dtype:
            got = TensorSpec(spec.name, array.shape, str(array.dtype))
            raise FeedError(f"input {spec.name!r}: expected {spec}, got {got}.")
        arrays.append(array)
    return arrays
