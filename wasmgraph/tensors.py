"""What a tensor at the border of a graph is, and the check that feeds meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from wasmgraph.errors import FeedError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, static shape and numpy dtype name (``"float32"``) of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes, without padding."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

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
