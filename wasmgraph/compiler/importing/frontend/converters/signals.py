"""Fourier transforms, in mixed radix: the smallest factor of a length first.

Decimation in frequency (Gentleman & Sande, "Fast Fourier transforms: for fun and profit", 1966). For an odd
factor, pairs of samples are added and subtracted first, which halves the number of products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmgraph.compiler.importing.frontend.converters.arithmetic import cast_to
from wasmgraph.compiler.importing.frontend.graph import Operator, converts
from wasmgraph.compiler.importing.frontend.values import Value, dtype_of, scalar, shape_of, size_array
from wasmgraph.tensors import Array

_LARGEST_RADIX = 31  # larger prime factors are transformed by a matrix product

Complex = tuple[Any, Any]


def _roots(count: int, powers: Array, inverse: bool, dtype: str) -> tuple[Array, Array]:
    """Real and imaginary parts of powers of the root of unity."""
    angle = (2 if inverse else -2) * np.pi * (powers % count) / count
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def _product(op: Operator, x: Complex, w: tuple[Array, Array]) -> Complex:
    real = op("Sub", op("Mul", x[0], w[0]), op("Mul", x[1], w[1]))
    return real, op("Add", op("Mul", x[0], w[1]), op("Mul", x[1], w[0]))


def _butterfly(op: Operator, x: list[Complex], inverse: bool, dtype: str) -> list[Complex]:
    """The transform of the numbers in ``x``, of which there are two or an odd count."""

    def both(kind: str, a: Complex, b: Complex) -> Complex:
        return op(kind, a[0], b[0]), op(kind, a[1], b[1])

    count = len(x)
    if count == 2:
        return [both("Add", *x), both("Sub", *x)]
    pairs = range(1, count // 2 + 1)
    sums = {j: both("Add", x[j], x[count - j]) for j in pairs}
    gaps = {j: both("Sub", x[j], x[count - j]) for j in pairs}
    found: list[Any] = [x[0]] + [None] * (count - 1)
    for j in pairs:
        found[0] = both("Add", found[0], sums[j])
    for k in pairs:
        even, odd = x[0], None
        for j in pairs:
            cos, sin = _roots(count, np.array(j * k), inverse, dtype)
            even = both("Add", even, (op("Mul", sums[j][0], cos), op("Mul", sums[j][1], cos)))
            turned = (op("Mul", gaps[j][1], sin), op("Mul", gaps[j][0], sin))
            odd = turned if odd is None else both("Add", odd, turned)
        assert odd is not None
        found[k] = op("Sub", even[0], odd[0]), op("Add", even[1], odd[1])
        found[count - k] = op("Add", even[0], odd[0]), op("Sub", even[1], odd[1])
    return found


def _fft(op: Operator, x: Complex, length: int, inverse: bool) -> Complex:
    """The transform along the last axis, not divided by its length."""
    if length == 1:
        return x
    shape, dtype = shape_of(x[0]), dtype_of(x[0])
    radix = next(r for r in range(2, length + 1) if length % r == 0)
    if radix > _LARGEST_RADIX:
        radix = length
        cos, sin = _roots(length, np.outer(np.arange(length), np.arange(length)), inverse, dtype)
        real = op("Sub", op("MatMul", x[0], cos), op("MatMul", x[1], sin))
        return real, op("Add", op("MatMul", x[0], sin), op("MatMul", x[1], cos))
    rest, axis = length // radix, len(shape) - 1
    apart = size_array([*shape[:-1], radix, rest])
    real, imaginary = (op("Reshape", part, apart) for part in x)
    samples = [
        (op("Gather", real, np.array(j), axis=axis), op("Gather", imaginary, np.array(j), axis=axis))
        for j in range(radix)
    ]
    found = _butterfly(op, samples, inverse, dtype)
    if rest > 1:
        twiddled = (
            _product(op, f, _roots(length, k * np.arange(rest), inverse, dtype))
            for k, f in enumerate(found[1:], 1)
        )
        found = [found[0], *twiddled]
    place = size_array([axis])
    stacked = tuple(
        op("Concat", *(op("Unsqueeze", f[part], place) for f in found), axis=axis) for part in (0, 1)
    )
    real, imaginary = _fft(op, (stacked[0], stacked[1]), rest, inverse)
    order = [*range(axis), axis + 1, axis]
    whole = size_array([*shape[:-1], length])
    back = [op("Reshape", op("Transpose", part, perm=order), whole) for part in (real, imaginary)]
    return back[0], back[1]


def _transform(op: Operator, real: Value, imaginary: Value, length: int, inverse: bool) -> Complex:
    """The transform along the last axis, which is truncated or padded with zeros to ``length``.

    The forward transform is computed in float64, so that frequencies that cancel become 0; the inverse is
    computed in the tensor's own dtype. ONNX's reference does the same.
    """
    precise = dtype_of(real) if inverse else "float64"
    original, real = dtype_of(real), cast_to(op, real, precise)
    imaginary = None if imaginary is None else cast_to(op, imaginary, precise)
    shape, dtype = list(shape_of(real)), precise
    if imaginary is None:
        imaginary = np.zeros(shape, dtype)

    def fitted(value: Value) -> Any:
        if shape[-1] >= length:
            return op("Slice", value, *(size_array([n]) for n in (0, length, len(shape) - 1)))
        fill = np.zeros([*shape[:-1], length - shape[-1]], dtype)
        return op("Concat", value, fill, axis=len(shape) - 1)

    found = _fft(op, (fitted(real), fitted(imaginary)), length, inverse)
    if inverse:
        factor = np.array(1 / length, dtype)
        return op("Mul", found[0], factor), op("Mul", found[1], factor)
    return cast_to(op, found[0], original), cast_to(op, found[1], original)


def _part(op: Operator, data: Value, number: int) -> Any:
    return op("Gather", data, size_array(number), axis=len(shape_of(data)) - 1)


def _pair(op: Operator, real: Value, imaginary: Value) -> Any:
    last = size_array([len(shape_of(real))])
    return op("Concat", op("Unsqueeze", real, last), op("Unsqueeze", imaginary, last), axis=-1)


@converts("DFT")
def dft(op: Operator, data: Value, length: Value = None, axis: Value = None) -> Any:
    """The last axis has size 2 for complex numbers, and size 1 for real numbers."""
    rank = len(shape_of(data))
    along = scalar(axis, -2) if op.opset >= 20 else int(op.attr("axis", 1))
    along %= rank
    inverse, onesided = bool(op.attr("inverse", 0)), bool(op.attr("onesided", 0))
    real = _part(op, data, 0)
    imaginary = _part(op, data, 1) if shape_of(data)[-1] == 2 else None
    order = [a for a in range(rank - 1) if a != along] + [along]
    back = list(np.argsort(order))
    real = op("Transpose", real, perm=order)
    imaginary = None if imaginary is None else op("Transpose", imaginary, perm=order)
    if inverse and onesided:
        count = scalar(length, 2 * (shape_of(real)[-1] - 1))
        real, imaginary = _mirrored(op, real, imaginary, count)
        found, _ = _transform(op, real, imaginary, count, inverse)
        found = op("Transpose", found, perm=[int(a) for a in back])
        return op("Unsqueeze", found, size_array([rank - 1]))
    count = scalar(length, shape_of(real)[-1])
    parts = list(_transform(op, real, imaginary, count, inverse))
    if onesided:
        kept = (0, count // 2 + 1, rank - 2)
        parts = [op("Slice", p, *(size_array([n]) for n in kept)) for p in parts]
    return _pair(op, *(op("Transpose", p, perm=[int(a) for a in back]) for p in parts))


def _mirrored(op: Operator, real: Value, imaginary: Value, count: int) -> tuple[Any, Any]:
    """Complete the frequencies of a real signal from their first half."""
    axis = len(shape_of(real)) - 1
    half = shape_of(real)[-1]
    if imaginary is None:
        imaginary = np.zeros(shape_of(real), dtype_of(real))
    rest = size_array([count - k for k in range(half, count)])
    if not len(rest):
        return real, imaginary
    mirrored = op("Neg", op("Gather", imaginary, rest, axis=axis))
    return (
        op("Concat", real, op("Gather", real, rest, axis=axis), axis=axis),
        op("Concat", imaginary, mirrored, axis=axis),
    )


@converts("STFT")
def stft(
    op: Operator, signal: Value, frame_step: Value, window: Value = None, frame_length: Value = None
) -> Any:
    """Transforms of overlapping frames."""
    step = int(scalar(frame_step))
    length = int(scalar(frame_length, shape_of(window)[0] if window is not None else None))
    shape = shape_of(signal)
    frames = (shape[1] - length) // step + 1
    places = np.arange(frames)[:, None] * step + np.arange(length)

    def framed(number: int) -> Any:
        part = _part(op, signal, number) if len(shape) == 3 else signal
        taken = op("Gather", part, places.astype(np.int64), axis=1)
        return taken if window is None else op("Mul", taken, window)

    imaginary = framed(1) if len(shape) == 3 and shape[2] == 2 else None
    parts = list(_transform(op, framed(0), imaginary, length, False))
    if op.attr("onesided", 1):
        kept = (0, length // 2 + 1, 2)
        parts = [op("Slice", p, *(size_array([n]) for n in kept)) for p in parts]
    return _pair(op, *parts)
