"""Constants of a module without copies: arrays that TVM shares, and that a large model has in files.

TVM takes an array as it is where it begins at a multiple of 64 bytes. Tensors of a large model lie in
temporary files that are mapped into memory. A stage that is done with one lets its pages go, so that a
model and what becomes of it need not fit into memory together.
"""

from __future__ import annotations

import mmap
import tempfile
from math import prod
from weakref import WeakValueDictionary

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from wasmgraph.tensors import Array

_ALIGNMENT = 64  # bytes
_SHARED_BYTES = 1 << 20  # smaller constants are copied: they take no room
_mapped: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by address


def allocate(shape: tuple[int, ...], dtype: np.dtype | str, in_file: bool = False) -> Array:
    """An array of unknown content at an aligned address; ``in_file`` for tensors of a large model."""
    dtype = np.dtype(dtype)
    nbytes = prod(shape) * dtype.itemsize
    if in_file and nbytes >= _SHARED_BYTES:
        with tempfile.TemporaryFile(prefix="wasmgraph-") as file:
            file.truncate(nbytes)
            mapping = mmap.mmap(file.fileno(), nbytes)
        array = np.frombuffer(mapping, dtype).reshape(shape)
        _mapped[array.ctypes.data] = mapping
        return array
    room = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)


def is_in_file(array: Array) -> bool:
    """Whether an array is one that lies in a file."""
    return array.ctypes.data in _mapped


def let_go(array: Array) -> None:
    """Take the pages of an array that lies in a file out of memory; they come back when they are read."""
    mapping = _mapped.get(array.ctypes.data)
    if mapping is not None:
        _drop_pages(mapping)


def let_all_go() -> None:
    """The same of every array that lies in a file: passes look at all constants."""
    for mapping in list(_mapped.values()):
        _drop_pages(mapping)


def _drop_pages(mapping: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)


def constant(array: Array) -> GenericConst:
    """A constant of an array's values and dtype; a large one shares its memory if the array is aligned."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    sharing = array.nbytes >= _SHARED_BYTES and array.flags.writeable
    if sharing and array.ctypes.data % _ALIGNMENT == 0:
        return relax.const(tvm.runtime.from_dlpack(array), str(array.dtype))
    return relax.const(array, str(array.dtype))


def array_of(const: GenericConst) -> Array:
    """A constant's values; not a copy."""
    array: Array = np.from_dlpack(const.value)
    return array
