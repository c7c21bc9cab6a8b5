"""Resize, axis by axis. The input elements of each output and their weights are computed at compile time.

Coordinates, nearest modes and weights are those of ONNX's operator documentation; the cubic kernel is
Keys', "Cubic convolution interpolation for digital image processing", 1981.
"""

from __future__ import annotations

from itertools import product
from math import ceil, floor
from typing import Any

import numpy as np
from tvm import te

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, integers, required, shape_of
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
    factors, wanted = _sizes(op, tuple(map(int, shape)), axes, scales, sizes)
    mode = op.attr("coordinate_transformation_mode", "half_pixel")
    if op.opset < 11:
        mode = "asymmetric"
    dtype = dtype_of(data)
    whole = not dtype.startswith("float") and op.attr("mode", "nearest") != "nearest"
    found = op("Cast", data, to=1) if whole else data
    together: list[tuple[int, Array, Array]] = []
    for n, axis in enumerate(axes):
        region = (0.0, 1.0)
        if mode == "tf_crop_and_resize":
            bounds = required(roi).reshape(2, -1)
            region = (float(bounds[0, n]), float(bounds[1, n]))
        if factors[n] == 1 and wanted[n] == shape[axis] and region == (0.0, 1.0):
            continue
        at = _coordinates(mode, shape[axis], wanted[n], factors[n], region)
        indices, weights, outside = _taps(op, at, shape[axis], factors[n])
        fill = op.attr("extrapolation_value", 0.0) if mode == "tf_crop_and_resize" else None
        if whole and fill is None and not op.attr("antialias", 0):
            if indices.shape[1] == 2:  # as in onnxruntime: a difference of 1e-7 matters
                narrow = _coordinates(mode, shape[axis], wanted[n], factors[n], region, np.float32)
                place = np.clip(narrow, 0, np.float32(shape[axis] - 1))
                low = place.astype(np.int64)
                indices = np.stack([low, np.minimum(low + 1, shape[axis] - 1)], axis=1)
                weights = np.abs(place[:, None] - indices.astype(np.float32))[:, ::-1]
                weights = np.where(indices[:, :1] == indices[:, 1:], np.float32(0.5), weights)
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


def _interpolate_together(op: Operator, data: Value, axes: list[tuple[int, Array, Array]]) -> Any:
    """Interpolate along all axes at once. Before truncation, the order of additions affects the result."""
    shape = list(shape_of(data))
    for axis, indices, _ in axes:
        shape[axis] = len(indices)
    taps = list(product(*(range(indices.shape[1]) for _, indices, _ in axes)))

    def compute(x: te.Tensor, *tables: te.Tensor) -> te.Tensor:
        def one(*i: Any) -> Any:
            total = None
            for chosen in taps:
                source, factor = list(i), None
                for n in reversed(range(len(axes))):
                    axis, tap = axes[n][0], chosen[n]
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
        for table in (indices.astype(np.int32), weights.astype(np.float32))
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
    op: Operator, shape: tuple[int, ...], axes: list[int], scales: Value, sizes: Value
) -> tuple[list[float], list[int]]:
    """Each axis's scale, and the size of the result."""
    if sizes is None:
        given = [float(s) for s in required(scales).reshape(-1)]
        return given, [floor(s * shape[a]) for s, a in zip(given, axes, strict=True)]
    wanted = integers(sizes)
    given = [w / shape[a] for w, a in zip(wanted, axes, strict=True)]
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        one = min(given) if policy == "not_larger" else max(given)
        return [one] * len(axes), [floor(one * shape[a] + 0.5) for a in axes]
    return given, wanted


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
    indices: Array,
    weights: Array,
    outside: Array,
    fill: float | None,
) -> Any:
    if indices.shape[1] == 1:
        found = op("Gather", data, indices[:, 0], axis=axis)
    else:
        shape = [len(indices) if a == axis else d for a, d in enumerate(shape_of(data))]

        def compute(x: te.Tensor, index: te.Tensor, weight: te.Tensor) -> te.Tensor:
            def one(*i: Any) -> Any:
                total = None
                for tap in range(indices.shape[1]):
                    source = [index(i[axis], tap) if a == axis else v for a, v in enumerate(i)]
                    term = weight(i[axis], tap) * x(*source)
                    total = term if total is None else total + term
                return total

            return te.compute(shape, one, name="resize")

        precise = weights.astype(dtype_of(data))
        found = op.te(compute, data, indices.astype(np.int32), precise)
    if fill is not None and outside.any():
        rank = len(shape_of(data))
        mask = outside.reshape([-1 if a == axis else 1 for a in range(rank)])
        found = op("Where", mask, np.array(fill, dtype_of(found)), found)
    return found


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
