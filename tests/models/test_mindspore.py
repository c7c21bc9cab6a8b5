"""MindSpore cells become ONNX models that compute what MindSpore computes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import wasmgraph as wg
from tests.test_docs import guide_block, run
from wasmgraph.errors import MissingDependencyError, ModelError, UsageError
from wasmgraph.models import from_mindspore
from wasmgraph.models.photos import accuracy_set, inputs_of

EXAMPLES = Path(__file__).parents[2] / "examples"
MISSING = importlib.util.find_spec("mindspore") is None
needs_mindspore = pytest.mark.skipif(MISSING, reason="no MindSpore: make test-mindspore")

if not MISSING:
    import mindspore
    from mindspore import nn, ops


def test_without_mindspore_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mindspore", None)
    with pytest.raises(MissingDependencyError, match=r"needs mindspore.*wasmgraph\[mindspore\]"):
        from_mindspore(object())


@pytest.fixture
def head():
    """Two outputs, one of which the other is computed from."""

    class Head(nn.Cell):
        def __init__(self):
            super().__init__()
            self.dense = nn.Dense(5, 4)

        def construct(self, x):
            logits = self.dense(x)
            return ops.softmax(logits, axis=-1), logits

    return Head().set_train(False)


@pytest.mark.mindspore
@needs_mindspore
@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128", "native"])
def test_an_output_used_inside_keeps_its_uses(head, target):
    x = np.random.default_rng(0).normal(0, 1, (3, 5)).astype(np.float32)
    model = from_mindspore(head, mindspore.Tensor(x), outputs=("probabilities", "logits"))
    onnx.checker.check_model(model)
    with wg.load(wg.compile(model, target=target)) as session:
        actual = session.run({"x": x})
    for name, expected in zip(("probabilities", "logits"), head(mindspore.Tensor(x)), strict=True):
        np.testing.assert_allclose(actual[name], expected.asnumpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.mindspore
@needs_mindspore
def test_names_for_outputs(head):
    x = mindspore.Tensor(np.zeros((3, 5), np.float32))
    assert [v.name for v in from_mindspore(head, x).graph.output] == ["output_0", "output_1"]
    with pytest.raises(UsageError, match="Head has 2 outputs, 1 are named: only"):
        from_mindspore(head, x, outputs=["only"])


@pytest.mark.mindspore
@needs_mindspore
def test_what_cannot_be_exported_is_refused_with_mindspores_reason():
    padded = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
    with pytest.raises(ModelError, match="cannot export MaxPool2d to ONNX: .*MaxPool3DWithArgmax"):
        from_mindspore(padded, mindspore.Tensor(np.zeros((1, 2, 8, 8), np.float32)))
    with pytest.raises(UsageError, match=r"takes a mindspore\.nn\.Cell, not a function"):
        from_mindspore(lambda x: x)


@pytest.mark.mindspore
@needs_mindspore
def test_the_guides_example_runs(tmp_path):
    run(tmp_path, "python", guide_block("import mindspore"))


@pytest.mark.mindspore
@needs_mindspore
def test_resnet50_agrees_with_mindspore(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("mindspore_resnet50")
    network = example.trained()
    photo = mindspore.Tensor(np.zeros((1, 3, 224, 224), np.float32))
    model = from_mindspore(network, photo, outputs=("probabilities", "logits"))
    description = example.describe(wg.fetch("resnet50"))
    photos = accuracy_set()[:3]
    with wg.load(wg.compile(model, target="wasm32-simd128")) as session:
        for photo, image in zip(photos, inputs_of(photos, description["preprocessing"]), strict=True):
            expected = network(mindspore.Tensor(image))[0].asnumpy()
            actual = session.run({"input": image})["probabilities"]
            assert np.abs(actual - expected).max() <= 1e-4
            assert actual.argmax() == expected.argmax() == photo.label
