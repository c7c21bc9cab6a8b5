"""Open dimensions: one module gives onnxruntime's results for every value in its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from wasmgraph.artifact import Artifact
from wasmgraph.errors import (
    FeedError,
    IndexRangeError,
    ModelError,
    OpenSizeError,
    UnboundDimensionError,
    UnsupportedOperatorError,
    UsageError,
)
from wasmgraph.models.bert import Config, build, random_weights

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
NODE = helper.make_node
Inputs = Mapping[str, tuple[int, list[Any]]]
RNG = np.random.default_rng(3)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto],
    inputs: Inputs,
    outputs: Mapping[str, int],
    constants: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "open",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_value_info(n, helper.make_tensor_type_proto(k, None)) for n, k in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def one(node: onnx.NodeProto, shape: list[Any], **constants: Any) -> onnx.ModelProto:
    """A node of one input ``x``, which gives ``y``."""
    return model([node], {"x": (FLOAT, shape)}, {"y": FLOAT}, constants)


MODELS: dict[str, onnx.ModelProto] = {
    "elementwise": one(NODE("Add", ["x", "b"], ["y"]), ["n", "m", 7], b=draw(7)),
    "broadcast": model(
        [NODE("Mul", ["x", "z"], ["y"])],
        {"x": (FLOAT, ["n", "m"]), "z": (FLOAT, ["m"])},
        {"y": FLOAT},
    ),
    "dense": model(
        [NODE("MatMul", ["x", "w"], ["p"]), NODE("Add", ["p", "b"], ["a"]), NODE("Relu", ["a"], ["y"])],
        {"x": (FLOAT, ["n", "m", 16])},
        {"y": FLOAT},
        {"w": draw(16, 27), "b": draw(27)},
    ),
    "wide rows": one(NODE("MatMul", ["x", "w"], ["y"]), ["n", 7], w=draw(7, 264)),
    "products": model(
        [NODE("MatMul", ["x", "z"], ["s"]), NODE("MatMul", ["s", "x"], ["y"])],
        {"x": (FLOAT, ["n", "m", 12]), "z": (FLOAT, ["n", 12, "m"])},
        {"y": FLOAT},
    ),
    "attention": model(
        [
            NODE("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]),
            NODE("MatMul", ["q", "t"], ["s"]),
            NODE("Add", ["s", "mask"], ["a"]),
            NODE("Softmax", ["a"], ["p"], axis=-1),
            NODE("MatMul", ["p", "v"], ["y"]),
        ],
        {
            **{name: (FLOAT, ["n", 2, "m", 20]) for name in ("q", "k", "v")},
            "mask": (FLOAT, ["n", 1, 1, "m"]),
        },
        {"y": FLOAT},
    ),
    "softmax": one(NODE("Softmax", ["x"], ["y"], axis=-1), [3, "n"]),
    "mean": one(NODE("ReduceMean", ["x", "axes"], ["y"], keepdims=0), [3, "n", 5], axes=np.array([1])),
    "argmax": model([NODE("ArgMax", ["x"], ["y"], axis=1)], {"x": (FLOAT, [2, "n", 3])}, {"y": INT}),
    "normalization": one(
        NODE("LayerNormalization", ["x", "s", "b"], ["y"]), ["n", "m", 24], s=draw(24), b=draw(24)
    ),
    "transpose": one(NODE("Transpose", ["x"], ["y"], perm=[2, 0, 1]), ["n", "m", 5]),
    "reshape": model(
        [
            NODE("Shape", ["x"], ["all"]),
            NODE("Slice", ["all", "zero", "two"], ["outer"]),
            NODE("ReduceProd", ["outer"], ["rows"]),
            NODE("Concat", ["rows", "minus"], ["shape"], axis=0),
            NODE("Reshape", ["x", "shape"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "m", 6])},
        {"y": FLOAT},
        {"zero": np.array([0]), "two": np.array([2]), "minus": np.array([-1])},
    ),
    "concatenation": model(
        [NODE("Concat", ["x", "z"], ["y"], axis=1)],
        {"x": (FLOAT, [2, "n", 5]), "z": (FLOAT, [2, "m", 5])},
        {"y": FLOAT},
    ),
    "last": one(NODE("Gather", ["x", "i"], ["y"], axis=1), [2, "n", 5], i=np.array(-1)),
    "slice": one(
        NODE("Slice", ["x", "a", "b", "axes", "steps"], ["y"]),
        ["n", "m"],
        a=np.array([-3, -1]),
        b=np.array([2**40, -(2**40)]),
        axes=np.array([0, 1]),
        steps=np.array([2, -1]),
    ),
    "positions": model(
        [
            NODE("Shape", ["x"], ["all"]),
            NODE("Gather", ["all", "one"], ["length"]),
            NODE("Range", ["zero", "length", "one"], ["at"]),
            NODE("Cast", ["at"], ["float"], to=FLOAT),
            NODE("Add", ["x", "float"], ["y"]),
        ],
        {"x": (FLOAT, [2, "n"])},
        {"y": FLOAT},
        {"zero": np.array(0), "one": np.array(1)},
    ),
    "expand": model(
        [
            NODE("Shape", ["x"], ["all"]),
            NODE("Expand", ["c", "all"], ["wide"]),
            NODE("ConstantOfShape", ["all"], ["zeros"]),
            NODE("Sub", ["wide", "zeros"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "m"])},
        {"y": FLOAT},
        {"c": draw(1, 1)},
    ),
    "length": model(
        [
            NODE("Size", ["x"], ["count"]),
            NODE("Cast", ["count"], ["float"], to=FLOAT),
            NODE("Div", ["x", "float"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "m"])},
        {"y": FLOAT},
    ),
    "padding": one(NODE("Pad", ["x", "p"], ["y"]), ["n", 3], p=np.array([1, 0, 2, 1])),
    "sums": one(NODE("CumSum", ["x", "axis"], ["y"]), [2, "n"], axis=np.array(1)),
    "images": one(NODE("Conv", ["x", "k"], ["y"], pads=[1] * 4), ["n", 64, 28, 28], k=draw(64, 64, 3, 3)),
    "pixels": one(NODE("Conv", ["x", "k"], ["y"]), ["n", 16, 7, 7], k=draw(24, 16, 1, 1)),
    "convolution": one(
        NODE("Conv", ["x", "k", "b"], ["y"], pads=[1] * 4, strides=[2, 1]),
        [1, 3, "n", "m"],
        k=draw(11, 3, 3, 3),
        b=draw(11),
    ),
    "pointwise": one(NODE("Conv", ["x", "k"], ["y"]), [1, 16, "n", "m"], k=draw(24, 16, 1, 1)),
    "depthwise": one(
        NODE("Conv", ["x", "k"], ["y"], pads=[1] * 4, group=16), [1, 16, "n", "m"], k=draw(16, 1, 3, 3)
    ),
    "signal": one(NODE("Conv", ["x", "k"], ["y"], pads=[2, 2]), [1, 4, "n"], k=draw(8, 4, 5)),
    "columns": one(NODE("ReduceL2", ["x", "axes"], ["y"], keepdims=0), ["n", "m"], axes=np.array([0])),
    "centred": model(
        [NODE("ReduceMean", ["x", "axes"], ["mean"]), NODE("Sub", ["x", "mean"], ["y"])],
        {"x": (FLOAT, ["n", "m"])},
        {"y": FLOAT},
        {"axes": np.array([0])},
    ),
    "softmax of columns": one(NODE("Softmax", ["x"], ["y"], axis=0), ["n", "n"]),
    "log softmax of columns": one(NODE("LogSoftmax", ["x"], ["y"], axis=1), [2, "n", "m"]),
    "pieces of rows": model(
        [NODE("Concat", ["z", "x", "x"], ["y"], axis=1)],
        {"x": (FLOAT, [5, "n"]), "z": (FLOAT, [5, 1])},
        {"y": FLOAT},
    ),
    "backwards": one(
        NODE("Slice", ["x", "minus", "least", "zero", "minus"], ["y"]),
        ["before", 2],
        minus=np.array([-1]),
        least=np.array([-(2**60)]),
        zero=np.array([0]),
    ),
    "rows and columns joined": model(
        [
            NODE("Reshape", ["x", "shape"], ["rows"]),
            NODE("Gemm", ["rows", "w", "b"], ["p"], transB=1),
            NODE("CumSum", ["p", "axis"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "m", 4])},
        {"y": FLOAT},
        {"shape": np.array([-1, 4]), "w": draw(17, 4), "b": draw(17), "axis": np.array(0)},
    ),
    "three times as many rows": model(
        [
            NODE("Concat", ["x", "x", "x"], ["all"], axis=0),
            NODE("Transpose", ["all"], ["turned"], perm=[1, 0]),
            NODE("MatMul", ["all", "turned"], ["s"]),
            NODE("Softmax", ["s"], ["p"], axis=-1),
            NODE("MatMul", ["p", "all"], ["a"]),
            NODE("Tanh", ["a"], ["t"]),
            NODE("CumSum", ["t", "axis"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "m"])},
        {"y": FLOAT},
        {"axis": np.array(0)},
    ),
    "every other": model(
        [
            NODE("Conv", ["x", "k"], ["c"], strides=[2]),
            NODE("Transpose", ["c"], ["turned"], perm=[0, 2, 1]),
            NODE("MatMul", ["turned", "c"], ["y"]),
        ],
        {"x": (FLOAT, ["n", 4, "m"])},
        {"y": FLOAT},
        {"k": draw(6, 4, 1)},
    ),
    **{
        kind: model(
            [NODE(kind, ["x", "w", "r", "b"], ["y", "last"], hidden_size=9, direction="bidirectional")],
            {"x": (FLOAT, ["n", "m", 5])},
            {"y": FLOAT, "last": FLOAT},
            {"w": draw(2, gates * 9, 5), "r": draw(2, gates * 9, 9), "b": draw(2, 2 * gates * 9)},
        )
        for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    },
    "twice as large": one(
        NODE("Resize", ["x", "", "s"], ["y"]), ["n", 2, "m", 5], s=np.array([1, 1, 2, 1.5], np.float32)
    ),
    "as large as another": model(
        [NODE("Shape", ["z"], ["sizes"]), NODE("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")],
        {"x": (FLOAT, [1, 2, 6, "n"]), "z": (FLOAT, [1, 2, "m", 9])},
        {"y": FLOAT},
    ),
    "smaller": one(
        NODE(
            *("Resize", ["x", "", "", "sizes"], ["y"]),
            mode="cubic",
            coordinate_transformation_mode="align_corners",
            exclude_outside=1,
        ),
        [1, 2, "n", "m"],
        sizes=np.array([1, 2, 3, 2]),
    ),
    "best few": model(
        [
            NODE("Shape", ["x"], ["sizes"]),
            NODE("Min", ["sizes", "five"], ["k"]),
            NODE("TopK", ["x", "k"], ["y", "at"]),
        ],
        {"x": (FLOAT, ["n"])},
        {"y": FLOAT, "at": INT},
        {"five": np.array([5])},
    ),
    "tiles": model(
        [
            NODE("Shape", ["x"], ["sizes"]),
            NODE("Tile", ["x", "sizes"], ["wide"]),
            NODE("Tile", ["wide", "twice"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "m"])},
        {"y": FLOAT},
        {"twice": np.array([1, 2])},
    ),
    "as many classes as rows": model(
        [
            NODE("Size", ["x"], ["count"]),
            NODE("OneHot", ["at", "count", "values"], ["hot"], axis=0),
            NODE("Add", ["hot", "x"], ["y"]),
        ],
        {"x": (FLOAT, ["n"])},
        {"y": FLOAT},
        {"at": np.array([0, 2, -1])[:, None], "values": np.array([0, 3], np.float32)},
    ),
    "padded to fours": model(
        [
            NODE("Shape", ["x"], ["sizes"]),
            NODE("Neg", ["sizes"], ["less"]),
            NODE("Mod", ["less", "four"], ["rest"]),
            NODE("Concat", ["none", "rest"], ["pads"], axis=0),
            NODE("Pad", ["x", "pads", "one"], ["y"]),
        ],
        {"x": (FLOAT, ["n", "m"])},
        {"y": FLOAT},
        {"four": np.array([4]), "none": np.array([0, 0]), "one": np.array(1, np.float32)},
    ),
    "sums of rows": one(NODE("CumSum", ["x", "axis"], ["y"], reverse=1), ["n", 6], axis=np.array(1)),
    "pooling": one(NODE("GlobalMaxPool", ["x"], ["y"]), ["n", 4, "m"]),
    "cache": model(
        [
            NODE("Concat", ["past", "x"], ["present"], axis=1),
            NODE("ReduceSum", ["present", "axes"], ["y"], keepdims=0),
        ],
        {"past": (FLOAT, [2, "before", 5]), "x": (FLOAT, [2, 1, 5])},
        {"present": FLOAT, "y": FLOAT},
        {"axes": np.array([1])},
    ),
}
MOST = 20


def names(proto: onnx.ModelProto) -> list[str]:
    dims = [d.dim_param for i in proto.graph.input for d in i.type.tensor_type.shape.dim]
    return sorted({name for name in dims if name})


def bounds(proto: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """A cache may be empty."""
    most = 3 if names(proto) == ["n"] else MOST
    return {name: (0 if name == "before" else 1, most) for name in names(proto)}


def feeds(proto: onnx.ModelProto, values: Mapping[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(sum(values.values()))
    found = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [values[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        found[value.name] = rng.normal(0, 1, shape).astype(np.float32)
    return found


# By the identity of a model, which is kept with it.
_REFERENCES: dict[int, tuple[onnx.ModelProto, onnxruntime.InferenceSession]] = {}


def reference_of(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    if id(proto) not in _REFERENCES:
        made = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        _REFERENCES[id(proto)] = proto, made
    return _REFERENCES[id(proto)][1]


def agrees(session: wg.Session, proto: onnx.ModelProto, values: Mapping[str, int]) -> None:
    given = feeds(proto, values)
    reference = reference_of(proto)
    found = session.run(given)
    for output, expected in zip(reference.get_outputs(), reference.run(None, given), strict=True):
        assert found[output.name].shape == expected.shape, values
        apart = 5e-5 * (1 + np.abs(expected).max(initial=0))  # of sums, and of Winograd's transforms
        np.testing.assert_allclose(found[output.name], expected, 2e-4, apart, err_msg=str(values))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory):
    """The artifact of a model and target, compiled once."""
    made: dict[tuple[str, str], Artifact] = {}

    def get(name: str, target: str) -> Artifact:
        if (name, target) not in made:
            made[name, target] = wg.compile(MODELS[name], dims=bounds(MODELS[name]), target=target)
        return made[name, target]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_a_module_serves_every_value_in_its_bounds(name: str, compiled) -> None:
    proto, limits = MODELS[name], bounds(MODELS[name])
    with wg.load(compiled(name, "wasm32-simd128")) as session:
        for corner in (0, 1):
            agrees(session, proto, {dim: pair[corner] for dim, pair in limits.items()})

        @given(st.fixed_dictionaries({dim: st.integers(*pair) for dim, pair in limits.items()}))
        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        def between(values: dict[str, int]) -> None:
            agrees(session, proto, values)

        between()


@pytest.mark.parametrize(
    "name", ["attention", "dense", "convolution", "images", "mean", "rows and columns joined", "LSTM"]
)
@pytest.mark.parametrize("target", ["wasm32", "wasm32-relaxed-simd", "wasm32-simd128-threads", "native"])
def test_every_target_takes_open_dimensions(name: str, target: str, compiled) -> None:
    proto, limits = MODELS[name], bounds(MODELS[name])
    threads = 2 if "threads" in target else 1
    with wg.load(compiled(name, target), threads=threads) as session:
        for share in (0.0, 0.4, 1.0):
            values = {n: low + round(share * (high - low)) for n, (low, high) in limits.items()}
            agrees(session, proto, values)


@pytest.mark.parametrize("options", [{"runtime": "node"}, {"untrusted": True}])
def test_every_host_takes_open_dimensions(options: dict[str, Any], compiled) -> None:
    proto = MODELS["dense"]
    with wg.load(compiled("dense", "wasm32-simd128"), **options) as session:
        assert [str(dim) for dim in session.dims] == ["m=1..20", "n=1..20"]
        for values in ({"m": 1, "n": 20}, {"m": 7, "n": 2}, {"m": 20, "n": 20}):
            agrees(session, proto, values)
        with pytest.raises(FeedError, match="'m' is 21"):
            session.run({"x": np.zeros((1, 21, 16), np.float32)})


def test_an_encoder_reads_any_number_of_texts_of_any_length() -> None:
    config = Config(32, 2, 2, 48, 90, 24)
    proto = build(config, random_weights(config), "encoder", {})
    theirs = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    artifact = wg.compile(proto, dims={"batch": (1, 4), "sequence": (1, 24)})
    assert artifact.manifest.ops_fallback == artifact.manifest.ops_slow == 0
    assert [s.rule for s in artifact.manifest.steps].count("attention") == 2
    rng = np.random.default_rng(4)
    with wg.load(artifact) as session:
        for batch, length in ((1, 1), (1, 8), (4, 24), (3, 7), (2, 17), (4, 4)):
            mask = (rng.random((batch, length)) < 0.8).astype(np.int64)
            mask[:, 0] = 1
            ids = rng.integers(0, 90, (batch, length))
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
            found = session.run(given)
            for output, expected in zip(theirs.get_outputs(), theirs.run(None, given), strict=True):
                np.testing.assert_allclose(found[output.name], expected, rtol=1e-3, atol=1e-4)


def test_shapes_and_dims_are_shown_by_name(compiled) -> None:
    artifact = compiled("dense", "wasm32-simd128")
    assert str(artifact.inputs[0]) == "x: float32[n, m, 16]"
    assert str(artifact.outputs[0]) == "y: float32[n, m, 27]"
    manifest = artifact.manifest
    assert manifest.schema == 4
    assert manifest.ops_fallback == 0
    (product,) = [step for step in manifest.steps if step.product]
    assert product.at({"n": 3, "m": 5}).flops == 2 * 3 * 5 * 16 * 27
    with wg.load(artifact) as session:
        assert repr(session) == "<WasmtimeSession: x: float32[n, m, 16] → y: float32[n, m, 27]>"


def test_what_is_fed_must_fit(compiled) -> None:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    with wg.load(compiled("broadcast", "wasm32-simd128")) as session:
        with pytest.raises(FeedError, match="'z'.*m is 5; m=4 at 'x'"):
            session.run({"x": zeros(3, 4), "z": zeros(5)})
        with pytest.raises(FeedError, match="dimension 'n' is 0; this graph was compiled for 1 to 20"):
            session.run({"x": zeros(0, 4), "z": zeros(4)})
        with pytest.raises(FeedError, match=r"expected z: float32\[m\], got an array of shape \[4, 1\]"):
            session.run({"x": zeros(3, 4), "z": zeros(4, 1)})
        with pytest.raises(FeedError, match="no dimension is called 'k'; this graph's are m, n"):
            session.run({"x": zeros(3, 4), "z": zeros(4)}, dims={"k": 1})
        with pytest.raises(FeedError, match="n is 3; n=2"):
            session.run({"x": zeros(3, 4), "z": zeros(4)}, dims={"n": 2})
        with pytest.raises(FeedError, match="whole number"):
            session.run({"x": zeros(3, 4), "z": zeros(4)}, dims={"n": 2.5})  # type: ignore[dict-item]
        found = session.run({"x": zeros(3, 4), "z": zeros(4)}, dims={"n": 3})
        assert found["y"].shape == (3, 4)


def test_nothing_of_an_open_number_of_rows() -> None:
    """A tensor that is empty whatever the dimensions are, where threads share the rows."""
    begin, ends, axis = np.array([2]), np.array([9]), np.array([1])
    proto = one(NODE("Slice", ["x", "a", "b", "c"], ["y"]), ["n", 2, 3], a=begin, b=ends, c=axis)
    with wg.load(wg.compile(proto, target="wasm32-simd128-threads", dims={"n": (1, 9)})) as session:
        agrees(session, proto, {"n": 4})
    empty = one(NODE("Conv", ["x", "k"], ["y"]), [1, 0, "n"], k=np.zeros((3, 0, 1), np.float32))
    with pytest.raises(UnsupportedOperatorError, match="Conv over no channels"):
        wg.compile(empty, dims={"n": (1, 9)})


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_a_sum_of_nothing_that_no_rule_takes(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmgraph.compiler.schedule.RULES", {})
    proto = one(NODE("ReduceSum", ["x", "axes"], ["y"], keepdims=0), ["n", 3], axes=np.array([0]))
    with wg.load(wg.compile(proto, target=target, dims={"n": (0, 4)})) as session:
        for rows in (4, 0):
            found = session.run({"x": np.ones((rows, 3), np.float32)})["y"]
            np.testing.assert_array_equal(found, [rows] * 3)


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_sums_over_many_open_terms(target: str) -> None:
    proto = MODELS["products"]
    with wg.load(wg.compile(proto, target=target, dims={"n": (1, 3), "m": (1, 128)})) as session:
        for m in (1, 64, 128):
            agrees(session, proto, {"n": 2, "m": m})


@pytest.mark.parametrize("target", ["wasm32-simd128", "native"])
def test_more_values_than_a_session_remembers(target: str) -> None:
    with wg.load(wg.compile(MODELS["sums"], target=target, dims={"n": (1, 1100)})) as session:
        for n in (*range(1, 1101), 1, 1100):
            found = session.run({"x": np.ones((2, n), np.float32)})["y"]
            np.testing.assert_array_equal(found[:, -1], [n, n])
        x = [[1.0, 2.0]] * 2
        for given in ({}, {"n": np.int64(2)}, {"n": 2}):
            np.testing.assert_array_equal(
                session.run({"x": x}, strict=False, dims=given)["y"], [[1, 3]] * 2
            )


def test_a_sum_of_names_is_a_size() -> None:
    proto = model(
        [NODE("Concat", ["past", "x"], ["all"], axis=0), NODE("Add", ["all", "mask"], ["y"])],
        {"past": (FLOAT, ["p"]), "x": (FLOAT, ["s"]), "mask": (FLOAT, ["p + s"])},
        {"y": FLOAT},
    )
    artifact = wg.compile(proto, dims={"p": (0, 9), "s": (1, 3)})
    assert str(artifact.inputs[2]) == "mask: float32[p+s]"
    with wg.load(artifact) as session:
        for p, s in ((0, 1), (0, 3), (9, 2)):
            given = [np.arange(count, dtype=np.float32) for count in (p, s, p + s)]
            found = session.run(dict(zip(("past", "x", "mask"), given, strict=True)))
            np.testing.assert_array_equal(found["y"], np.concatenate(given[:2]) + given[2])
        with pytest.raises(FeedError, match=r"p\+s is 4"):
            session.run({n: np.zeros(k, np.float32) for n, k in (("past", 2), ("x", 1), ("mask", 4))})


def test_names_can_be_given() -> None:
    proto = one(NODE("Relu", ["x"], ["y"]), [None, 3])
    with wg.load(wg.compile(proto, shapes={"x": ("rows", 3)}, dims={"rows": (1, 4)})) as session:
        assert session.run({"x": np.ones((4, 3), np.float32)})["y"].shape == (4, 3)
    with wg.load(wg.compile(MODELS["dense"], dims={"n": 2, "m": (1, 4)})) as session:
        assert str(session.inputs[0]) == "x: float32[2, m, 16]"
    fixed = one(NODE("Relu", ["x"], ["y"]), [1, 3])
    with wg.load(wg.compile(fixed, shapes={"x": ("batch", 3)}, dims={"batch": (1, 4)})) as session:
        assert session.run({"x": -np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"dims": {"n": (4, 2)}}, UsageError, "from 4 to 2"),
        ({"dims": {"n": (1, 2, 3)}}, UsageError, "the least and the most"),
        ({"dims": {"n": "1..4"}}, UsageError, "the least and the most"),
        ({"dims": {"n": (-1, 4)}}, UsageError, "the least and the most"),
        ({"dims": {"n": (1, 1 << 31)}}, UsageError, "the most that a dimension can be"),
        ({"dims": [1, 2]}, UsageError, "a mapping of names to bounds"),
        ({"dims": {"n": (1, 4)}}, UnboundDimensionError, "no value for m"),
        ({"dims": {"n": (1, 4), "m": 2, "k": 1}}, ModelError, "'k'.*no dimension of an input.*are m, n"),
        ({"shapes": {"x": ("a", 1, 16)}}, UnboundDimensionError, "'a', which has no bounds"),
        (
            {"dims": {"n": (1, 1 << 10), "m": (1, 1 << 20)}},
            ModelError,
            r"The largest is .*with m of at most 2\d,\d\d\d they fit",
        ),
    ],
)
def test_bounds_must_make_sense(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        wg.compile(MODELS["dense"], **options)


def test_what_a_number_decides_must_be_a_number() -> None:
    proto = one(NODE("Pad", ["x", "p"], ["y"], mode="reflect"), ["n", 3], p=np.array([1, 0, 1, 0]))
    with pytest.raises(OpenSizeError, match="Pad.*whether 1 is less than n depends on n"):
        wg.compile(proto, dims={"n": (1, 4)})


def test_an_index_beyond_this_run_is_an_error() -> None:
    proto = one(NODE("Gather", ["x", "i"], ["y"]), ["n", 2], i=np.array([0, 3]))
    with wg.load(wg.compile(proto, dims={"n": (1, 9)})) as session:
        assert session.run({"x": np.ones((4, 2), np.float32)})["y"].shape == (2, 2)
        with pytest.raises(IndexRangeError, match="index 3.*from -3 to 2"):
            session.run({"x": np.ones((3, 2), np.float32)})
