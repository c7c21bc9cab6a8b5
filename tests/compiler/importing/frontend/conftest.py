"""Comparing what a converter makes of a model with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import HealthCheck, settings
from onnx import helper, numpy_helper

import wasmgraph as wg

Arrays = Mapping[str, np.ndarray]
several = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def model(
    nodes: Sequence[onnx.NodeProto],
    feeds: Arrays,
    outputs: Sequence[str],
    constants: Arrays | None = None,
    opsets: Mapping[str, int] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """A model whose inputs are like ``feeds``; the types of its outputs are inferred."""

    def value(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor_value_info(name, kind, array.shape)

    graph = helper.make_graph(
        list(nodes),
        "test",
        [value(name, array) for name, array in feeds.items()],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid(d, v) for d, v in {"": 21, **(opsets or {})}.items()]
    made = helper.make_model(graph, opset_imports=imports, ir_version=10, **more)
    return onnx.shape_inference.infer_shapes(made)


def run(made: onnx.ModelProto, feeds: Arrays, target: str = "wasm32-simd128") -> dict[str, np.ndarray]:
    """What the compiled model gives."""
    with wg.load(wg.compile(made, target=target)) as session:
        return session.run(dict(feeds))


def agrees(
    made: onnx.ModelProto,
    feeds: Arrays,
    target: str = "wasm32-simd128",
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Run it here and by onnxruntime, and compare every output: dtype, shape, values."""
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, dict(feeds))
    found = run(made, feeds, target)
    for output, wanted in zip(session.get_outputs(), expected, strict=True):
        got = found[output.name]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol, err_msg=output.name)
