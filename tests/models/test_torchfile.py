"""Reading tensors without PyTorch, from files as PyTorch wrote them and from files that want something
else.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from wasmgraph.errors import FetchError
from wasmgraph.models import torchfile
from wasmgraph.models.torchfile import read_tensors


class _Storage:
    def __init__(self, key: str, count: int) -> None:
        self.key, self.count = key, count


class _Call:
    """Pickles as a call of ``module.name`` on some arguments."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class _Pickler(pickle._Pickler):
    """What ``torch.save`` did, for tensors of float32."""

    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, _Storage):
            return ("storage", _Global("torch", "FloatStorage"), obj.key, "cpu", obj.count, None)
        return None

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(_Global(obj.module, obj.name))
            self.save(tuple(obj.arguments))
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


class _Global:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


def written(tensors: object, storages: dict[str, np.ndarray], magic: int = torchfile._MAGIC) -> bytes:
    stream = io.BytesIO()
    for value in (magic, 1001, {"little_endian": True}):
        _Pickler(stream, 2).dump(value)
    _Pickler(stream, 2).dump(tensors)
    _Pickler(stream, 2).dump(list(storages))
    for value in storages.values():
        stream.write(struct.pack("<q", value.size) + value.tobytes())
    return stream.getvalue()


def tensor(key: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> _Call:
    arguments = (_Storage(key, 12), offset, shape, strides, False, OrderedDict())
    return _Call("torch._utils", "_rebuild_tensor_v2", *arguments)


FLAT = np.arange(12, dtype=np.float32)


def test_tensors_and_views_of_them() -> None:
    saved = {"a": tensor("7", 0, (3, 4), (4, 1)), "b": tensor("7", 1, (2, 3), (1, 4))}
    found = read_tensors(written(saved, {"7": FLAT}))
    np.testing.assert_array_equal(found["a"], FLAT.reshape(3, 4))
    np.testing.assert_array_equal(found["b"], FLAT.reshape(3, 4).T[1:3])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Ran out of input"),
        (b"PK\x03\x04 a newer file", "not a file of tensors"),
        (written({}, {}, magic=1), "begins with 1"),
        (written({"a": _Call("os", "system", "true")}, {}), "wants os.system"),
        (written({"a": tensor("7", 4, (3, 4), (4, 1))}, {"7": FLAT}), "12 numbers in a storage of 8"),
        (written({"a": tensor("8", 0, (1,), (1,))}, {"7": FLAT}), "not a file of tensors"),
    ],
)
def test_what_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        read_tensors(content)
