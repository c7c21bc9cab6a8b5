"""QDQ graphs: what lies between Q and DQ is computed in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import wasmgraph as wg
from tests.compiler.importing.frontend.conftest import run

RNG = np.random.default_rng(5)
X = RNG.normal(0, 1, (2, 6, 8, 8)).astype(np.float32)


def scales(**named: float) -> dict[str, np.ndarray]:
    return {name: np.float32(value) for name, value in named.items()}


def graph(nodes: list[onnx.NodeProto], constants: dict[str, Any], x: np.ndarray = X) -> onnx.ModelProto:
    """Nodes from ``d``, which is what ``x`` becomes by Q and DQ, to ``r``, which becomes ``y``."""
    around = {"xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.05), "yz": np.uint8(7)}
    first = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
    ]
    last = [
        helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["s"]),
        helper.make_node("DequantizeLinear", ["s", "ys", "yz"], ["y"]),
    ]
    made = helper.make_graph(
        [*first, *nodes, *last],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in {**around, **constants}.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weights(
    shape: tuple[int, ...], bias: bool = True, per_channel: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The nodes and constants of weights ``w`` and a bias ``b``."""
    count = shape[0]
    scale = RNG.uniform(0.005, 0.02, count if per_channel else ()).astype(np.float32)
    zero = np.zeros(scale.shape, np.int8)
    constants = {"wq": RNG.integers(-127, 128, shape).astype(np.int8), "ws": scale, "wz": zero}
    nodes = [helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0)]
    if bias:
        constants |= {
            "bq": RNG.integers(-2000, 2000, count).astype(np.int32),
            "bs": (scale * np.float32(0.02)).astype(np.float32),
            "bz": np.zeros(scale.shape, np.int32),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["b"], axis=0))
    return nodes, constants


def agrees(model: onnx.ModelProto, target: str, x: np.ndarray = X) -> None:
    """As the floats that the graph says give, up to a step at a tie of rounding."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (expected,) = session.run(None, {"x": x})
    found = run(model, {"x": x}, target)["y"]
    apart = np.abs(found - expected)
    assert apart.max() <= 0.0501
    assert (apart > 1e-5).mean() < 0.002


@pytest.mark.parametrize("target", ["wasm32-simd128", "wasm32", "native"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_convolution_with_bias_and_relu(target: str, per_channel: bool) -> None:
    nodes, constants = weights((5, 6, 3, 3), per_channel=per_channel)
    nodes += [
        helper.make_node("Conv", ["d", "w", "b"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
    ]
    agrees(graph(nodes, constants), target)


def test_its_weights_are_bytes() -> None:
    nodes, constants = weights((64, 6, 3, 3))
    nodes += [helper.make_node("Conv", ["d", "w", "b"], ["r"])]
    artifact = wg.compile(graph(nodes, constants))
    assert artifact.manifest.param_bytes < 64 * 6 * 9 + 64 * 3 * 4 + 512


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_grouped_convolutions(groups: int) -> None:
    nodes, constants = weights((12, 6 // groups, 3, 3), bias=False)
    nodes += [helper.make_node("Conv", ["d", "w"], ["r"], group=groups)]
    agrees(graph(nodes, constants), "wasm32-simd128")


@pytest.mark.parametrize("turned", [0, 1])
def test_matrix_products(turned: int) -> None:
    x = RNG.normal(0, 1, (7, 24)).astype(np.float32)
    nodes, constants = weights((10, 24), per_channel=bool(turned))
    if not turned:
        constants["wq"] = np.ascontiguousarray(constants["wq"].T)
    nodes += [helper.make_node("Gemm", ["d", "w", "b"], ["r"], transB=turned)]
    agrees(graph(nodes, constants, x), "wasm32-simd128", x)


def test_movements_residuals_and_pooling() -> None:
    nodes, constants = weights((6, 6, 1, 1))
    nodes += [
        helper.make_node("Conv", ["d", "w", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "cs", "cz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "cs", "cz"], ["cd"]),
        helper.make_node("Add", ["cd", "d"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "cs", "cz"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "cs", "cz"], ["ad"]),
        helper.make_node("MaxPool", ["ad"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["m", "m"], ["j"], axis=1),
        helper.make_node("Transpose", ["j"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
    ]
    more = {"cs": np.float32(0.04), "cz": np.uint8(99), "shape": np.array([2, -1])}
    agrees(graph(nodes, {**constants, **more}), "wasm32-simd128")


def test_a_scale_that_integers_do_not_serve_stays_exact() -> None:
    """A bias of another scale, and a Q and DQ that stand alone."""
    nodes, constants = weights((5, 6, 1, 1))
    constants["bs"] = constants["bs"] * np.float32(1.5)
    nodes += [
        helper.make_node("Conv", ["d", "w", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "ts", "tz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "ts", "tz"], ["cd"]),
        helper.make_node("Sigmoid", ["cd"], ["r"]),
    ]
    agrees(graph(nodes, {**constants, "ts": np.float32(0.1), "tz": np.int8(-3)}), "wasm32-simd128")
