"""Weights stored outside the graph. Large tensors of a large model are never put into one protobuf message,
which holds at most 2 GiB, and are never copied into another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import helper

from wasmgraph.errors import ModelError
from wasmgraph.tensors import Array

# If a model has at least LARGE_MODEL bytes of weights, its tensors of at least LARGE_TENSOR bytes are
# stored separately.
LARGE_MODEL, LARGE_TENSOR = 256 << 20, 1 << 20
_MESSAGE_BYTES = 2_000_000_000  # of weights for onnxruntime: protobuf's limit, less room for the graph
# Operators into whose weights onnxruntime folds a normalisation or a padding.
FOLDED = ("Conv", "ConvTranspose", "BatchNormalization")


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Size of a tensor by its header; 0 for an unknown dtype."""
    try:
        width = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    except KeyError:
        return 0
    return int(prod(tensor.dims)) * width


def large_names(proto: onnx.ModelProto) -> set[str]:
    """Initializers to be stored separately: the large ones of a large model, except those that onnxruntime
    folds something into, as long as those fit into one message."""
    sizes = {tensor.name: tensor_bytes(tensor) for tensor in proto.graph.initializer}
    if sum(sizes.values()) < LARGE_MODEL:
        return set()
    large = {name for name, size in sizes.items() if size >= LARGE_TENSOR}
    folded = {name for node in proto.graph.node if node.op_type in FOLDED for name in node.input}
    kept = sum(size for name, size in sizes.items() if name not in large or name in folded)
    return large - folded if kept < _MESSAGE_BYTES else large


def check_size(proto: onnx.ModelProto, name: str, most_bytes: int | None) -> None:
    """Raise ModelError if the weights alone are larger than ``most_bytes``, before external data is
    read."""
    used = {source for node in proto.graph.node for source in node.input}
    used |= {output.name for output in proto.graph.output}
    total = sum(tensor_bytes(t) for t in proto.graph.initializer if t.name in used)
    if most_bytes is not None and total >= most_bytes:
        raise ModelError(
            f"{name}: its weights take {total:,} bytes; a WebAssembly module has {most_bytes:,} for them"
            " and everything else. Compile it for native, or export it with smaller weights."
        )


def hide(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Declare separately stored tensors as inputs, so that the graph is complete without their values."""
    declared = {value.name for value in proto.graph.input}
    for name, array in weights.items():
        if name not in declared:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            proto.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
