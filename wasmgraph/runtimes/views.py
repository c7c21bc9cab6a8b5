"""Views of a graph's inputs and outputs in its memory, at the values of its open dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wasmgraph.artifact import Placed
from wasmgraph.tensors import Array, TensorSpec

_MOST = 1024  # combinations of values whose views are kept


class Views:
    """Makes the views of inputs, or of outputs, once for each combination of values. ``make`` is given a
    tensor and its spec at these values."""

    def __init__(self, tensors: Sequence[Placed], make: Callable[[Placed, TensorSpec], Array]) -> None:
        self._tensors, self._make = tensors, make
        self._made: dict[tuple[int, ...], list[Array]] = {}

    def at(self, values: Mapping[str, int]) -> list[Array]:
        """The views; ``values`` has all dimensions, always in the same order."""
        key = tuple(values.values())
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _MOST:
                self._made.clear()
            found = [
                self._make(tensor, tensor.spec.at(values) if values else tensor.spec)
                for tensor in self._tensors
            ]
            self._made[key] = found
        return found

    def forget(self) -> None:
        """Let go of all views: the memory has moved."""
        self._made.clear()
