"""Pooling with indices, its inverses, and pooling of regions."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.converters.bounds import checked
from wasmgraph.compiler.importing.frontend.converters.convolution import explicit_pads
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, integers, shape_of, size_array


@converts("MaxPool")
def max_pool(op: Operator, data: Value) -> Any:
    """Find the indices by comparing the data with the maxima: the first position in a window that equals
    the maximum, or is NaN."""
    found = op.walk.settle(op.tvm(data))[0]
    if op.outputs == 1:
        return found
    shape, out, kernel = shape_of(data), shape_of(found), tuple(op.attr("kernel_shape"))
    rank = len(kernel)
    before = explicit_pads(op, data, kernel)[:rank]
    strides, dilations = op.attr("strides", [1] * rank), op.attr("dilations", [1] * rank)
    columns = bool(op.attr("storage_order", 0))
    order = range(rank) if columns else reversed(range(rank))
    steps = [0] * rank
    step = 1
    for axis in order:
        steps[axis] = step
        step *= shape[2 + axis]
    last = tirx.max_value("int64")

    def indices(x: te.Tensor, most: te.Tensor) -> te.Tensor:
        window = [te.reduce_axis((0, k), name=f"k{a}") for a, k in enumerate(kernel)]

        def one(n: Any, c: Any, *o: Any) -> Any:
            at = [o[a] * strides[a] + window[a].var * dilations[a] - before[a] for a in range(rank)]
            inside = tirx.all(*(tirx.all(p >= 0, p < d) for p, d in zip(at, shape[2:], strict=True)))
            plane = (n.astype("int64") * shape[1] + c.astype("int64")) * prod(shape[2:])
            place = plane + sum(p.astype("int64") * s for p, s in zip(at, steps, strict=True))
            value = x(n, c, *at)
            holds = value == most(n, c, *o)
            if dtype_of(data).startswith("float"):
                holds = tirx.any(holds, tirx.isnan(value))
            same = tirx.if_then_else(inside, holds, tirx.const(False, "bool"))
            return te.min(tirx.Select(same, place, last), axis=window)

        return te.compute(out, one, name="indices")

    return found, op.te(indices, data, found)


@converts("MaxUnpool")
def max_unpool(op: Operator, data: Value, indices: Value, shape: Value = None) -> Any:
    """Write the maxima back to their positions, with zeros elsewhere."""
    kernel = op.attr("kernel_shape")
    rank = len(kernel)
    strides, pads = op.attr("strides", [1] * rank), op.attr("pads", [0] * 2 * rank)
    size = shape_of(data)
    natural = [
        *size[:2],
        *((size[2 + a] - 1) * strides[a] + kernel[a] - pads[a] - pads[a + rank] for a in range(rank)),
    ]
    flat = size_array([-1])
    values, places = op("Reshape", data, flat), op("Reshape", indices, flat)
    empty = np.zeros(prod(natural), dtype_of(data))
    found = op("Reshape", op("ScatterElements", empty, places, values, axis=0), size_array(natural))
    if shape is None or integers(shape) == natural:
        return found
    rest = [w - d for w, d in zip(integers(shape), natural, strict=True)]
    return op("Pad", found, size_array([0] * len(rest) + rest))


@converts("Col2Im")
def col2im(op: Operator, data: Value, image: Value, block: Value) -> Any:
    """Assemble an image from columns of blocks; overlapping blocks are summed."""
    size, kernel = integers(image), integers(block)
    rank = len(size)
    strides, dilations = op.attr("strides", [1] * rank), op.attr("dilations", [1] * rank)
    pads = op.attr("pads", [0] * 2 * rank)
    n, rows, _ = shape_of(data)
    channels = rows // prod(kernel)
    counts = [
        (size[a] + pads[a] + pads[a + rank] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(rank)
    ]
    columns = op("Reshape", data, size_array([n, channels, *kernel, *counts]))

    def compute(x: te.Tensor) -> te.Tensor:
        window = [te.reduce_axis((0, k), name=f"k{a}") for a, k in enumerate(kernel)]

        def one(b: Any, c: Any, *o: Any) -> Any:
            shifted = [o[a] + pads[a] - window[a].var * dilations[a] for a in range(rank)]
            at = [tirx.floordiv(v, strides[a]) for a, v in enumerate(shifted)]
            inside = [
                tirx.all(v >= 0, tirx.floormod(v, strides[a]) == 0, at[a] < counts[a])
                for a, v in enumerate(shifted)
            ]
            ks = [k.var for k in window]
            zero = tirx.const(0, dtype_of(data))
            return te.sum(tirx.if_then_else(tirx.all(*inside), x(b, c, *ks, *at), zero), axis=window)

        return te.compute([n, channels, *size], one, name="col2im")

    return op.te(compute, columns)


@converts("RoiAlign")
def roi_align(op: Operator, data: Value, rois: Value, batches: Value) -> Any:
    """Average the bilinear samples, or take the largest contribution of any sample's four corners.

    The offset of half a pixel is in pixels of the data, but TVM subtracts it from the regions before
    scaling them. The regions are therefore moved to compensate.
    """
    batches = checked(op, batches, shape_of(data)[0], first=0)
    half = op.opset >= 16 and op.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scale = float(op.attr("spatial_scale", 1.0))
    if op.attr("mode", "avg") == "max":
        return _roi_maxima(op, data, rois, batches, 0.5 if half else 0.0, scale)
    if half and scale != 1:
        rois = op("Add", rois, np.array(0.5 - 0.5 / scale, dtype_of(rois)))
    return op.tvm(data, rois, batches)


def _roi_maxima(
    op: Operator, data: Value, rois: Value, batches: Value, offset: float, scale: float
) -> relax.Expr:
    """RoiAlign of mode ``max``, as in ONNX's reference and onnxruntime: each corner is multiplied by its
    weight, and the largest product over all samples is the result. Without a ``sampling_ratio`` there are
    as many samples per bin as a bin has pixels."""
    rows, columns = int(op.attr("output_height", 1)), int(op.attr("output_width", 1))
    ratio, dtype = int(op.attr("sampling_ratio", 0)), dtype_of(data)
    _, channels, height, width = shape_of(data)

    def number(value: float) -> Any:
        return tirx.const(value, dtype)

    def compute(x: te.Tensor, regions: te.Tensor, images: te.Tensor) -> te.Tensor:
        def one(r: Any, c: Any, i: Any, j: Any) -> Any:
            left, top, right, bottom = (regions[r, k] * number(scale) - number(offset) for k in range(4))
            sizes = bottom - top, right - left
            if not offset:
                sizes = tuple(tirx.max(size, number(1)) for size in sizes)
            bins = sizes[0] / number(rows), sizes[1] / number(columns)
            counts = [tirx.const(ratio, "int32") if ratio > 0 else te.ceil(b).astype("int32") for b in bins]
            y, x_ = te.reduce_axis((0, counts[0]), "ky"), te.reduce_axis((0, counts[1]), "kx")
            places = [
                start + at.astype(dtype) * b + (axis.var.astype(dtype) + number(0.5)) * b / n.astype(dtype)
                for start, at, b, axis, n in zip((top, left), (i, j), bins, (y, x_), counts, strict=True)
            ]
            outside = tirx.any(
                *(
                    tirx.any(p < number(-1), p > number(int(size)))
                    for p, size in zip(places, (height, width), strict=True)
                )
            )
            corners = [
                _corners(p, int(size), dtype) for p, size in zip(places, (height, width), strict=True)
            ]
            image = images[r].astype("int32")
            products = [
                wy * wx * x[image, c, at_y, at_x] for at_y, wy in corners[0] for at_x, wx in corners[1]
            ]
            most = products[0]
            for product in products[1:]:
                most = tirx.max(most, product)
            return te.max(tirx.if_then_else(outside, number(0), most), axis=[y, x_])

        return te.compute((shape_of(rois)[0], channels, rows, columns), one, name="roi_maxima")

    return op.te(compute, data, rois, batches)


def _corners(place: Any, size: int, dtype: str) -> list[tuple[Any, Any]]:
    """The two elements around a position on an axis, with their weights."""
    held = tirx.max(place, tirx.const(0, dtype))
    low = tirx.min(te.floor(held).astype("int32"), tirx.const(size - 1, "int32"))
    high = tirx.min(low + 1, tirx.const(size - 1, "int32"))
    inside = tirx.min(held, tirx.const(size - 1, dtype))
    weight = inside - low.astype(dtype)
    return [(low, tirx.const(1, dtype) - weight), (high, weight)]


@converts("MaxRoiPool")
def max_roi_pool(op: Operator, data: Value, rois: Value) -> Any:
    """The first number of a region is the index of its image."""
    batches, corners = op("Split", rois, size_array([1, 4]), axis=1, outputs=2)
    whole = cast_to(op, batches, "int32")
    images = cast_to(op, checked(op, whole, shape_of(data)[0], first=0), dtype_of(rois))
    return op.tvm(data, op("Concat", images, corners, axis=1))
