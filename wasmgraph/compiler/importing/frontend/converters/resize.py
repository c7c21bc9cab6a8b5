"""Resize, axis by axis. The input elements of each output and their weights are computed at compile time; a
kernel computes them where sizes depend on dimensions, or the region on data.

Coordinates, nearest modes and weights are those of ONNX's operator documentation; the cubic kernel is
Keys', "Cubic convolution interpolation for digital image processing", 1981.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import ceil, floor
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.moving import take
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import (
    Value,
    dtype_of,
    is_known,
    required,
    shape_of,
    size_array,
    size_list,
)
from wasmgraph.compiler.sizes import chosen, number
from wasmgraph.dims import Shape, Size, is_closed, operation, same
from wasmgraph.tensors import Array


@converts("Resize")
def resize(op: Operator, data: Value, *rest: Value) -> Any:
    """Interpolate along one axis after the other. Axes whose size and position do not change are skipped.

    Integers are interpolated as float32. At the end, linear interpolation truncates them, as onnxruntime
    does; cubic interpolation, for which onnxruntime has no kernel, rounds them to even, as ONNX's reference
    does. With ``antialias`` they are rounded after each axis, as in onnxruntime.
    """
    roi, scales, sizes = _arguments(op, rest)
    shape = shape_of(data)
    axes = [a % len(shape) for a in op.attr("axes", range(len(shape)))]
    factors, wanted = _sizes(op, shape, axes, scales, sizes)
    mode = op.attr("coordinate_transformation_mode", "half_pixel")
    if op.opset < 11:
        mode = "asymmetric"
    dtype = dtype_of(data)
    whole = not dtype.startswith("float") and op.attr("mode", "nearest") != "nearest"
    found = op("Cast", data, to=1) if whole else data
    together: list[tuple[int, Value, Value]] = []
    fill = op.attr("extrapolation_value", 0.0) if mode == "tf_crop_and_resize" else None
    for n, axis in enumerate(axes):
        size, to, factor = shape[axis], wanted[n], factors[n]
        region = (0.0, 1.0)
        if mode == "tf_crop_and_resize" and is_known(roi):
            bounds = required(roi).reshape(2, -1)
            region = (float(bounds[0, n]), float(bounds[1, n]))
        moving = mode == "tf_crop_and_resize" and not is_known(roi)
        if not moving and same(to, size) and factor in (1, None) and region == (0.0, 1.0):
            continue
        together_too = whole and fill is None and not op.attr("antialias", 0)
        indices: Value
        weights: Value
        outside: Value
        if moving or not (isinstance(size, int) and isinstance(to, int) and factor is not None):
            axis_of = _OpenAxis(op, mode, size, to, factor, n, region)
            indices, weights, outside = axis_of.taps(roi if moving else None, together_too)
        else:
            at = _coordinates(mode, size, to, factor, region)
            indices, weights, outside = _taps(op, at, size, factor)
            if together_too and indices.shape[1] == 2:  # as in onnxruntime: a difference of 1e-7 matters
                narrow = _coordinates(mode, size, to, factor, region, np.float32)
                place = np.clip(narrow, 0, np.float32(size - 1))
                low = place.astype(np.int64)
                indices = np.stack([low, np.minimum(low + 1, size - 1)], axis=1)
                parts = np.abs(place[:, None] - indices.astype(np.float32))[:, ::-1]
                weights = np.where(indices[:, :1] == indices[:, 1:], np.float32(0.5), parts)
        if together_too:
            together.append((axis, indices, weights))
            continue
        found = _interpolate(op, found, axis, indices, weights, outside, fill)
        if whole and op.attr("antialias", 0):
            found = op("Floor", op("Add", found, np.array(0.5, np.float32)))
    if together:
        found = _interpolate_together(op, found, together)
    if whole and op.attr("mode") == "cubic" and not op.attr("antialias", 0):
        found = op("Round", found)
    return cast_to(op, _within(op, found, dtype), dtype) if whole else found


def _interpolate_together(op: Operator, data: Value, axes: list[tuple[int, Value, Value]]) -> Any:
    """Interpolate along all axes at once. Before truncation, the order of additions affects the result."""
    shape = list(shape_of(data))
    for axis, indices, _ in axes:
        shape[axis] = shape_of(indices)[0]
    taps = list(product(*(range(int(shape_of(indices)[1])) for _, indices, _ in axes)))

    def compute(x: te.Tensor, *tables: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            total = None
            for combination in taps:
                source, factor = list(i), None
                for n in reversed(range(len(axes))):
                    axis, tap = axes[n][0], combination[n]
                    source[axis] = tables[2 * n](i[axis], tap)
                    weight = tables[2 * n + 1](i[axis], tap)
                    factor = weight if factor is None else factor * weight
                term = factor * x(*source)
                total = term if total is None else total + term
            return total

        return te.compute(shape, one, name="resize")

    tables = [
        table
        for _, indices, weights in axes
        for table in (cast_to(op, indices, "int32"), cast_to(op, weights, "float32"))
    ]
    return op.te(compute, data, *tables)


def _within(op: Operator, value: Value, dtype: str) -> Any:
    """Clip to the range of a dtype, which cubic interpolation can exceed."""
    limits = np.iinfo(dtype)
    least, most = (np.array(v, np.float32) for v in (limits.min, limits.max))
    return op("Clip", value, least, most)


def _arguments(op: Operator, rest: tuple[Value, ...]) -> tuple[Value, Value, Value]:
    if op.opset < 11:
        return None, rest[0], None
    roi, scales, sizes = (*rest, None, None, None)[:3]
    empty = isinstance(scales, np.ndarray) and scales.size == 0
    return roi, None if empty else scales, sizes


def _sizes(
    op: Operator, shape: Shape, axes: list[int], scales: Value, sizes: Value
) -> tuple[list[float | None], list[Size]]:
    """Each axis's scale, None if it is not a number, and the size of the result."""
    if sizes is None:
        given = [float(s) for s in required(scales).reshape(-1)]
        return list(given), [_scaled(shape[a], s) for s, a in zip(given, axes, strict=True)]
    wanted = size_list(sizes) if is_known(sizes) else op.said_sizes(sizes, [None] * len(axes), axes)
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    if not is_closed([*wanted, *(shape[a] for a in axes)]):
        if policy != "stretch":
            raise op.unsupported(f"to sizes that depend on dimensions, with {policy!r}")
        pairs = list(zip(wanted, axes, strict=True))
        return [int(w) / int(shape[a]) if is_closed([w, shape[a]]) else None for w, a in pairs], wanted
    given = [int(w) / int(shape[a]) for w, a in zip(wanted, axes, strict=True)]
    if policy != "stretch":
        one = min(given) if policy == "not_larger" else max(given)
        return [one] * len(axes), [floor(one * int(shape[a]) + 0.5) for a in axes]
    return list(given), wanted


