from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wasmtime

import wasmgraph as wg
from wasmgraph import artifact as a
from wasmgraph.dims import Expression, operation
from wasmgraph.errors import ArtifactError, SchemaError, UsageError
from wasmgraph.wasm.wasmfile import read_module


@pytest.fixture(params=["wasm32-simd128", "native"])
def whole(request: pytest.FixtureRequest, small_artifact: Callable[[str], Path]) -> bytes:
    return small_artifact(request.param).read_bytes()


def test_manifest_survives_json(small_artifact: Callable[[str], Path]) -> None:
    manifest = a.Artifact.open(small_artifact("wasm32")).manifest
    assert a.Manifest.from_json(manifest.to_json(), "here") == manifest


def test_shapes_may_depend_on_dimensions_from_schema_4(
    small_artifact: Callable[[str], Path],
) -> None:
    manifest = a.Artifact.open(small_artifact("wasm32")).manifest
    assert manifest.schema == 3  # which older versions read
    seq = Expression.of("seq")
    tokens = a.Placed("tokens", (2, 3 * seq), "float32", 64)
    dims = (a.PlacedDim("seq", 1, 16, 8),)
    step = replace(manifest.steps[0], flops=6 * seq, turns=seq)
    opened = replace(manifest, schema=4, inputs=(tokens,), dims=dims, steps=(step,))
    assert a.Manifest.from_json(opened.to_json(), "here") == opened
    assert opened.inputs[0].spec.at({"seq": 5}).static_shape == (2, 15)
    for wrong in (
        replace(opened, dims=()),  # no bounds
        replace(opened, schema=3),
        replace(opened, inputs=(replace(tokens, shape=(seq - 20,)),)),  # is negative
        replace(opened, dims=(*dims, *dims)),
        replace(opened, dims=(replace(dims[0], offset=-4),)),
        replace(opened, steps=(replace(step, turns=Expression.of("other")),)),
        replace(opened, outputs=(replace(tokens, shape=(operation("//", 8, seq - 1),)),)),  # by 0
        replace(opened, inputs=(replace(tokens, shape=(1 << 60, seq)),)),
    ):
        with pytest.raises(ArtifactError, match="manifest"):
            a.Manifest.from_json(wrong.to_json(), "here")


def test_save_is_a_whole_copy(small_artifact: Callable[[str], Path], tmp_path: Path) -> None:
    artifact = wg.Artifact.open(small_artifact("wasm32-simd128"))
    copy = wg.Artifact.open(artifact.save(tmp_path / "copy.wasm"))
    assert copy.sha256 == artifact.sha256
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifact.save(tmp_path / "nowhere" / "x.wasm")


def test_an_artifact_is_pickled_as_its_path_and_digest(
    small_artifact: Callable[[str], Path], small_onnx: Path, tmp_path: Path
) -> None:
    artifact = wg.Artifact.open(small_artifact("wasm32"))
    again = pickle.loads(pickle.dumps(artifact))
    assert (again.path, again.sha256, again.manifest) == (artifact.path, artifact.sha256, artifact.manifest)
    saved = pickle.dumps(wg.Artifact.open(artifact.save(tmp_path / "saved.wasm")))
    (tmp_path / "saved.wasm").write_bytes(small_artifact("wasm32-simd128").read_bytes())
    with pytest.raises(ArtifactError, match="was replaced after it was pickled"):
        pickle.loads(saved)
    with pytest.raises(UsageError, match="is temporary .* Save it"):
        pickle.dumps(wg.compile(small_onnx, target="wasm32"))


