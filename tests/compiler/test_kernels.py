"""Kernels that no ONNX operator asks for yet: numbers among their operands, weights of this run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tvm import relax, te, tirx

import wasmgraph as wg
from wasmgraph.artifact import Artifact
from wasmgraph.compiler import CompileLog, _build
from wasmgraph.compiler.form import Form
from wasmgraph.compiler.importing import ImportedModel
from wasmgraph.compiler.operators.dense import dense_compute
from wasmgraph.compiler.operators.packing import pack, pack_conv2d
from wasmgraph.compiler.schedule import Chosen, schedule_kernel
from wasmgraph.compiler.schedule.decisions import Tile, Vector
from wasmgraph.targets import get_target
from wasmgraph.tensors import TensorSpec

TARGETS = ("wasm32-simd128", "wasm32-simd128-threads", "native")


def build(
    directory: Path,
    target: str,
    inputs: Sequence[TensorSpec],
    body: Callable[..., relax.Expr],
) -> Artifact:
    """An artifact of a Relax function of ``inputs`` whose only output is what ``body`` emits."""
    builder = relax.BlockBuilder()
    params = [relax.Var(s.name, relax.TensorType(s.static_shape, s.dtype)) for s in inputs]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(body(builder, *params))
        builder.emit_func_output(result)
    shape = tuple(int(d) for d in result.ty.shape.values)
    output = TensorSpec("y", shape, str(result.ty.dtype))
    imported = ImportedModel("test", "", {}, tuple(inputs), (output,), ())
    linked, _ = _build([builder.get()], imported, get_target(target), True, Form(), directory, CompileLog())
    return Artifact.open(linked)


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_takes_numbers(target: str, tmp_path: Path) -> None:
    def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        count = tirx.Var("count", "int64")
        data = te.placeholder((64,), "float32", name="x")
        zero = tirx.const(0, "float32")
        masked = te.compute((64,), lambda i: tirx.if_then_else(i < count, data[i] * 2, zero), name="y")
        kernel = builder.add_func(te.create_prim_func([data, count, masked]), "masked")
        return builder.emit(relax.call_tir(kernel, [x, tirx.IntImm("int64", 5)], x.ty))

    artifact = build(tmp_path, target, [TensorSpec("x", (64,), "float32")], body)
    x = np.arange(1, 65, dtype=np.float32)
    with wg.load(artifact) as session:
        y = session.run({"x": x})["y"]
    np.testing.assert_array_equal(y, np.where(np.arange(64) < 5, 2 * x, 0))


@pytest.mark.parametrize("target", TARGETS)
def test_weights_of_this_run_are_packed_by_a_kernel(target: str, tmp_path: Path) -> None:
    channels, inner = 21, 6
    block = 8

    def body(builder: relax.BlockBuilder, x: relax.Var, w: relax.Var) -> relax.Expr:
        packed = builder.emit(pack(builder, w, block))
        shape = (-(-channels // block), inner, block)
        packed = builder.emit(relax.op.reshape(packed, shape))
        return builder.emit(builder.call_te(dense_compute, x, packed, channels))

    specs = [TensorSpec("x", (5, inner), "float32"), TensorSpec("w", (channels, 1, 1, inner), "float32")]
    artifact = build(tmp_path, target, specs, body)
    rng = np.random.default_rng(3)
    x, w = (rng.normal(0, 1, s.static_shape).astype(np.float32) for s in specs)
    with wg.load(artifact) as session:
        y = session.run({"x": x, "w": w})["y"]
    np.testing.assert_allclose(y, x @ w.reshape(channels, inner).T, atol=1e-5)


def test_known_weights_are_packed_at_once() -> None:
    weight = np.random.default_rng(4).normal(0, 1, (10, 3, 3, 4)).astype(np.float32)
    packed = pack(relax.BlockBuilder(), relax.const(weight), 4, groups=2)
    np.testing.assert_array_equal(packed.value.numpy(), pack_conv2d(weight, 4, groups=2))


def dense_kernel(rows: int, inner: int, channels: int, block: int) -> tirx.PrimFunc:
    data = te.placeholder((rows, inner), "float32", name="data")
    weight = te.placeholder((channels // block, inner, block), "float32", name="weight")
    return te.create_prim_func([data, weight, dense_compute(data, weight, channels)])


def test_a_rule_follows_a_decision_and_makes_its_own() -> None:
    kernel, target = dense_kernel(12, 8, 32, 16), get_target("wasm32-simd128")
    _, own = schedule_kernel(kernel, target)
    assert own == Chosen("dense", Tile(pixels=2, channels=16))
    narrow = Tile(pixels=4, channels=8)
    scheduled, chosen = schedule_kernel(kernel, target, narrow)
    assert chosen == Chosen("dense", narrow)
    assert scheduled.script() != schedule_kernel(kernel, target)[0].script()
    # A decision of another kind is not for this rule.
    assert schedule_kernel(kernel, target, Vector(8))[1] == own
