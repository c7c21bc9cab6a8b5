from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import wasmgraph as wg
from wasmgraph.errors import FetchError, MissingDependencyError, UsageError
from wasmgraph.models import MODELS, resnet50
from wasmgraph.models.building import GraphBuilder


def test_unknown_models_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown model 'vgg'; there are resnet50, resnet50-random"):
        wg.fetch("vgg")


def test_light_architectures_come_from_the_onnx_package() -> None:
    names = [name for name in MODELS if name.startswith("light_")]
    assert len(names) == 9
    model = onnx.load(wg.fetch("light_squeezenet"))
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim][:2] == [1, 1000]


def test_random_weights_are_seeded_and_say_so() -> None:
    first, second = (resnet50.build_random(lambda _: None) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    description = json.loads(first.metadata_props[0].value)
    assert description["weights"] == "random"
    assert len(description["labels"]) == 1000


def test_the_random_model_discriminates() -> None:
    path = wg.fetch("resnet50-random")
    rng = np.random.default_rng(0)
    with wg.load(path) as session:
        a, b = (
            session.run({"input": rng.normal(0, 60, (1, 3, 224, 224)).astype(np.float32)})["logits"]
            for _ in range(2)
        )
    assert np.isfinite(a).all()
    assert np.abs(a - b).max() > 0.01


def test_the_trained_model_is_what_it_says(resnet50_onnx: Path) -> None:
    assert wg.fetch("resnet50") == resnet50_onnx
    model = onnx.load(resnet50_onnx)
    description = json.loads(model.metadata_props[0].value)
    assert description["weights"] == "trained"
    assert description["labels"][22] == "bald eagle"
    count = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert count == pytest.approx(25.6e6, rel=0.01)
    assert [o.name for o in model.graph.output] == ["probabilities", "logits"]


def test_foreign_layers_are_refused() -> None:
    layer = {"name": "odd", "class_name": "LSTM", "config": {}, "inbound_nodes": []}
    with pytest.raises(FetchError, match="'odd' is a LSTM"):
        resnet50._convert(GraphBuilder(), [layer], {})


def test_without_the_compilers_packages_fetching_says_which_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMGRAPH_CACHE", str(tmp_path / "cache"))
    for module in ("wasmgraph.models.resnet50", "wasmgraph.models.building"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delattr("wasmgraph.models.resnet50", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"wasmgraph\[compile\]"):
        wg.fetch("resnet50-random")
