"""Sizes of TVM's buffers."""

from __future__ import annotations

from math import prod

import tvm
from tvm import tirx


def tvm_dtype_bytes(dtype: str) -> int:
    """Bytes of one element of a TVM dtype; a boolean takes one."""
    bits: int = tvm.DataType(dtype).bits * tvm.DataType(dtype).lanes
    return max(1, bits // 8)


def buffer_bytes(buffer: tirx.Buffer) -> int:
    """Size of a buffer of static shape."""
    return prod(int(d) for d in buffer.shape) * tvm_dtype_bytes(str(buffer.dtype))
