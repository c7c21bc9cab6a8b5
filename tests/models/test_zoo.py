"""Networks by name: each does its task when compiled, and agrees with onnxruntime on its own inputs."""

from __future__ import annotations

import numpy as np
import pytest

import wasmgraph as wg
from bench.lab import Network
from wasmgraph.errors import FetchError, ModelError
from wasmgraph.measure.accuracy import Accuracy
from wasmgraph.models import MODELS
from wasmgraph.models.evaluation import evaluation
from wasmgraph.models.ocr import OCR_MODELS, _box, examples, is_right
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
        path = Network(name, directory=tmp.mktemp("bound")).onnx_path
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


# The shape of the input, bounds of its dimensions, heights and widths of images.
OPEN: dict[str, tuple[tuple[int | str, ...], dict[str, tuple[int, int]], list[tuple[int, int]]]] = {
    "ppocr_recognition": ((1, 3, 48, "w"), {"w": (32, 640)}, [(48, 32), (48, 321), (48, 640)]),
    "ppocr_detection": (
        (1, 3, "32*h", "32*w"),
        {"h": (1, 10), "w": (1, 20)},
        [(64, 96), (320, 320), (96, 640)],
    ),
}


@pytest.mark.parametrize(
    "name", ["ppocr_recognition", pytest.param("ppocr_detection", marks=pytest.mark.slow)]
)
def test_one_module_reads_images_of_any_size(name: str) -> None:
    try:
        path = wg.fetch(name)
    except FetchError as error:
        pytest.skip(str(error))
    shape, dims, sizes = OPEN[name]
    compiled = wg.compile(path, shapes={"x": shape}, dims=dims)
    with wg.load(compiled) as session, wg.load(path) as reference:
        for height, width in sizes:
            x = examples(OCR_MODELS[name].task, (1, 3, height, width))[0][0]
            (found,), (expected,) = (engine.run({"x": x}).values() for engine in (session, reference))
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


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