def _scaled(size: Size, scale: float) -> Size:
    exact = Fraction(scale)
    return operation("//", size * exact.numerator, exact.denominator)


def _coordinates(
    mode: str,
    length: int,
    wanted: int,
    scale: float,
    region: tuple[float, float],
    dtype: type[np.floating[Any]] = np.float64,
) -> Array:
    """The position of each output in the input."""
    x = np.arange(wanted, dtype=dtype)
    scale = float(dtype(scale)) if dtype is np.float64 else dtype(scale)  # type: ignore[assignment]
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjustment = wanted / (scale * length)
        centre = length / 2
        return centre * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if wanted > 1 else np.zeros_like(x)
    if mode == "align_corners":
        # ONNX uses the output size before it is rounded.
        return x * (length - 1) / (scale * length - 1) if wanted > 1 else np.zeros_like(x)
    if mode == "asymmetric":
        return x / scale
    begin, end = region
    if wanted > 1:
        return begin * (length - 1) + x * (end - begin) * (length - 1) / (wanted - 1)
    return np.full_like(x, 0.5 * (begin + end) * (length - 1))


def _taps(op: Operator, at: Array, length: int, scale: float) -> tuple[Array, Array, Array]:
    """For each output, the indices and weights of its inputs, and whether it is outside the input."""
    mode = op.attr("mode", "nearest")
    outside = (at < 0) | (at > length - 1)
    if mode == "nearest":
        index = _nearest(op.attr("nearest_mode", "round_prefer_floor") if op.opset >= 11 else "floor", at)
        return np.clip(index, 0, length - 1)[:, None], np.ones((len(at), 1)), outside
    stretch = min(scale, 1.0) if op.attr("antialias", 0) else 1.0
    reach = 1 if mode == "linear" else 2
    first = np.floor(at).astype(np.int64)
    around = range(-ceil(reach / stretch) + 1, ceil(reach / stretch) + 1)
    indices = first[:, None] + np.array(around)
    distance = np.abs(at[:, None] - indices) * stretch
    if mode == "linear":
        weights = np.maximum(0.0, 1.0 - distance)
    else:
        a = op.attr("cubic_coeff_a", -0.75)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    if op.attr("exclude_outside", 0):
        weights = np.where((indices >= 0) & (indices < length), weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(indices, 0, length - 1), weights, outside


def _nearest(mode: str, at: Array) -> Array:
    rounding = {
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
    }
    return rounding[mode].astype(np.int64)


def _interpolate(
    op: Operator,
    data: Value,
    axis: int,
    indices: Value,
    weights: Value,
    outside: Value,
    fill: float | None,
) -> Any:
    size, taps = shape_of(indices)
    if taps == 1:
        found = take(op, data, op("Reshape", indices, size_array([size])), axis)
    else:
        shape = [size if a == axis else d for a, d in enumerate(shape_of(data))]

        def compute(x: te.Tensor, index: te.Tensor, weight: te.Tensor) -> te.Tensor:
            def one(*i: Any) -> Any:
                total = None
                for tap in range(int(taps)):
                    source = [index(i[axis], tap) if a == axis else v for a, v in enumerate(i)]
                    term = weight(i[axis], tap) * x(*source)
                    total = term if total is None else total + term
                return total

            return te.compute(shape, one, name="resize")

        tables = cast_to(op, indices, "int32"), cast_to(op, weights, dtype_of(data))
        found = op.te(compute, data, *tables)
    if fill is not None and not (isinstance(outside, np.ndarray) and not outside.any()):
        rank = len(shape_of(data))
        mask = op("Reshape", outside, size_array([size if a == axis else 1 for a in range(rank)]))
        found = op("Where", mask, np.array(fill, dtype_of(found)), found)
    return found


@dataclass(frozen=True)
class _OpenAxis:
    """An axis whose places a kernel computes. ``scale`` is None if it is the ratio of the sizes; ``number``
    is the axis's place in a region that data gives."""

    op: Operator
    mode: str
    size: Size
    wanted: Size
    scale: float | None
    number: int
    region: tuple[float, float]

    def taps(self, roi: Value, narrow: bool) -> tuple[Value, Value, Value]:
        """For each output the indices and weights of its inputs, and whether it is outside the input.
        ``narrow`` is as onnxruntime interpolates integers."""
        op = self.op
        if op.attr("antialias", 0):
            raise op.unsupported("with antialias, of sizes that depend on dimensions")
        how = op.attr("mode", "nearest")
        narrow = narrow and how == "linear"
        dtype = "float32" if narrow else "float64"
        count = {"nearest": 1, "linear": 2, "cubic": 4}[how]

        def tables(*region: te.Tensor) -> list[te.Tensor]:
            last = number(self.size - 1, "int64")

            def clip(index: Any) -> Any:
                return tirx.Max(tirx.Min(index, last), tirx.const(0, "int64"))

            def place(i: Any) -> Any:
                return self._at(i, dtype, *region)

            def index(i: Any, tap: int) -> Any:
                if how == "nearest":
                    rounding = op.attr("nearest_mode", "round_prefer_floor") if op.opset >= 11 else "floor"
                    return _round(rounding, place(i))
                first = tirx.floor(place(i)).astype("int64")
                return first + tirx.const(tap - count // 2 + 1, "int64")

            def weight(i: Any, tap: int) -> Any:
                if how == "nearest":
                    return tirx.const(1, dtype)
                if narrow:
                    held = tirx.Max(tirx.Min(place(i), last.astype(dtype)), tirx.const(0, dtype))
                    low = tirx.floor(held)
                    part = held - low if tap else low + tirx.const(1, dtype) - held
                    ends = low >= last.astype(dtype)
                    return tirx.Select(ends, tirx.const(0.5, dtype), part)
                found = _weight(how, tirx.abs(place(i) - index(i, tap).astype(dtype)), self._a)
                if op.attr("exclude_outside", 0):
                    inside = tirx.all(index(i, tap) >= tirx.const(0, "int64"), index(i, tap) <= last)
                    found = tirx.Select(inside, found, tirx.const(0, dtype))
                return found

            def share(i: Any, tap: Any) -> Any:
                weights = [weight(i, n) for n in range(count)]
                if not op.attr("exclude_outside", 0):
                    return chosen(tap, weights)
                return chosen(tap, weights) / sum(weights[1:], weights[0])

            shape = (self.wanted, count)

            def outside(i: Any) -> Any:
                return tirx.any(place(i) < tirx.const(0, dtype), place(i) > last.astype(dtype))

            return [
                te.compute(
                    shape,
                    lambda i, t: clip(chosen(t, [index(i, n) for n in range(count)])).astype("int32"),
                    name="index",
                ),
                te.compute(shape, lambda i, t: share(i, t).astype("float32"), name="weight"),
                te.compute((self.wanted,), outside, name="outside"),
            ]

        given = [] if roi is None else [op("Reshape", roi, size_array([-1]))]
        found = op.walk.te(tables, *given, name="taps", alone=True)
        indices, weights, outside = (op.emit(relax.TupleGetItem(found, n)) for n in range(3))
        return indices, weights, outside

    @property
    def _a(self) -> float:
        return float(self.op.attr("cubic_coeff_a", -0.75))

    def _at(self, i: Any, dtype: str, *region: te.Tensor) -> Any:
        """The position of an output in the input: :func:`_coordinates`."""

        def const(value: float) -> Any:
            return tirx.const(value, dtype)

        # abs, because TVM would take a product of two integers, divided by a float, for one of integers.
        x, length = tirx.abs(i.astype(dtype)), number(self.size, dtype)
        wanted, mode = number(self.wanted, dtype), self.mode
        # The scale is over / under: TVM takes a divisor that is less than 1 for 0.
        exact = Fraction(self.scale or 1)
        over, under = (wanted, length) if self.scale is None else map(const, exact.as_integer_ratio())
        half = (x + const(0.5)) * under / over - const(0.5)
        if mode == "half_pixel":
            return half
        if mode == "half_pixel_symmetric":
            centre = length / const(2)
            return centre * (const(1) - wanted * under / (over * length)) + half
        several = wanted > const(1)
        if mode == "pytorch_half_pixel":
            return tirx.Select(several, half, const(0))
        if mode == "align_corners":
            by = tirx.Max(over * length - under, const(1))
            return tirx.Select(several, x * (length - const(1)) * under / by, const(0))
        if mode == "asymmetric":
            return x * under / over
        if region:
            axes = int(region[0].shape[0]) // 2
            begin = region[0][self.number].astype(dtype)
            end = region[0][self.number + axes].astype(dtype)
        else:
            begin, end = map(const, self.region)
        reach = tirx.Max(wanted - const(1), const(1))
        along = begin * (length - const(1)) + x * (end - begin) * (length - const(1)) / reach
        return tirx.Select(several, along, const(0.5) * (begin + end) * (length - const(1)))


def _round(mode: str, at: Any) -> Any:
    half = tirx.const(0.5, at.ty.dtype)
    rounded = {
        "floor": lambda: tirx.floor(at),
        "ceil": lambda: tirx.ceil(at),
        "round_prefer_floor": lambda: tirx.ceil(at - half),
        "round_prefer_ceil": lambda: tirx.floor(at + half),
    }[mode]()
    return rounded.astype("int64")


def _weight(mode: str, distance: Any, a: float) -> Any:
    dtype = distance.ty.dtype

    def const(value: float) -> Any:
        return tirx.const(value, dtype)

    if mode == "linear":
        return tirx.Max(const(1) - distance, const(0))
    near = (const(a + 2) * distance - const(a + 3)) * distance * distance + const(1)
    far = ((const(a) * distance - const(5 * a)) * distance + const(8 * a)) * distance - const(4 * a)
    beyond = tirx.Select(distance < const(2), far, const(0))
    return tirx.Select(distance <= const(1), near, beyond)


@converts("Upsample")
def upsample(op: Operator, data: Value, scales: Value = None) -> Any:
    """Upsample, the name of Resize before opset 10."""
    factors = np.array(op.attr("scales"), np.float32) if scales is None else scales
    mode = op.attr("mode", "nearest")
    return op(
        "Resize",
        data,
        None,
        factors,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
