"""The whole line on the trained ResNet-50: every backend on the same photographs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import wasmgraph as wg
from tests.conftest import TARGETS
from wasmgraph.artifact import Artifact
from wasmgraph.measure.accuracy import augment, judge
from wasmgraph.models.photos import accuracy_set, inputs_of
from wasmgraph.models.resnet50 import PREPROCESSING

MAX_PROB_DIFF, MAX_LOGIT_DIFF = 1e-4, 2e-3


@pytest.fixture(scope="module")
def photographs(resnet50_onnx: Path) -> tuple[list[np.ndarray], list[int]]:
    photos = accuracy_set()
    return inputs_of(photos, PREPROCESSING), [photo.label for photo in photos]


@pytest.fixture(scope="module")
def expected(resnet50_onnx: Path, photographs) -> list[dict[str, np.ndarray]]:
    with wg.load(resnet50_onnx) as session:
        return [session.run({"input": x}) for x in photographs[0]]


def test_the_reference_gets_19_of_20(photographs, expected) -> None:
    found = judge(expected, expected, photographs[1], "probabilities", "logits")
    assert (found.top1, found.top5) == (19, 20)


@pytest.mark.parametrize("target", TARGETS)
def test_every_backend_on_the_same_photograph(
    target: str, resnet50_artifact: Callable[[str], Artifact], photographs, expected
) -> None:
    inputs, labels = photographs
    with wg.load(resnet50_artifact(target)) as session:
        outputs = [session.run({"input": x}) for x in inputs[:1]]
    found = judge(outputs, expected[:1], labels[:1], "probabilities", "logits")
    assert found.agreement == 1
    assert found.max_prob_diff <= MAX_PROB_DIFF
    assert found.max_logit_diff is not None
    assert found.max_logit_diff <= MAX_LOGIT_DIFF


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_accuracy_on_all_photographs(
    target: str, resnet50_artifact: Callable[[str], Artifact], photographs, expected
) -> None:
    inputs, labels = photographs
    with wg.load(resnet50_artifact(target)) as session:
        outputs = [session.run({"input": x}) for x in inputs]
    found = judge(outputs, expected, labels, "probabilities", "logits")
    assert (found.top1, found.top5, found.agreement) == (19, 20, 20)
    assert found.max_prob_diff <= MAX_PROB_DIFF
    assert found.max_logit_diff is not None
    assert found.max_logit_diff <= MAX_LOGIT_DIFF


def test_the_module_is_small_and_imports_nothing(resnet50_artifact: Callable[[str], Artifact]) -> None:
    artifact = resnet50_artifact("wasm32-simd128")
    assert artifact.module is not None
    assert artifact.module.imports == ()
    assert artifact.module.memory_min == artifact.module.memory_max
    assert artifact.path.stat().st_size - artifact.manifest.param_bytes <= 500_000
    convolutions = [s for s in artifact.manifest.steps if "conv2d" in s.operator]
    assert len(convolutions) == 53
    assert {s.rule for s in convolutions} == {"direct-conv2d", "pointwise-conv2d", "winograd-conv2d"}


def test_wasm_targets_give_the_same_bits(resnet50_onnx: Path, photographs) -> None:
    """Both multiply and add in the same order, without fusing (Winograd is chosen per target)."""
    x = {"input": photographs[0][0]}
    first, second = (
        wg.compile(resnet50_onnx, target=t, winograd=False) for t in ("wasm32", "wasm32-simd128")
    )
    with wg.load(first) as one, wg.load(second) as other:
        np.testing.assert_array_equal(one.run(x)["logits"], other.run(x)["logits"])


def test_threads_give_the_same_bits(
    resnet50_onnx: Path, resnet50_artifact: Callable[[str], Artifact], photographs
) -> None:
    x = {"input": photographs[0][0]}
    divided = wg.compile(resnet50_onnx, target="wasm32-simd128-threads")
    with wg.load(resnet50_artifact("wasm32-simd128")) as one, wg.load(divided, threads=2) as two:
        np.testing.assert_array_equal(two.run(x)["logits"], one.run(x)["logits"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="there is no `node` on the PATH")
@pytest.mark.parametrize("target", ["wasm32", "wasm32-simd128"])
def test_v8_gives_wasmtimes_bits_on_all_photographs(
    target: str, resnet50_artifact: Callable[[str], Artifact], photographs
) -> None:
    artifact = resnet50_artifact(target)
    with wg.load(artifact) as one, wg.load(artifact, runtime="node") as other:
        for photograph in photographs[0]:
            x = {"input": photograph}
            np.testing.assert_array_equal(other.run(x)["logits"], one.run(x)["logits"])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_accuracy_on_200_varied_inputs(
    target: str, resnet50_onnx: Path, resnet50_artifact: Callable[[str], Artifact], photographs
) -> None:
    varied = [{"input": x} for x in augment(photographs[0], 200)]
    with wg.load(resnet50_artifact(target)) as ours, wg.load(resnet50_onnx) as theirs:
        outputs = [ours.run(x) for x in varied]
        expected = [theirs.run(x) for x in varied]
    found = judge(outputs, expected, None, "probabilities", "logits")
    assert found.agreement == 200
    assert found.max_prob_diff <= MAX_PROB_DIFF
    assert found.max_logit_diff is not None
    assert found.max_logit_diff <= MAX_LOGIT_DIFF
