"""What a tensor at the border of a graph is, and the check that feeds meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from wasmgraph.dims import Dim, Shape, bounds, evaluate, names, solved
from wasmgraph.errors import FeedError, UsageError
from wasmgraph.text import plain

Array = npt.NDArray[Any]
# What a session is fed: arrays by input name or, where a graph has one input, that one alone.
Feeds = Mapping[str, npt.ArrayLike] | npt.ArrayLike
_SHOWN = 4  # tensors of a side in a signature


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
        """The same tensor where each dimension has a value.

        Raises
        ------
        FeedError
            A size would be negative.
        """
        shape = tuple(evaluate(size, values) for size in self.shape)
        if any(size < 0 for size in shape):
            said = ", ".join(f"{name}={value}" for name, value in values.items())
            raise FeedError(f"{self} would have the shape {shape} at {said}.")
        return replace(self, shape=shape)

    def largest(self, dims: Mapping[str, Dim]) -> TensorSpec:
        """The same tensor where each size is the most that it can be."""
        return replace(self, shape=tuple(max(0, bounds(size, dims)[1]) for size in self.shape))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        return f"TensorSpec({self.name!r}, {self.shape}, {self.dtype!r})"


@cache
def _dtype(name: str) -> np.dtype[Any] | None:
    """The dtype of that name; None where numpy has none (an ``.onnx`` file's may be "string")."""
    try:
        return np.dtype(name)
    except TypeError:
        return None


def signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """What a graph takes and gives, on one line: ``x: float32[1, 3] → y: float32[1, 10]``."""

    def side(specs: Sequence[TensorSpec]) -> str:
        more = [f"{len(specs) - _SHOWN} more"] if len(specs) > _SHOWN else []
        return ", ".join([*map(str, specs[:_SHOWN]), *more]) or "nothing"

    return plain(f"{side(inputs)} → {side(outputs)}")


def noise(specs: Sequence[TensorSpec], rng: np.random.Generator) -> dict[str, Array]:
    """Feeds of the given shapes: standard normal numbers; of integers and truth values 0 and 1, because
    these are usually indices, tokens or masks, for which other values would be out of range."""
    return {
        s.name: rng.normal(0, 1, s.static_shape).astype(s.dtype)
        if s.dtype.startswith("float")
        else rng.integers(0, 2, s.static_shape).astype(s.dtype)
        for s in specs
    }


def check_feeds(specs: Sequence[TensorSpec], feeds: Feeds, strict: bool = True) -> list[Array]:
    """Return the fed arrays in the order of ``specs``, whose shapes are closed.

    Shapes must match exactly, and dtypes too, but for the order of bytes: a silent cast would change
    results. With ``strict=False``, what is no array becomes one, and arrays are cast where numpy's
    ``same_kind`` allows it (between widths of floats, between widths of integers, from integers to floats)
    and no value overflows.

    Raises
    ------
    FeedError
        A name is missing or unknown, a value is not a numpy array, or has another shape or dtype.
    """
    feeds = _named(specs, feeds)
    arrays = []
    for spec in specs:
        array: Any = feeds[spec.name]
        plain = type(array) is np.ndarray and array.dtype is _dtype(spec.dtype)
        arrays.append(array if plain and array.shape == spec.shape else _fitted(spec, array, strict))
    return arrays


def _named(specs: Sequence[TensorSpec], feeds: Feeds) -> Mapping[str, Any]:
    """The feeds by name, which are those of ``specs``."""
    if type(feeds) is not dict and not isinstance(feeds, Mapping):
        if len(specs) != 1:
            raise FeedError(
                f"the feeds are a {type(feeds).__name__}; expected a mapping of input names to arrays."
                f" {_takes(specs)}"
            )
        feeds = {specs[0].name: feeds}
    names = {spec.name for spec in specs}
    if names != feeds.keys():
        unknown = [name for name in feeds if name not in names]
        missing = [spec.name for spec in specs if spec.name not in feeds]
        faults = [f"no input is called {name!r}" for name in unknown]
        faults += [f"input {name!r} is not given" for name in missing]
        raise FeedError(f"{'; '.join(faults)}. {_takes(specs)}")
    return feeds


def check_values(dims: Sequence[Dim], values: Mapping[str, int]) -> None:
    """Raise FeedError if a value belongs to no dimension, or if a dimension has none, or one out of its
    bounds."""
    for name in values:
        if name not in {dim.name for dim in dims}:
            there = ", ".join(dim.name for dim in dims) or "none"
            raise FeedError(f"no dimension is called {name!r}; this graph's are {there}.")
    for dim in dims:
        if dim.name not in values:
            raise FeedError(
                f"no input says what the dimension {dim.name!r} is: give it,"
                f" run(feeds, dims={{{dim.name!r}: {dim.least}}}) (--dim {dim.name}={dim.least})."
            )
        value = values[dim.name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise FeedError(f"the dimension {dim.name!r} is {value!r}; expected a whole number.")
        if not dim.least <= value <= dim.most:
            raise FeedError(
                f"the dimension {dim.name!r} is {value}; this graph was compiled for {dim.least} to"
                f" {dim.most}."
            )


class OpenInputs:
    """Inputs whose shapes depend on dimensions. What was found for the shapes that were fed is kept."""

    _MOST = 1024

    def __init__(self, dims: Sequence[Dim], specs: Sequence[TensorSpec]) -> None:
        self._dims, self._specs = dims, specs
        self._found: dict[Any, tuple[dict[str, int], list[TensorSpec]]] = {}

    def at(self, feeds: Feeds, given: Mapping[str, int]) -> tuple[Mapping[str, int], list[TensorSpec]]:
        """The values of dimensions, as :func:`values_of`, and the inputs at these."""
        key = self._key(feeds, given)
        found = None if key is None else self._found.get(key)
        if found is None:
            values = values_of(self._dims, self._specs, feeds, given)
            found = values, [spec.at(values) for spec in self._specs]
            if key is not None:
                if len(self._found) >= self._MOST:
                    self._found.clear()
                self._found[key] = found
        return found

    @staticmethod
    def _key(feeds: Feeds, given: Mapping[str, int]) -> tuple[Any, ...] | None:
        """What decides the values; None where a feed is no plain array, or a value no plain number."""
        if not isinstance(feeds, dict) or any(type(array) is not np.ndarray for array in feeds.values()):
            return None
        if given and any(type(value) is not int for value in given.values()):
            return None
        return (*feeds, *(array.shape for array in feeds.values()), *given.items())


def values_of(
    dims: Sequence[Dim], specs: Sequence[TensorSpec], feeds: Feeds, given: Mapping[str, int]
) -> dict[str, int]:
    """The values of dimensions: those that are given, and for the others what the shapes of the feeds say.

    Raises
    ------
    FeedError
        No input says what a dimension is, two disagree about it, or its value is out of its bounds.
    """
    feeds = _named(specs, feeds)
    bound = {dim.name: dim for dim in dims}
    for spec in specs:
        rank = len(np.shape(feeds[spec.name]))
        if rank != len(spec.shape):
            got = list(np.shape(feeds[spec.name]))
            raise FeedError(f"input {spec.name!r}: expected {spec}, got an array of shape {got}.")
    sizes = [
        (size, number, spec)
        for spec in specs
        for size, number in zip(spec.shape, np.shape(feeds[spec.name]), strict=False)
        if not isinstance(size, int)
    ]
    try:
        values = solved([(size, number) for size, number, _ in sizes], bound, dict(given))
    except OverflowError as error:  # numpy's own
        raise FeedError(str(error)) from error
    check_values(dims, values)
    for size, number, spec in sizes:
        if evaluate(size, values) != number:
            by = " and ".join(f"{name}={values[name]}" for name in sorted(names(size)))
            others = [s.name for z, _, s in sizes if s is not spec and names(z) & names(size)]
            where = f" at {others[0]!r}" if others and not given else ""
            raise FeedError(
                f"input {spec.name!r}: expected {spec}, got {list(np.shape(feeds[spec.name]))}, where"
                f" {size} is {number}; {by}{where}."
            )
    return {dim.name: int(values[dim.name]) for dim in dims}


def _takes(specs: Sequence[TensorSpec]) -> str:
    return f"This graph takes {', '.join(map(str, specs)) or 'no inputs'}."


def _fitted(spec: TensorSpec, value: Any, strict: bool) -> Array:
    """What a feed that is not a plain array of the wanted shape and dtype stands for."""
    array = _array(spec, value, strict)
    dtype = _dtype(spec.dtype)
    if array.shape != spec.shape:
        raise FeedError(f"input {spec.name!r}: expected {spec}, got {_described(spec, array)}.")
    if dtype is None or array.dtype.newbyteorder("=") == dtype:
        return array if dtype is None else array.astype(dtype, copy=False)
    wrong = f"input {spec.name!r}: expected {spec}, got {_described(spec, array)}"
    # What was no array had no dtype: whether its integers have a sign is judged by their values.
    kinds = array.dtype.kind + dtype.kind
    untyped = not hasattr(value, "dtype") and (not array.size or kinds in ("iu", "ui"))
    if not (np.can_cast(array.dtype, dtype, "same_kind") or untyped):
        remedy = f" If that is meant: .astype({spec.dtype!r})." if array.dtype.kind in "biufc" else ""
        raise FeedError(f"{wrong}, which no cast keeps the values of.{remedy}")
    if strict:
        raise FeedError(
            f"{wrong}. Cast it with .astype({spec.dtype!r}), or have it cast by run(feeds, strict=False)"
            " (--no-strict on the command line)."
        )
    try:
        with np.errstate(over="raise"):
            cast = array.astype(dtype)
    except FloatingPointError as error:
        raise FeedError(f"{wrong}, with values that {spec.dtype} cannot hold.") from error
    if dtype.kind in "iu" and not np.array_equal(cast, array):
        raise FeedError(f"{wrong}, with values that {spec.dtype} cannot hold.")
    return cast


def _array(spec: TensorSpec, value: Any, strict: bool) -> Array:
    """A feed as an array; numpy's own numbers are arrays without dimensions."""
    if isinstance(value, np.ma.MaskedArray):
        raise FeedError(
            f"input {spec.name!r} is a masked array, and a graph knows no mask; expected {spec}. Fill what"
            " is masked, for example with .filled(0)."
        )
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    wrong = f"input {spec.name!r} is a {type(value).__name__}; expected a numpy array, {spec}"
    if value is None or isinstance(value, str | bytes | Mapping):
        raise FeedError(f"{wrong}.")
    if strict:
        raise FeedError(
            f"{wrong}. Convert it with np.asarray(x, {spec.dtype!r}), or have it converted by"
            " run(feeds, strict=False)."
        )
    try:
        return np.asarray(value)
    except Exception as error:  # whatever __array__ of a foreign type raises; ragged lists
        raise FeedError(f"{wrong}; numpy makes none of it: {error}") from error


def _described(spec: TensorSpec, array: Array) -> TensorSpec:
    return TensorSpec(spec.name, array.shape, str(array.dtype))
