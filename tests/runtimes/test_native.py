from __future__ import annotations

import pytest

import wasmgraph as wg
from wasmgraph.errors import TargetError


def test_a_processor_without_the_features_is_told(small_artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_artifact("native")
    assert wg.Artifact.open(path).manifest.cpu_features
    monkeypatch.setattr("wasmgraph.runtimes.native.cpu_features", lambda: ("sse2",))
    with pytest.raises(TargetError, match="was compiled for a processor with"):
        wg.load(path)
