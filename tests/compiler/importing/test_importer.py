from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.external_data_helper import set_external_data

import wasmgraph as wg
from tests.conftest import model_of
from wasmgraph.compiler.importing import import_model
from wasmgraph.errors import ModelError, UnboundDimensionError, UnsupportedOperatorError

RELU = helper.make_node("Relu", ["x"], ["y"], "act")


def test_not_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    for content in (b"hello, this is text", b"", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="x.onnx is not a"):
            import_model(path, {})


def test_a_missing_file() -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        import_model("absent.onnx", {})


def test_outputs_whose_shape_is_not_said(tmp_path: Path) -> None:
    model = model_of([RELU], {"x": ["n", 3]}, ["y"])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "shapeless.onnx"
    onnx.save(model, path)
    assert import_model(path, {"x": (2, 3)})[1].outputs[0].shape == (2, 3)


def test_all_unsupported_operators_are_named_at_once() -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], "first", domain="my.ops"),
        RELU,
        helper.make_node("RandomNormalLike", ["y"], ["z"], "second"),
    ]
    weights = {"w": np.zeros((1, 8, 3), np.float32), "r": np.zeros((1, 8, 2), np.float32)}
    model = model_of(nodes, {"x": [2, 1, 3]}, ["z"], weights)
    with pytest.raises(
        UnsupportedOperatorError, match=r"opset 17.*RandomNormalLike at second; my.ops.Frobnicate at first"
    ):
        import_model(model, {})


def test_unknown_operators_of_a_file_are_named_before_onnx_stops_at_the_first(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("FooBar", ["x"], ["a"], "n1"),
        helper.make_node("BazQux", ["a"], ["b"], "n2"),
        helper.make_node("RandomNormalLike", ["b"], ["v"], "n3"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "unknown",
        [value("x", onnx.TensorProto.FLOAT, [4])],
        [value("v", onnx.TensorProto.FLOAT, [4])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(
        UnsupportedOperatorError, match="BazQux at n2; FooBar at n1; RandomNormalLike at n3"
    ):
        import_model(tmp_path / "m.onnx", {})


def test_inputs_that_are_initializers_are_not_fed() -> None:
    """As older exporters write them; onnxruntime folds the initializer and leaves the input."""
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    model = model_of([reshape], {"x": [6]}, ["y"], {"shape": np.array([2, 3])})
    model.graph.input.append(helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [2]))
    _, imported = import_model(model, {})
    assert [spec.name for spec in imported.inputs] == ["x"]
    assert imported.outputs[0].shape == (2, 3)


def test_an_unbound_dimension_is_named_with_its_remedy() -> None:
    model = model_of([RELU], {"x": ["batch", 3, None]}, ["y"])
    with pytest.raises(UnboundDimensionError, match=r"no value for batch, \?\. .*--shape x=1,3,1"):
        import_model(model, {})


def test_binding_shapes() -> None:
    model = model_of([RELU], {"x": ["batch", 3]}, ["y"])
    _, imported = import_model(model, {"x": (4, 3)})
    assert imported.inputs[0].shape == imported.outputs[0].shape == (4, 3)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"  # ours is a copy


@pytest.mark.parametrize("batch", [2, 16])
def test_a_batch_of_one_can_be_bound_to_more(small_onnx: Path, batch: int) -> None:
    x = np.random.default_rng(0).normal(0, 1, (batch, 3, 19, 17)).astype(np.float32)
    artifact = wg.compile(small_onnx, shapes={"x": x.shape})
    with wg.load(artifact) as session, wg.load(small_onnx) as single:
        outputs = session.run({"x": x})
        for row in range(batch):
            for name, value in single.run({"x": x[row : row + 1]}).items():
                np.testing.assert_allclose(outputs[name][row], value[0], rtol=1e-4, atol=1e-5)


def test_a_batch_that_is_built_in() -> None:
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    model = model_of([reshape], {"x": [1, 6]}, ["y"], {"shape": np.array([1, 2, 3])})
    with pytest.raises(ModelError, match="Reshape"):
        import_model(model, {"x": (4, 6)})


def test_a_scalar_can_be_bound() -> None:
    model = model_of([helper.make_node("Add", ["x", "n"], ["y"])], {"x": [2], "n": []}, ["y"])
    assert import_model(model, {"n": ()})[1].inputs[1].shape == ()


def test_a_size_of_zero_is_a_size() -> None:
    """A cache before the first step; what has no value, or a negative one, must be bound."""
    for declared, shapes in (([2, 0], {}), (["batch", "past"], {"x": (2, 0)}), ([2, -1], {"x": (2, 0)})):
        _, imported = import_model(model_of([RELU], {"x": declared}, ["y"]), shapes)
        assert imported.inputs[0].shape == imported.outputs[0].shape == (2, 0)
    with pytest.raises(UnboundDimensionError, match=r"no value for \?, -1\. .*--shape x=0,1,1 "):
        import_model(model_of([RELU], {"x": [0, None, -1]}, ["y"]), {})
    with pytest.raises(ModelError, match=r"shape \[2, 0\]; the model says \[2, 3\]"):
        import_model(model_of([RELU], {"x": [2, 3]}, ["y"]), {"x": (2, 0)})


def test_a_zero_that_means_unknown_can_be_bound() -> None:
    _, imported = import_model(model_of([RELU], {"x": [0, 3]}, ["y"]), {"x": (2, 3)})
    assert imported.inputs[0].shape == (2, 3)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 1)])
