"""A ResNet-50 written in MindSpore, with trained weights, through wasm: the seed of wasmgraph.

    pip install 'wasmgraph[mindspore]'
    python examples/mindspore_resnet50.py

The network is He et al.'s (2015), version 1: a block's first 1×1 convolution has the stride.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import onnx
from mindspore import nn, ops
from onnx import numpy_helper

import wasmgraph as wg
from wasmgraph.models import from_mindspore
from wasmgraph.models.evaluation import describe
from wasmgraph.models.photos import accuracy_set, inputs_of

STAGES = ((2, 64, "abc"), (3, 128, "abcd"), (4, 256, "abcdef"), (5, 512, "abc"))


class ConvNorm(nn.SequentialCell):
    """A convolution and its batch normalisation, in inference."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1) -> None:
        border = {"pad_mode": "pad", "padding": kernel // 2}
        conv = nn.Conv2d(inner, outer, kernel, stride, has_bias=True, **border)
        super().__init__(conv, nn.BatchNorm2d(outer, eps=1e-3))


class Bottleneck(nn.Cell):
    """1×1, 3×3, 1×1, beside a shortcut."""

    def __init__(self, inner: int, narrow: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.branch2a = ConvNorm(inner, narrow, 1, stride)
        self.branch2b = ConvNorm(narrow, narrow, 3)
        self.branch2c = ConvNorm(narrow, 4 * narrow, 1)
        self.branch1 = ConvNorm(inner, 4 * narrow, 1, stride) if projected else nn.Identity()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = ops.relu(self.branch2a(x))
        y = ops.relu(self.branch2b(y))
        return ops.relu(self.branch2c(y) + self.branch1(x))


class ResNet50(nn.Cell):
    """float32 [N, 3, 224, 224] to probabilities and logits, each [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 64, 7, 2)
        # After a ReLU a border of zeros is as good as one of -inf; MaxPool2d's own is not exported.
        self.border = nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid")
        blocks, channels = [], 64
        for stage, narrow, letters in STAGES:
            for letter in letters:
                first = letter == "a"
                blocks.append(Bottleneck(channels, narrow, 2 if first and stage > 2 else 1, first))
                channels = 4 * narrow
        self.blocks = nn.SequentialCell(*blocks)
        self.dense = nn.Dense(channels, 1000)

    def construct(self, input: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        x = self.pool(self.border(ops.relu(self.stem(input))))
        logits = self.dense(ops.mean(self.blocks(x), (2, 3)))
        return ops.softmax(logits, axis=-1), logits


def trained() -> ResNet50:
    """The network with the weights of ``wasmgraph fetch resnet50``."""
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(wg.fetch("resnet50")).graph.initializer}
    network = ResNet50()

    def put(parameter: ms.Parameter, name: str) -> None:
        parameter.set_data(ms.Tensor(weights.pop(name).reshape(parameter.shape)))

    def fill(part: ConvNorm, conv: str, norm: str) -> None:
        put(part[0].weight, f"{conv}/kernel")
        put(part[0].bias, f"{conv}/bias")
        for key in ("gamma", "beta", "moving_mean", "moving_variance"):
            put(getattr(part[1], key), f"{norm}/{key}")

    fill(network.stem, "conv1", "bn_conv1")
    names = [f"{stage}{letter}" for stage, _, letters in STAGES for letter in letters]
    for name, block in zip(names, network.blocks, strict=True):
        for branch in ("branch2a", "branch2b", "branch2c", "branch1"):
            part = getattr(block, branch)
            if isinstance(part, ConvNorm):
                fill(part, f"res{name}_{branch}", f"bn{name}_{branch}")
    weights["fc1000/kernel"] = np.ascontiguousarray(weights["fc1000/kernel"].T)
    put(network.dense.weight, "fc1000/kernel")
    put(network.dense.bias, "fc1000/bias")
    if weights:
        raise ValueError(f"weights without a place: {', '.join(weights)}")
    return network.set_train(False)


def main() -> None:
    """Three photographs through both: the class, and how far the probabilities are apart."""
    network = trained()
    description = describe(wg.fetch("resnet50"))
    example = ms.Tensor(np.zeros((1, 3, 224, 224), np.float32))
    model = from_mindspore(network, example, outputs=("probabilities", "logits"))
    with wg.load(wg.compile(model, target="wasm32-simd128")) as session:
        photos = accuracy_set()[:3]  # MindSpore 2.10 takes seconds for each on a CPU
        for photo, image in zip(photos, inputs_of(photos, description["preprocessing"]), strict=True):
            expected = network(ms.Tensor(image))[0].asnumpy()
            actual = session.run({"input": image})["probabilities"]
            apart = float(np.abs(actual - expected).max())
            print(f"{photo.name}: {description['labels'][int(actual.argmax())]}, {apart:.1e} apart")


if __name__ == "__main__":
    main()
