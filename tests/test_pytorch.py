"""Networks written in PyTorch, exported by ``torch.onnx.export``, compute in wasm what PyTorch computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import wasmgraph as wg
from tests.test_docs import guide_block, run

MISSING = importlib.util.find_spec("torch") is None
pytestmark = [pytest.mark.torch, pytest.mark.skipif(MISSING, reason="no PyTorch: make test-torch")]

if not MISSING:
    import torch
    from torch import nn

    class Speech(nn.Module):
        """Strided 1-D convolutions, a bidirectional LSTM, classes a frame."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(nn.Conv1d(20, 24, 5, 2, 2), nn.GELU(), nn.GroupNorm(4, 24))
            self.lstm = nn.LSTM(24, 16, 2, batch_first=True, bidirectional=True)
            self.classes = nn.Linear(32, 11)

        def forward(self, x):
            y, _ = self.lstm(self.conv(x).transpose(1, 2))
            return self.classes(y).log_softmax(-1)

    class Gated(nn.Module):
        """A GRU's last state."""

        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(12, 20)

        def forward(self, x):
            return self.gru(x)[1]

    class Language(nn.Module):
        """Token ids through embeddings and a masked transformer encoder."""

        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(97, 32)
            self.places = nn.Parameter(torch.randn(1, 13, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(32, 97)

        def forward(self, ids):
            mask = torch.triu(torch.full((13, 13), float("-inf")), 1)
            return self.head(self.encoder(self.tokens(ids) + self.places, mask=mask, is_causal=True))

    class Attention(nn.Module):
        """Scaled dot-product attention over heads, and rotated positions."""

        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(32, 96)
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            q, k, v = self.qkv(self.norm(x)).view(2, 9, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
            turned = torch.cat((-q[..., 4:], q[..., :4]), -1)
            y = nn.functional.scaled_dot_product_attention(q + turned.sin(), k, v, is_causal=True)
            return x + y.transpose(1, 2).reshape(2, 9, 32)

    class Segmentation(nn.Module):
        """Down and up again: squeeze-and-excite, dilated and transposed convolutions, interpolation."""

        def __init__(self):
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
            self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
            self.wide = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)
            self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
            self.out = nn.Conv2d(11, 5, 1)

        def forward(self, x):
            y = self.down(x)
            y = nn.functional.silu(self.wide(y * self.squeeze(y)))
            half = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
            whole = nn.functional.interpolate(half, scale_factor=2.0, mode="nearest")
            return self.out(torch.cat((self.up(y), whole), 1)).argmax(1), self.up(y)

    class Choosing(nn.Module):
        """The best five, gathered, with what is NaN or out of bounds mended."""

        def forward(self, x):
            values, places = x.topk(5, dim=1)
            picked = x.gather(1, (places + 1) % x.shape[1])
            return torch.where(values > 0.5, picked, values.clamp(min=-0.1)), places, x.cumsum(0), x.std(1)

    def suppressed(boxes, scores, overlap):
        """The boxes that are kept, the best first: what torchvision.ops.nms gives."""
        left, kept = scores.argsort(descending=True, stable=True).tolist(), []
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        while left:
            best, *others = left
            kept.append(best)
            low = torch.maximum(boxes[best, :2], boxes[others, :2])
            high = torch.minimum(boxes[best, 2:], boxes[others, 2:])
            shared = (high - low).clamp(min=0).prod(-1)
            beyond = shared / (areas[best] + areas[others] - shared) > overlap
            left = [n for n, drop in zip(others, beyond.tolist(), strict=True) if not drop]
        return torch.tensor(kept, dtype=torch.int64)

    class Suppression(torch.autograd.Function):
        """NonMaxSuppression of all classes, as exports of YOLO write it: rows of batch, class and box."""

        @staticmethod
        def forward(ctx, boxes, scores, most, overlap, threshold):
            rows = []
            for number, each in enumerate(scores[0]):
                (counted,) = torch.where(each > threshold)
                kept = counted[suppressed(boxes[0, counted], each[counted], overlap)][: int(most)]
                rows += [(0, number, int(n)) for n in kept]
            return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)

        @staticmethod
        def symbolic(g, boxes, scores, most, overlap, threshold):
            return g.op("NonMaxSuppression", boxes, scores, most, overlap, threshold)

    class Yolo(nn.Module):
        """Centres, sizes, objectness and classes, to boxes of all classes with their scores."""

        def forward(self, x):
            centre, size, sure, classes = x[..., :2], x[..., 2:4].abs(), x[..., 4:5], x[..., 5:]
            boxes = torch.cat((centre - size / 2, centre + size / 2), -1)
            scores = (sure.sigmoid() * classes.sigmoid()).transpose(1, 2)
            limits = torch.tensor([20]), torch.tensor([0.45]), torch.tensor([0.3])
            found = Suppression.apply(boxes, scores, *limits)
            batch, label, place = found[:, 0], found[:, 1], found[:, 2]
            score = scores[batch, label, place]
            return torch.cat((boxes[batch, place], score[:, None], label[:, None].float()), -1)

    class Proposals(nn.Module):
        """As torchvision proposes regions: the best, clipped, without the small and the unsure ones; then
        suppressed level by level, by moving the levels apart."""

        def forward(self, x):
            logits, levels = x[0, :, 4], (x[0, :, 5] > 0).float()
            best = logits.topk(torch.minimum(torch.tensor(30), torch.as_tensor(x.shape[1])))[1]
            boxes = torch.cat((x[0, :, :2], x[0, :, :2] + x[0, :, 2:4].abs()), -1)[best].clamp(-2, 2)
            scores, levels = logits[best].sigmoid(), levels[best]
            size = boxes[:, 2:] - boxes[:, :2]
            (large,) = torch.where((size > 0.05).all(-1))
            boxes, scores, levels = boxes[large], scores[large], levels[large]
            (sure,) = torch.where(scores >= 0.3)
            boxes, scores, levels = boxes[sure], scores[sure], levels[sure]
            most = torch.cat((boxes.reshape(-1), torch.zeros(1))).max()
            apart = boxes + (levels * (most + 1))[:, None]
            limits = torch.tensor([100]), torch.tensor([0.5]), torch.tensor([0.0])
            kept = Suppression.apply(apart[None], scores[None, None], *limits)[:, 2][:10]
            return torch.cat((boxes[kept], scores[kept][:, None]), -1)

    TAILS = {"yolo": Yolo, "proposals": Proposals}

    NETWORKS = {
        "speech": (Speech, (torch.randn, (1, 20, 50))),
        "gated": (Gated, (torch.randn, (7, 2, 12))),
        "language": (Language, (lambda *shape: torch.randint(97, shape), (2, 13))),
        "attention": (Attention, (torch.randn, (2, 9, 32))),
        "segmentation": (Segmentation, (torch.randn, (2, 3, 34, 30))),
        "choosing": (Choosing, (torch.randn, (4, 19))),
    }
else:
    NETWORKS = {}
    TAILS = {}


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_pytorch(name: str, exporter: str, tmp_path: Path) -> None:
    make, (draw, shape) = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    x = draw(*shape)
    path = tmp_path / f"{name}.onnx"
    torch.onnx.export(network, (x,), str(path), input_names=["x"], dynamo=exporter == "dynamo")
    with torch.no_grad():
        expected = network(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for target in ("wasm32", "wasm32-simd128", "native"):
        with wg.load(wg.compile(path, target=target)) as session:
            outputs = session.run({"x": x.numpy()})
            actual = [outputs[spec.name] for spec in session.outputs]
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
@pytest.mark.parametrize("name", TAILS)
def test_the_tail_of_a_detector(name: str, target: str, tmp_path: Path) -> None:
    """Of any number of boxes, of which few, all or none overlap or are sure."""
    network, path = TAILS[name]().eval(), tmp_path / f"{name}.onnx"
    torch.manual_seed(1)
    x = torch.randn(1, 40, 9)
    axes = {"x": {1: "n"}, "y": {0: "count"}}
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
    torch.onnx.export(network, (x,), str(path), dynamo=False, opset_version=17, **names)
    theirs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with wg.load(wg.compile(path, target=target, dims={"n": (1, 64)})) as session:
        for n, sure, apart in ((40, 0, 1), (1, 1, 1), (64, 3, 1), (64, 3, 100), (17, 0, 0.1), (30, -1, 1)):
            x = torch.randn(1, n, 9)
            x[..., :2] *= apart
            x[..., 4:5] += sure
            (found,) = session.run({"x": x.numpy()}).values()
            (expected,) = theirs.run(None, {"x": x.numpy()})
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found, network(x).numpy(), rtol=1e-4, atol=1e-5)


def test_the_guides_example_runs(tmp_path: Path) -> None:
    run(tmp_path, "python", guide_block("import torch"))
