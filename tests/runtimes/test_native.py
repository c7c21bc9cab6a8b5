from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import wasmgraph as wg
from tests.conftest import model_of
from wasmgraph.errors import ArtifactError, TargetError
from wasmgraph.runtimes import native


def test_a_processor_without_the_features_is_told(small_artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_artifact("native")
    assert wg.Artifact.open(path).manifest.cpu_features
    monkeypatch.setattr("wasmgraph.runtimes.native.cpu_features", lambda: ("sse2",))
    with pytest.raises(TargetError, match="was compiled for a processor with"):
        wg.load(path)


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    """The bytes of a graph that multiplies: by 2 one number, by 3 a thousand."""
    place = tmp_path_factory.mktemp("times")
    made: dict[int, bytes] = {}

    def content(factor: int) -> bytes:
        if factor not in made:
            size = {2: 1, 3: 1000}[factor]
            nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
            model = model_of(nodes, {"x": [size]}, ["y"], {"factor": np.float32([factor])})
            made[factor] = wg.compile(model, target="native").save(place / str(factor)).read_bytes()
        return made[factor]

    return content


def factor_of(session: wg.Session) -> float:
    (spec,) = session.inputs
    (found,) = set(session.run({"x": np.ones(spec.shape, np.float32)})["y"].tolist())
    return found


def libraries() -> int:
    """How many native artifacts this process has in its memory."""
    gc.collect()
    rows = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return len({row[4] for row in rows if len(row) > 5 and re.search("wasmgraph-native|/native/", row[5])})


@pytest.fixture(params=[True, False], ids=["cache", "no-cache"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, or what cannot be one."""
    cache = tmp_path / "cache"
    if not request.param:
        cache.write_text("")
    monkeypatch.setenv("WASMGRAPH_CACHE", str(cache))
    return cache


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are counted in Linux's /proc")
def test_what_is_loaded_is_the_content_whatever_happens_to_the_file(
    tmp_path: Path, cache: Path, times: Callable[[int], bytes]
) -> None:
    assert libraries() == 0
    path = tmp_path / "graph.so"
    path.write_bytes(times(2))
    first = wg.load(path)
    assert factor_of(first) == 2
    path.write_bytes(times(3))  # in place: the same inode
    second = wg.load(path)
    assert (factor_of(first), factor_of(second)) == (2, 3)
    path.unlink()
    (tmp_path / "other.so").write_bytes(times(2))
    third, fourth = wg.load(tmp_path / "other.so"), second.clone()
    assert libraries() == 2  # equal content is loaded once
    assert [factor_of(session) for session in (first, second, third, fourth)] == [2, 3, 2, 3]
    second.close()
    first.close()
    assert libraries() == 2
    third.close()
    assert libraries() == 1
    del fourth  # forgotten
    assert libraries() == 0
    path.write_bytes(times(2))
    with wg.load(path) as again:
        assert factor_of(again) == 2


def test_a_file_that_is_replaced_while_it_is_loaded(
    tmp_path: Path, cache: Path, times: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "graph.so"
    path.write_bytes(times(2))
    opened = wg.Artifact.open

    def open_and_replace(path: Path) -> wg.Artifact:
        artifact = opened(path)
        path.write_bytes(times(3))
        return artifact

    monkeypatch.setattr(wg.Artifact, "open", open_and_replace)
    with pytest.raises(ArtifactError, match="was replaced while it was loaded"):
        wg.load(path)
    if cache.is_dir():
        assert not list((cache / "native").iterdir())


def test_without_files_in_memory(
    tmp_path: Path, cache: Path, times: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(native.tempfile, "tempdir", str(place))
    for factor in (2, 3, 2):
        (tmp_path / "graph.so").write_bytes(times(factor))
        with wg.load(tmp_path / "graph.so") as session:
            assert factor_of(session) == factor
    assert not list(place.iterdir())


def test_a_copy_in_the_cache_that_cannot_be_loaded(
    tmp_path: Path, empty_cache: Path, times: Callable[[int], bytes]
) -> None:
    (tmp_path / "graph.so").write_bytes(times(2))
    wg.load(tmp_path / "graph.so").close()
    (copy,) = (empty_cache / "native").iterdir()
    copy.write_bytes(b"")
    with wg.load(tmp_path / "graph.so") as session:
        assert factor_of(session) == 2
