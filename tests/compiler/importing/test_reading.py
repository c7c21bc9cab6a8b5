"""What a model may be given as, what its identity is, and where its weights go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from tests.conftest import model_of
from wasmgraph.compiler import CompileLog
from wasmgraph.compiler.importing import import_model, read_model, weights
from wasmgraph.errors import ModelError, UnboundDimensionError, UnsupportedOperatorError, UsageError

RELU = helper.make_node("Relu", ["x"], ["y"])


def product(values: np.ndarray, *, shape: tuple[int | str, ...] = (1, 4)) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model_of([node], {"x": list(shape)}, ["y"], {"w": values})


def outside(folder: Path, values: np.ndarray, name: str = "m.onnx") -> Path:
    """A file whose weights lie in another one."""
    path = folder / name
    onnx.save(product(values), path, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
    return path


def test_identity_covers_weights_in_other_files(tmp_path: Path) -> None:
    ones, twos = np.ones((4, 4), np.float32), np.full((4, 4), 2, np.float32)
    path = outside(tmp_path, ones)
    first = read_model(path).sha256
    (tmp_path / "elsewhere").mkdir()
    assert read_model(outside(tmp_path / "elsewhere", ones)).sha256 == first
    (tmp_path / "m.onnx.bin").write_bytes(twos.tobytes())
    assert read_model(path).sha256 != first


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE_MODEL", 0)
    monkeypatch.setattr(weights, "LARGE_TENSOR", 1)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("given", ["path", "external", "proto", "bytes"])
def test_weights_that_lie_apart_compute_the_same(given: str, transposed: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1, (600, 600)).astype(np.float32)  # enough for a file
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed)
    model = model_of([node], {"x": [1, 600]}, ["y"], {"w": values})
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=given == "external", location="w.bin", size_threshold=0)
    source = {"proto": model, "bytes": model.SerializeToString()}.get(given, path)
    read = read_model(source, apart=True)
    assert read.weights.keys() == {"w"}
    assert not read.proto.graph.initializer
    x = np.ones((1, 600), np.float32)
    with wg.load(wg.compile(source)) as session:
        y = session.run({"x": x})["y"]
    np.testing.assert_allclose(y, x @ (values.T if transposed else values), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("everything_is_large")
def test_weights_that_a_normalisation_is_folded_into_stay(small_onnx: Path) -> None:
    read = read_model(small_onnx, apart=True)
    assert read.weights.keys() >= {"w3", "b3"}
    assert {tensor.name for tensor in read.proto.graph.initializer} >= {"w1", "w2", "scale", "mean"}


@pytest.mark.usefixtures("everything_is_large")
def test_identity_of_a_model_in_memory_covers_weights_that_lie_apart() -> None:
    ones, twos = np.ones((4, 4), np.float32), np.full((4, 4), 2, np.float32)
    digests = [read_model(product(values), apart=True).sha256 for values in (ones, ones, twos)]
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_fit_a_module_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = outside(tmp_path, np.ones((4, 4), np.float32))
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[:] = [1 << 15, 1 << 15]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 15
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"4,294,967,296 bytes; a WebAssembly module has"):
        wg.compile(path)


_PEAK = """
import sys, wasmgraph as wg
def peak():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
wg.compile(sys.argv[1])
small = peak()
wg.compile(sys.argv[2])
print((peak() - small) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_compiling_takes_less_than_two_and_a_half_times_the_weights(tmp_path: Path) -> None:
    size, layers = 4096, 5  # 336 MB
    rng = np.random.default_rng(0)
    names = [f"h{i}" for i in range(layers)]
    nodes = [
        helper.make_node("Gemm", [source, f"w{i}"], [names[i]], transB=1)
        for i, source in enumerate(["x", *names[:-1]])
    ]
    constants = {f"w{i}": rng.normal(0, 0.01, (size, size)).astype(np.float32) for i in range(layers)}
    large = tmp_path / "large.onnx"
    model = model_of(nodes, {"x": [1, size]}, names[-1:], constants)
    onnx.save(model, large, save_as_external_data=True, location="w.bin", size_threshold=0)
    small = tmp_path / "small.onnx"
    onnx.save(product(np.ones((4, 4), np.float32)), small)
    command = [sys.executable, "-c", _PEAK, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2.5 * 4 * layers * size * size


@pytest.mark.parametrize("suffix", [".json", ".textproto", ".onnxtxt"])
@pytest.mark.filterwarnings("ignore:The onnxtxt format")
def test_text_formats(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    onnx.save(product(np.ones((4, 4), np.float32)), path)
    assert str(import_model(path)[1].inputs[0]) == "x: float32[1, 4]"
    path.write_text("{ nonsense")
    with pytest.raises(ModelError, match="is not an ONNX file"):
        import_model(path)


def test_bytes_and_home_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = product(np.ones((4, 4), np.float32))
    assert import_model(model.SerializeToString())[1].inputs[0].shape == (1, 4)
    with pytest.raises(ModelError, match="bytes are not an ONNX file"):
        import_model(b"junk")
    monkeypatch.setenv("HOME", str(tmp_path))
    onnx.save(model, tmp_path / "m.onnx")
    assert import_model("~/m.onnx")[1].name == "m"


@pytest.mark.parametrize("place", ["Relu", "hidden", "y"])
def test_a_name_that_is_not_utf_8_is_refused(place: str) -> None:
    """Protobuf gives such a name's bytes (make fuzz, onnx_files 841: a CompileError of their decoding)."""
    nodes = [helper.make_node("Relu", ["x"], ["hidden"]), helper.make_node("Relu", ["hidden"], ["y"])]
    content = model_of(nodes, {"x": [1, 4]}, ["y"]).SerializeToString()
    broken = content.replace(place.encode(), b"\xef" + place[1:].encode())
    with pytest.raises(ModelError, match=r"not (a valid ONNX model|an ONNX file): .*"):
        wg.compile(broken)


@pytest.mark.parametrize("source", [None, 3, model_of([RELU], {"x": [1]}, ["y"]).graph])
def test_what_is_no_model_is_said(source: object) -> None:
    with pytest.raises(UsageError, match=f"this is a {type(source).__name__}"):
        wg.compile(source)


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": ("", "4")},
        {"x": (1.0, 4.0)},
        {"x": None},
        {"x": 3},
        {"x": (True, 4)},
        {"x": (-1, 4)},
        {3: (1, 4)},
        "x",
        [1],
    ],
)
def test_what_is_no_shape_is_said(shapes: object) -> None:
    with pytest.raises(UsageError, match="shapes"):
        wg.compile(product(np.ones((4, 4), np.float32)), shapes=shapes)


def test_arrays_and_lists_are_shapes() -> None:
    model = product(np.ones((4, 4), np.float32), shape=("n", 4))
    for shape in (np.array([3, 4]), [3, 4], (np.int64(3), 4)):
        assert import_model(model, {"x": shape})[1].inputs[0].shape == (3, 4)


def test_a_symbol_has_one_value() -> None:
    add = helper.make_node("Add", ["a", "b"], ["y"])
    model = model_of([add], {"a": ["n"], "b": ["n"]}, ["y"])
    _, imported = import_model(model, {"a": (3,)})
    assert imported.inputs[1].shape == (3,)
    with pytest.raises(ModelError, match="'n' two values: 2 at 'a', 3 at 'b'"):
        import_model(model, {"a": (2,), "b": (3,)})


def test_an_input_without_a_shape_asks_for_one() -> None:
    model = model_of([RELU], {"x": [1]}, ["y"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(UnboundDimensionError, match="'x' has no shape"):
        import_model(model)
    assert import_model(model, {"x": (2, 3)})[1].outputs[0].shape == (2, 3)
    assert import_model(model, {"x": ()})[1].outputs[0].shape == ()


def test_opsets_of_the_future_are_refused() -> None:
    with pytest.raises(ModelError, match="uses opset 999; opsets up to"):
        import_model(model_of([RELU], {"x": [1]}, ["y"], opset=999))


@pytest.mark.parametrize(
    ("domain", "operator", "remedy"),
    [
        ("com.microsoft", "NotOneOfThem", "compile the model as it was before"),
        ("ai.onnx.ml", "ZipMap", "'zipmap': False"),
    ],
)
def test_operators_of_other_domains_name_a_remedy(domain: str, operator: str, remedy: str) -> None:
    model = model_of([RELU], {"x": [1]}, ["y"])
    model.graph.node[0].op_type, model.graph.node[0].domain = operator, domain
    model.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(UnsupportedOperatorError, match=remedy):
        import_model(model)


def test_an_output_listed_twice_is_one() -> None:
    model = model_of([RELU], {"x": [2]}, ["y"])
    model.graph.output.append(model.graph.output[0])
    assert [o.name for o in import_model(model)[1].outputs] == ["y"]


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_sparse_tensors_are_dense(place: str, linear: bool) -> None:
    indices = ([2], [0, 3]) if linear else ([2, 2], [0, 0, 1, 1])
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [2], [3.0, 4.0]),
        helper.make_tensor("at", TensorProto.INT64, *indices),
        [2, 2],
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if place == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    model = model_of(nodes, {"x": [1, 2]}, ["y"])
    if place == "initializer":
        model.graph.sparse_initializer.append(sparse)
    with wg.load(wg.compile(model)) as session:
        y = session.run({"x": np.ones((1, 2), np.float32)})["y"]
    np.testing.assert_array_equal(y, [[3, 4]])


def lost(build: Callable[[], onnx.ModelProto]) -> CompileLog:
    log = CompileLog()
    artifact = wg.compile(build(), log=log)
    assert artifact.manifest.notes == log.notes
    return log


def test_a_model_that_is_not_simplified_says_so() -> None:
    def relu_of_int16() -> onnx.ModelProto:
        graph = helper.make_graph(
            [RELU],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.INT16, [3])],
            [helper.make_tensor_value_info("y", TensorProto.INT16, None)],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    (note,) = lost(relu_of_int16).notes
    assert "onnxruntime could not simplify the model" in note


@pytest.mark.usefixtures("everything_is_large")
def test_weights_beyond_one_message_leave_normalizations_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def normalized() -> onnx.ModelProto:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
        ]
        ones = np.ones(2, np.float32)
        constants = {"w": np.ones((2, 2, 1, 1), np.float32), "s": ones, "b": ones, "m": ones, "v": ones}
        return model_of(nodes, {"x": [1, 2, 3, 3]}, ["y"], constants)

    assert not lost(normalized).notes
    monkeypatch.setattr(weights, "_MESSAGE_BYTES", 0)
    (note,) = lost(normalized).notes
    assert "weights of convolutions are larger" in note


def test_a_newer_version_of_the_format_loses_nothing(small_onnx: Path) -> None:
    def newer() -> onnx.ModelProto:
        model = onnx.load(small_onnx)
        model.ir_version = onnx.IR_VERSION
        return model

    assert not lost(newer).notes


def test_a_weight_may_be_of_any_spelling() -> None:
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    model = product(values)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values.reshape(-1).tolist())
    assert np.array_equal(numpy_helper.to_array(read_model(model).proto.graph.initializer[0]), values)