@pytest.mark.parametrize("cut", [1, 7, 40, 3000])
def test_truncated(whole: bytes, cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.wasm"
    path.write_bytes(whole[:-cut])
    with pytest.raises(ArtifactError, match="truncated"):
        wg.load(path)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_altered(whole: bytes, part: float, tmp_path: Path) -> None:
    changed = bytearray(whole)
    changed[int(len(whole) * part)] ^= 0x20
    path = tmp_path / "altered.wasm"
    path.write_bytes(changed)
    with pytest.raises(ArtifactError):
        wg.load(path)


def test_added_to(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "added.wasm"
    path.write_bytes(whole + b"\0\x02\x01x")
    with pytest.raises(ArtifactError):
        wg.load(path)


def test_a_module_without_our_manifest(tmp_path: Path) -> None:
    path = tmp_path / "foreign.wasm"
    path.write_bytes(wasmtime.wat2wasm('(module (func (export "f")))'))
    with pytest.raises(ArtifactError, match="without a wasmgraph manifest"):
        wg.load(path)


def test_a_newer_schema(small_artifact: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "newer.wasm"
    raw = small_artifact("wasm32").read_bytes()
    with small_artifact("wasm32").open("rb") as stream:
        section = read_module(stream).custom(a.MANIFEST_SECTION)
    assert section is not None
    manifest = json.loads(raw[section.offset : section.offset + section.size]) | {"schema": 99}
    path.write_bytes(raw[: section.start])
    newer = type("Newer", (), {"kind": "wasm", "to_json": lambda _: json.dumps(manifest).encode()})()
    a.seal(path, newer)
    with pytest.raises(SchemaError, match=f"schema 99, this wasmgraph reads up to {a.SCHEMA}"):
        wg.load(path)


def test_a_native_trailer_that_lies(small_artifact: Callable[[str], Path], tmp_path: Path) -> None:
    raw = small_artifact("native").read_bytes()
    path = tmp_path / "lies.so"
    path.write_bytes(raw[:-16] + struct.pack("<Q", 1 << 60) + raw[-8:])
    with pytest.raises(ArtifactError, match="longer than the file"):
        wg.load(path)


def test_files_that_are_not_artifacts(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ArtifactError, match="not a wasmgraph artifact"):
        wg.Artifact.open(tmp_path / "x.txt")
    with pytest.raises(ArtifactError, match="No such file"):
        wg.load(tmp_path / "absent.wasm")


def test_the_inputs_do_not_overlap_the_outputs(small_artifact: Callable[[str], Path]) -> None:
    manifest = wg.Artifact.open(small_artifact("wasm32-simd128")).manifest
    spans = sorted((t.offset, t.offset + t.spec.nbytes) for t in (*manifest.inputs, *manifest.outputs))
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert np.all([start % 64 == 0 for start, _ in spans])


@pytest.mark.parametrize(
    "change",
    [
        {"param_bytes": "8"},
        {"schema": True},
        {"versions": ["a"]},
        {"features": [1]},
        {"description": []},
        {"inputs": [{"name": "x", "shape": [-1], "dtype": "float32", "offset": 64}]},
        {"inputs": [{"name": "x", "shape": [1], "dtype": "O", "offset": 64}]},
        {"inputs": [{"name": "x", "shape": [1], "dtype": "float32", "offset": 8.0}]},
        {"inputs": [{"name": "x", "shape": "12", "dtype": "float32", "offset": 64}]},
        {"inputs": [{"name": "x", "shape": [float("inf")], "dtype": "float32", "offset": 64}]},
        {"inputs": [{"name": ["x"], "shape": [1], "dtype": "float32", "offset": 64}]},
        {"model_name": ["a"]},
        {"weights": {}},
        {"versions": {"tvm": [1]}},
        {"memory_pages": [float("inf"), 1]},
        {"memory_pages": [1]},
        {"steps": [{"kernel": "k", "operator": [], "rule": "r", "flops": 1, "traffic_bytes": 1}]},
        {
            "steps": [
                {"kernel": "k", "operator": "o", "rule": "r", "flops": float("nan"), "traffic_bytes": 1}
            ]
        },
        {"inputs": [{"name": "x", "shape": [0, 1 << 60], "dtype": "float32", "offset": 64}]},
        {"params": "elsewhere"},
        {"params": "wasi", "params_sha256": "../../etc/passwd"},
        {"command": 1},
    ],
)
def test_a_manifest_of_the_wrong_form(small_artifact: Callable[[str], Path], change: dict) -> None:
    good = json.loads(a.Artifact.open(small_artifact("wasm32")).manifest.to_json())
    with pytest.raises(ArtifactError, match="the manifest"):
        a.Manifest.from_json(json.dumps(good | change).encode(), "here")


def test_a_manifest_that_is_nested_without_end() -> None:
    with pytest.raises(ArtifactError, match="the manifest cannot be read"):
        a.Manifest.from_json(b"[" * 100_000, "here")
