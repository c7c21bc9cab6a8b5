"""Every rule against numpy (ONNX's reference evaluator) over random shapes that divide no tile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

import wasmgraph as wg
from tests.conftest import TARGETS as ONE_THREAD
from tests.conftest import model_of
from wasmgraph.compiler import CompileLog
from wasmgraph.compiler.operators.packing import pack_conv2d
from wasmgraph.compiler.schedule import FALLBACK, RULES
from wasmgraph.compiler.schedule.decisions import tile_pixels
from wasmgraph.runtimes.wasmtime_meter import meter
from wasmgraph.targets import get_target

# Two threads share what the rules say they may; relaxed SIMD and native-128 have vectors of their own.
TARGETS = (*ONE_THREAD, "wasm32-simd128-threads", "wasm32-relaxed-simd", "native-128")


def several(target: str) -> settings:
    """How many shapes a rule is tried on: fewer where a target's code is another's, shared or widened."""
    return settings(
        max_examples=6 if target in ONE_THREAD else 3,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


def check(model: onnx.ModelProto, target: str, *rules: str, tolerance: float = 1e-5) -> None:
    """Compile, run, compare with numpy; one of ``rules`` must have scheduled something."""
    artifact = wg.compile(model, target=target)
    assert {step.rule for step in artifact.manifest.steps} & set(rules)
    rng = np.random.default_rng(0)
    with wg.load(artifact, threads=2 if target.endswith("threads") else 1) as session:
        feeds = {s.name: rng.normal(0, 1, s.shape).astype(s.dtype) for s in session.inputs}
        found = session.run(feeds)
    expected = ReferenceEvaluator(model).run(None, feeds)
    for value, array in zip(model.graph.output, expected, strict=True):
        assert found[value.name].shape == array.shape
        np.testing.assert_allclose(
            found[value.name], array, rtol=1e-4, atol=tolerance * (1 + np.abs(array).max())
        )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_of_one_dimension_is_one_of_rows(target: str, groups: int) -> None:
    """The last window ends in the padding: it was read from beyond the data (make fuzz, graph 350)."""
    weights = np.random.default_rng(1).normal(size=(4, 4 // groups, 5)).astype(np.float32)
    attributes = {"pads": [2, 3], "strides": [2], "group": groups}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    model = model_of(nodes, {"x": [3, 4, 10]}, ["y"], {"w": weights})
    check(model, target, "direct-conv2d")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pools_of_one_dimension(tmp_path: Path, target: str, operator: str) -> None:
    """Against onnxruntime: ONNX's own evaluator fails at such padding."""
    x = np.random.default_rng(0).normal(size=(3, 4, 10)).astype(np.float32)
    for pads, strides in (([2, 3], [2]), ([0, 4], [3]), ([4, 0], [1])):
        nodes = [helper.make_node(operator, ["x"], ["y"], kernel_shape=[5], pads=pads, strides=strides)]
        path = tmp_path / "pool.onnx"
        onnx.save(model_of(nodes, {"x": [3, 4, 10]}, ["y"]), path)
        with wg.load(path) as reference, wg.load(wg.compile(path, target=target)) as session:
            np.testing.assert_allclose(session.run({"x": x})["y"], reference.run({"x": x})["y"], rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_who_is_read_twice_again_and_again_is_not_computed_each_time(target: str) -> None:
    """Inlined, the chain would double fourteen times (make fuzz, graph 442: minutes of compiling)."""
    nodes, name = [], "x"
    for turn in range(14):
        nodes.append(helper.make_node("Tanh", [name], [f"t{turn}"]))
        nodes.append(helper.make_node("Add", [name, f"t{turn}"], [f"s{turn}"]))
        nodes.append(helper.make_node("Mul", [f"s{turn}", "half"], [f"x{turn}"]))
        name = f"x{turn}"
    model = model_of(nodes, {"x": [3, 37]}, [name], {"half": np.float32(0.5)})
    check(model, target, "elementwise")
    manifest = wg.compile(model, target=target).manifest
    assert sum(step.rule == "elementwise" for step in manifest.steps) < 14


@st.composite
def convolutions(draw: st.DrawFn) -> onnx.ModelProto:
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    inner, outer = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 70 // groups))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    dilations = [draw(st.integers(1, 2)) for _ in range(2)]
    more = draw(st.integers(0, 5)), draw(st.integers(0, 40))  # rows of more than one tile of any target
    size = [(k - 1) * d + 1 + m for k, d, m in zip(kernel, dilations, more, strict=True)]
    attributes: dict[str, Any] = {
        "group": groups,
        "dilations": dilations,
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "pads": [draw(st.integers(0, 2)) for _ in range(4)],
    }
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], **attributes)]
    if draw(st.booleans()):
        nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    constants = {
        "w": rng.normal(0, 1, (outer, inner // groups, *kernel)).astype(np.float32),
        "b": rng.normal(0, 1, outer).astype(np.float32),
    }
    output = "y" if len(nodes) == 2 else "c"
    return model_of(nodes, {"x": [draw(st.integers(1, 2)), inner, *size]}, [output], constants)


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions(target: str) -> None:
    @several(target)
    @given(convolutions())
    def run(model: onnx.ModelProto) -> None:
        check(model, target, "direct-conv2d", "pointwise-conv2d", "winograd-conv2d")

    run()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("algorithm", ["winograd-2", "winograd-4"])
def test_winograd(algorithm: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced onto shapes that the cost model would never give it."""
    monkeypatch.setattr("wasmgraph.compiler.operators.convolution.choose", lambda *_: algorithm)

    @several(target)
    @given(
        st.integers(1, 13),
        st.integers(1, 21),
        st.integers(3, 12),
        st.integers(3, 12),
        st.lists(st.integers(0, 2), min_size=4, max_size=4),
        st.integers(1, 2),
    )
    def run(inner: int, outer: int, height: int, width: int, pads: list[int], batch: int) -> None:
        rng = np.random.default_rng(0)
        constants = {
            "w": rng.normal(0, 1, (outer, inner, 3, 3)).astype(np.float32),
            "b": rng.normal(0, 1, outer).astype(np.float32),
        }
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=pads),
            helper.make_node("Relu", ["c"], ["y"]),
        ]
        model = model_of(nodes, {"x": [batch, inner, height, width]}, ["y"], constants)
        check(model, target, "winograd-conv2d", tolerance=1e-4)

    run()


@pytest.mark.parametrize("target", TARGETS)
def test_pointwise_convolutions_with_residual(target: str) -> None:
    @several(target)
    @given(
        st.integers(1, 9),
        st.integers(1, 70),
        st.lists(st.integers(1, 9), min_size=2, max_size=2),
        st.lists(st.integers(1, 3), min_size=2, max_size=2),
        st.integers(1, 3),
        st.sampled_from([1, 1, 4]),
    )
    def run(inner: int, outer: int, size: list[int], strides: list[int], batch: int, groups: int) -> None:
        rng = np.random.default_rng(0)
        outer = outer if groups == 1 else groups * 16 + outer // groups * groups
        weight = rng.normal(0, 1, (outer, inner, 1, 1)).astype(np.float32)
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=strides, group=groups),
            helper.make_node("Add", ["c", "r"], ["a"]),
            helper.make_node("Relu", ["a"], ["y"]),
        ]
        data = [(n - 1) * s + 1 for n, s in zip(size, strides, strict=True)]
        shapes = {"x": [batch, groups * inner, *data], "r": [batch, outer, *size]}
        check(model_of(nodes, shapes, ["y"], {"w": weight}), target, "pointwise-conv2d")

    run()


@pytest.mark.parametrize("target", TARGETS)
def test_depthwise_convolutions(target: str) -> None:
    @several(target)
    @given(
        st.integers(1, 37),
        st.integers(1, 2),
        st.lists(st.integers(1, 5), min_size=2, max_size=2),
        st.lists(st.integers(0, 2), min_size=4, max_size=4),
        st.integers(1, 3),
        st.integers(1, 2),
        st.integers(0, 17),
    )
    def run(
        channels: int,
        multiplier: int,
        kernel: list[int],
        pads: list[int],
        stride: int,
        dilation: int,
        more: int,
    ) -> None:
        weight = np.random.default_rng(0).normal(0, 1, (channels * multiplier, 1, *kernel))
        attributes = {"pads": pads, "strides": [stride] * 2, "dilations": [dilation] * 2}
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=channels, **attributes)]
        constants = {"w": weight.astype(np.float32)}
        size = [(k - 1) * dilation + 1 + more for k in kernel]
        model = model_of(nodes, {"x": [1, channels, *size]}, ["y"], constants)
        check(model, target, "direct-conv2d", "pointwise-conv2d")

    run()


@pytest.mark.parametrize("target", TARGETS)
def test_matrix_products(target: str) -> None:
    @several(target)
    @given(st.integers(1, 33), st.integers(1, 40), st.integers(1, 70))
    def run(rows: int, inner: int, columns: int) -> None:
        rng = np.random.default_rng(0)
        weight = rng.normal(0, 1, (inner, columns)).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        check(model_of(nodes, {"x": [rows, inner]}, ["y"], {"w": weight}), target, "dense")

    run()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling(operator: str, target: str) -> None:
    @several(target)
    @given(
        st.integers(1, 37),
        st.lists(st.integers(2, 4), min_size=2, max_size=2),
        st.lists(st.integers(1, 3), min_size=2, max_size=2),
        st.lists(st.integers(0, 1), min_size=4, max_size=4),
        st.integers(1, 2),
        st.integers(0, 6),
    )
    def run(
        channels: int, kernel: list[int], strides: list[int], pads: list[int], dilation: int, more: int
    ) -> None:
        weight = np.ones((channels, channels, 1, 1), np.float32)
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
        if operator == "MaxPool":
            attributes["dilations"] = [dilation] * 2
        nodes = [  # the convolution brings NHWC into the network
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node(operator, ["c"], ["y"], **attributes),
        ]
        size = [(k - 1) * dilation + 1 + more for k in kernel]
        model = model_of(nodes, {"x": [1, channels, *size]}, ["y"], {"w": weight})
        check(model, target, "reduction")

    run()


@pytest.mark.parametrize("target", TARGETS)
def test_elementwise(target: str) -> None:
    @several(target)
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def run(shape: list[int]) -> None:
        nodes = [
            helper.make_node("Sigmoid", ["x"], ["a"]),
            helper.make_node("Mul", ["a", "x"], ["b"]),
            helper.make_node("Tanh", ["b"], ["y"]),
        ]
        check(model_of(nodes, {"x": shape}, ["y"]), target, "elementwise")

    run()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "LayerNormalization", "ReduceMean"])
def test_rows(operator: str, target: str) -> None:
    @several(target)
    @given(st.lists(st.integers(1, 5), max_size=3), st.integers(1, 40))
    def run(rows: list[int], inner: int) -> None:
        scale = {"s": np.arange(inner, dtype=np.float32)} if operator == "LayerNormalization" else {}
        axes = {"axes": [-1]} if operator == "ReduceMean" else {"axis": -1}
        nodes = [helper.make_node(operator, ["x", *scale], ["y"], **axes)]
        model = model_of(nodes, {"x": [*rows, inner]}, ["y"], scale)
        check(model, target, *(["row-reduction"] if inner > 1 else RULES))

    run()


@pytest.mark.parametrize("target", TARGETS)
def test_a_mean_that_meets_its_rows_again_is_computed_once(target: str) -> None:
    """Not once for each of the rows."""
    fuel = []
    for rows in (64, 256):
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ]
        model = model_of(nodes, {"x": [rows, 16]}, ["y"])
        check(model, target, "reduction")
        artifact = wg.compile(model, target=target)
        if artifact.manifest.kind == "wasm":
            fuel.append(meter(artifact, {"x": np.ones((rows, 16), np.float32)}).work_fuel)
    assert not fuel or fuel[1] < 6 * fuel[0]


@pytest.mark.parametrize("target", TARGETS)
def test_reducing_everything(target: str) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    check(model_of(nodes, {"x": [2, 3, 8]}, ["y"]), target, "row-reduction")


UNUSUAL: dict[str, tuple[list[int], list[int], dict[str, Any]]] = {
    "prime channels": ([1, 13, 7, 7], [31, 13, 3, 3], {"pads": [1] * 4}),
    "1×N kernel": ([1, 5, 6, 11], [7, 5, 1, 7], {"pads": [0, 3, 0, 3]}),
    "N×1 kernel": ([1, 5, 11, 6], [7, 5, 5, 1], {}),
    "wide dilation": ([1, 3, 17, 17], [4, 3, 3, 3], {"dilations": [5, 7]}),
    "stride beyond the kernel": ([1, 3, 23, 29], [4, 3, 2, 2], {"strides": [11, 13]}),
    "one pixel": ([1, 3, 1, 1], [5, 3, 1, 1], {}),
    "groups of 3 to 5": ([1, 6, 5, 5], [10, 3, 3, 3], {"group": 2}),
    "groups of 1 to 3": ([1, 7, 5, 5], [21, 1, 3, 3], {"group": 7}),
    "groups of 3 to 1": ([1, 21, 5, 5], [7, 3, 1, 1], {"group": 7}),
    "1-D": ([1, 6, 31], [9, 6, 5], {"pads": [2, 2]}),
    "3-D": ([1, 2, 5, 6, 7], [3, 2, 2, 3, 2], {}),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_convolutions_are_correct(name: str, target: str) -> None:
    data, weight, attributes = UNUSUAL[name]
    constants = {"w": np.random.default_rng(0).normal(0, 1, weight).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    check(model_of(nodes, {"x": data}, ["y"], constants), target, *RULES, FALLBACK)


@pytest.mark.parametrize("target", TARGETS)
def test_empty_groups_make_an_empty_output(target: str) -> None:
    """There is nothing to compute, and nothing left to schedule."""
    constants = {"w": np.zeros((0, 1, 3, 3), np.float32)}
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=4)], {"x": [1, 4, 5, 6]}, ["y"], constants
    )
    with wg.load(wg.compile(model, target=target)) as session:
        assert session.run({"x": np.ones((1, 4, 5, 6), np.float32)})["y"].shape == (1, 0, 3, 4)


@pytest.mark.parametrize("target", TARGETS)
def test_a_softmax_over_an_outer_dimension(target: str) -> None:
    for operator in ("Softmax", "LogSoftmax"):
        node = helper.make_node(operator, ["x"], ["y"], axis=1)
        check(model_of([node], {"x": [2, 5, 5]}, ["y"]), target, "row-reduction")


@pytest.mark.parametrize("target", TARGETS)
def test_what_no_rule_takes_is_correct_and_counted(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmgraph.compiler.schedule.RULES", {})
    model = model_of([helper.make_node("Softmax", ["x"], ["y"])], {"x": [3, 7]}, ["y"])
    check(model, target, FALLBACK)
    artifact = wg.compile(model, target=target)
    assert artifact.manifest.ops_fallback == 1
    assert [step.rule for step in artifact.manifest.steps] == [FALLBACK]


@pytest.mark.parametrize(
    ("node", "shapes", "slow"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"]), {"x": [1, 3, 6, 6, 6], "w": [4, 3, 3, 3, 3]}, True),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": [3, 8], "w": [8, 8]}, False),
        (helper.make_node("LayerNormalization", ["x", "w"], ["y"]), {"x": [3, 8], "w": [8]}, False),
        (helper.make_node("ReduceL2", ["x"], ["y"]), {"x": [3, 8]}, False),
    ],
)
def test_a_product_by_a_rule_that_is_not_made_for_it_is_counted(
    node: onnx.NodeProto, shapes: dict[str, list[int]], slow: bool
) -> None:
    """That all calls are scheduled said nothing of one at a twentieth of the roofline."""
    log = CompileLog()
    artifact = wg.compile(model_of([node], shapes, ["y"]), log=log)
    assert (artifact.manifest.ops_slow, len(log.slow)) == (slow, slow)
    assert artifact.manifest.ops_fallback == 0
    products = [step.product for step in artifact.manifest.steps]
    assert any(products) == (node.op_type in ("Conv", "MatMul"))


@given(
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 17),
)
def test_packing_keeps_every_weight_and_pads_with_zeros(
    own: int, groups: int, kh: int, kw: int, inner: int, block: int
) -> None:
    out = own * groups
    weight = np.arange(1, out * kh * kw * inner + 1, dtype=np.float32).reshape(out, kh, kw, inner)
    packed = pack_conv2d(weight, block, groups)
    assert packed.shape == (groups, -(-own // block), kh, kw, inner, block)
    for o in range(out):
        np.testing.assert_array_equal(packed[o // own, o % own // block, ..., o % own % block], weight[o])
    assert np.count_nonzero(packed) == weight.size


@pytest.mark.parametrize(
    ("target", "tile", "pixels", "taken"),
    [
        ("native", (14, 32, 16), 49, 7),  # no remainder of 7
        ("native", (14, 32, 16), 47, 14),  # nothing divides a prime
        ("native", (14, 32, 16), 3136 + 7, 14),  # one of many tiles
        ("wasm32-simd128", (2, 16, 4), 7, 2),  # one pixel at a time has too few accumulators
    ],
)
def test_few_tiles_leave_no_pixels(
    target: str, tile: tuple[int, int, int], pixels: int, taken: int
) -> None:
    wide = replace(get_target(target), tile_pixels=tile[0], tile_channels=tile[1], vector_bytes=4 * tile[2])
    assert tile_pixels(pixels, wide) == taken
