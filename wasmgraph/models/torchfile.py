"""Reads tensors from files of ``torch.save`` before PyTorch 1.6, without PyTorch.

Such a file is five pickles (magic, protocol, system, the object, the keys of its storages) and the
storages' bytes. The unpickler knows only tensors: a pickle that needs anything else is refused.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from wasmgraph.errors import FetchError
from wasmgraph.tensors import Array

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


@dataclass(frozen=True)
class _Tensor:
    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: tuple[str, str], offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    dtype, key = storage
    return _Tensor(key, dtype, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it wants {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it wants a {kind}")
        return dtype, key


def read_tensors(content: bytes) -> Mapping[str, Array]:
    """The tensors of a state dictionary, by name.

    Raises
    ------
    FetchError
        It is no such file, or holds something else than tensors.
    """
    stream = BytesIO(content)
    try:
        magic, _, _ = (_Unpickler(stream).load() for _ in range(3))
        if magic != _MAGIC:
            raise pickle.UnpicklingError(f"it begins with {magic!r}")
        tensors = _Unpickler(stream).load()
        storages = {}
        sizes = {t.key: np.dtype(t.dtype).itemsize for t in tensors.values()}
        for key in _Unpickler(stream).load():
            (count,) = struct.unpack("<q", stream.read(8))
            storages[key] = stream.read(count * sizes[key])
        return {name: _array(t, storages[t.key]) for name, t in tensors.items()}
    except (pickle.UnpicklingError, struct.error, KeyError, ValueError, AttributeError, EOFError) as error:
        raise FetchError(f"not a file of tensors as PyTorch wrote them: {error}.") from error


def _array(tensor: _Tensor, storage: bytes) -> Array:
    flat = np.frombuffer(storage, tensor.dtype)[tensor.offset :]
    steps = [s * flat.itemsize for s in tensor.strides]
    needed = 1 + sum((d - 1) * s for d, s in zip(tensor.shape, tensor.strides, strict=True))
    if flat.size < needed:
        raise ValueError(f"a tensor of {needed} numbers in a storage of {flat.size}")
    return np.ascontiguousarray(as_strided(flat, tensor.shape, steps, writeable=False))