def test_contradictory_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="the model says"):
        import_model(model_of([RELU], {"x": ["n", 3]}, ["y"]), {"x": shape})


def test_a_shape_for_no_input() -> None:
    with pytest.raises(ModelError, match="'z', which is no input; the inputs are x"):
        import_model(model_of([RELU], {"x": [1]}, ["y"]), {"z": (1,)})


def test_batch_norm_is_folded_away(small_onnx: Path) -> None:
    text = import_model(small_onnx, {})[0].script()
    assert "batch_norm" not in text
    assert text.count("R.nn.conv2d") == 2


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", [0, 0, 1, 1]), ("SAME_LOWER", [1, 1, 0, 0])])
def test_auto_pad_becomes_the_convolutions_own_padding(mode: str, pads: list[int]) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=mode, strides=[2, 2])
    model = model_of([conv], {"x": [1, 1, 6, 6]}, ["y"], {"w": np.ones((1, 1, 3, 3), np.float32)})
    text = import_model(model, {})[0].script()
    assert "pad(" not in text
    assert f"padding={pads}" in text


def test_the_description_is_read() -> None:
    model = model_of([RELU], {"x": [1]}, ["y"])
    helper.set_model_props(model, {"wasmgraph": '{"weights": "trained"}'})
    assert import_model(model, {})[1].description == {"weights": "trained"}
    helper.set_model_props(model, {"wasmgraph": "[1"})
    with pytest.raises(ModelError, match="is not JSON"):
        import_model(model, {})


def test_the_digest_is_the_files(small_onnx: Path) -> None:
    expected = hashlib.sha256(small_onnx.read_bytes()).hexdigest()
    assert import_model(small_onnx, {})[1].sha256 == expected


WEIGHTS = np.arange(12, dtype=np.float32)


def with_weights_at(folder: Path, location: str, **where: int) -> Path:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 4]}, ["y"], {"w": WEIGHTS.reshape(4, 3)}
    )
    tensor = model.graph.initializer[0]
    set_external_data(tensor, location, **where)
    tensor.ClearField("raw_data")
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    path = with_weights_at(tmp_path, "w.bin")
    assert import_model(path, {})[1].outputs[0].shape == (2, 3)
    with pytest.raises(ModelError, match=r"tensor 'w' is kept in another file.*onnx\.load"):
        import_model(onnx.load(path, load_external_data=False), {})


@pytest.mark.parametrize(
    ("location", "where", "complaint"),
    [
        ("missing.bin", {}, "not regular file"),
        ("../outside.bin", {}, "outside the directory"),
        ("link.bin", {}, "symbolic link"),
        ("short.bin", {}, r"'w' is not the \[4, 3\] it should be"),
        ("w.bin", {"offset": 40, "length": 48}, "exceeds available data"),
        ("w.bin", {"offset": -4, "length": 48}, "non-negative"),
    ],
)
def test_weights_that_are_not_where_they_should_be(
    tmp_path: Path, location: str, where: dict[str, int], complaint: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(WEIGHTS.tobytes())
    (folder / "w.bin").write_bytes(WEIGHTS.tobytes())
    (folder / "short.bin").write_bytes(WEIGHTS.tobytes()[:20])
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ModelError, match=complaint):
        import_model(with_weights_at(folder, location, **where), {})


def test_weights_at_an_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(ModelError, match="should be a relative path"):
        import_model(with_weights_at(tmp_path, str(tmp_path / "w.bin")), {})
