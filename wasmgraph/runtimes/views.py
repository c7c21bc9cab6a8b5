"""Views of a graph's inputs and outputs in its memory, at the values of its open dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wasmgraph.artifact import Placed
from wasmgraph.dims import names
from wasmgraph.tensors import Array, TensorSpec

_MOST = 1024  # combinations of values whose views are kept


class Views:
    """The views of inputs, or of outputs, made once for each combination of values that shapes use."""

    def __init__(self, tensors: Sequence[Placed]) -> None:
        self._tensors = tensors
        self._names = sorted({name for tensor in tensors for size in tensor.shape for name in names(size)})
        self._made: dict[tuple[int, ...], list[Array]] = {}

    def at(self, values: Mapping[str, int], make: Callable[[Placed, TensorSpec], Array]) -> list[Array]:
        """The views at the values of all dimensions. ``make`` makes one, of a tensor and its spec at these
        values."""
        key = tuple([values[name] for name in self._names])
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _MOST:
                self._made.clear()
            found = [
                make(tensor, tensor.spec.at(values) if values else tensor.spec) for tensor in self._tensors
            ]
            self._made[key] = found
        return found

    def forget(self) -> None:
        """Let go of all views: the memory has moved."""
        self._made.clear()
