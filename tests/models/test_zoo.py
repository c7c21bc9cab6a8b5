"""Networks by name: each does its task when compiled, and agrees with onnxruntime on its own inputs."""

from __future__ import annotations

import numpy as np
import pytest

import wasmgraph as wg
from bench.lab import _bound
from wasmgraph.errors import FetchError, ModelError
from wasmgraph.measure.accuracy import Accuracy
from wasmgraph.models import MODELS
from wasmgraph.models.evaluation import evaluation
from wasmgraph.models.ocr import OCR_MODELS, _box, is_right
from wasmgraph.targets import target_names

# Inputs whose task is done right by onnxruntime, and by us: of 20 photographs, 3 lines, 3 lines either
# way up.
RIGHT = {
    "efficientnet_lite0": 17,
    "ppocr_detection": 3,
    "ppocr_recognition": 3,
    "ppocr_direction": 5,
}
LIGHT = [name for name in MODELS if name.startswith("light_")]


def measured(name: str, target: str, tmp: pytest.TempPathFactory) -> Accuracy:
    """Accuracy of a network, with its relative difference as ``max_prob_diff``."""
    try:
        path = _bound(wg.fetch(name), {}, tmp.mktemp("bound"))
    except FetchError as error:
        pytest.skip(str(error))
    with wg.load(wg.compile(path, target=target)) as session, wg.load(path) as reference:
        judged = evaluation(path, session.inputs, None, lambda _: None)
        feeds = judged.feeds if judged.labels else judged.feeds[:1]
        outputs = [session.run(each) for each in feeds]
        expected = [reference.run(each) for each in feeds]
        for ours, theirs in zip(outputs, expected, strict=True):
            for key, value in theirs.items():
                assert np.abs(ours[key] - value).max() <= 1e-3 * np.abs(value).max(), key
        return judged.accuracy(outputs, expected, session.outputs)


@pytest.mark.parametrize("name", ["ppocr_recognition", "ppocr_direction"])
def test_text_is_read_and_turned(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = measured(name, "wasm32-simd128", tmp_path_factory)
    assert (found.top1, found.agreement) == (RIGHT[name], found.inputs)


@pytest.mark.slow
@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize("name", [*RIGHT, *LIGHT])
def test_every_network_on_every_target(
    name: str, target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = measured(name, target, tmp_path_factory)
    assert found.agreement == found.inputs
    assert found.top1 == RIGHT.get(name)


def test_a_network_of_open_dimensions_in_another_shape() -> None:
    try:
        path = wg.fetch("ppocr_direction")
    except FetchError as error:
        pytest.skip(str(error))
    with wg.load(wg.compile(path, shapes={"x": (2, 3, 32, 64)})) as session:
        assert session.inputs[0].shape == (2, 3, 32, 64)
        assert session.outputs[0].shape == (2, 2)
    with pytest.raises(ModelError, match="gives 'x' the shape"):
        wg.compile(path, shapes={"x": (2, 1, 32, 64)})
    assert OCR_MODELS["ppocr_direction"].shape == (1, 3, 48, 192)


def test_boxes() -> None:
    mask = np.zeros((8, 9), bool)
    assert _box(mask) == "nothing"
    mask[2:4, 1:7] = True
    assert _box(mask) == "1,2,7,4"
    assert _box(mask, unclip=4) == "-2,-1,10,7"
    assert is_right("text-detection", "0,0,10,10", "0,0,10,6")
    assert not is_right("text-detection", "0,0,10,10", "0,6,10,12")
    assert not is_right("text-detection", "nothing", "0,6,10,12")
    assert is_right("text-recognition", "a", "a")
