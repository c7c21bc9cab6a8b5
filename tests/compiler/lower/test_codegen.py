"""What TVM's lowering must leave of a schedule."""

from __future__ import annotations

import numpy as np
import onnx
import tvm
from onnx import helper
from tvm import tirx

from tests.conftest import model_of
from wasmgraph.compiler.importing import import_model
from wasmgraph.compiler.lower import codegen
from wasmgraph.compiler.lower.phases import divide
from wasmgraph.compiler.relax import passes
from wasmgraph.compiler.schedule import schedule_module
from wasmgraph.targets import get_target


def lower(model: onnx.ModelProto, target_name: str, finish: bool) -> tvm.IRModule:
    """A model's kernels, scheduled and lowered; not ``finish``: only until their loops are settled."""
    target = get_target(target_name)
    described = codegen.tvm_target(target)
    with described:
        mod = tvm.ir.transform.Sequential(passes.relax_passes(target, winograd=True, attention=True))(
            import_model(model)[0]
        )
    mod, _ = schedule_module(mod, target)
    kernels = {g: f for g, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    config = {"s_tir.LoopPartition": {"partition_const_loop": True}}
    settling, finishing = codegen.lowering_passes(target)
    with described, tvm.transform.PassContext(opt_level=3, config=config):
        bound = tirx.transform.BindTarget(described)(tvm.IRModule(kernels))
        return tvm.ir.transform.Sequential([*settling, *(finishing if finish else [])])(bound)


def lowered(target_name: str, finish: bool) -> tvm.IRModule:
    """A 1×1 convolution over 49 pixels, which no tile of two divides."""
    weights = np.ones((32, 8, 1, 1), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    return lower(model_of([node], {"x": [1, 8, 7, 7]}, ["y"], {"w": weights}), target_name, finish)


def test_a_split_that_does_not_divide_leaves_no_guard() -> None:
    mod = lowered("wasm32-simd128", finish=True)
    (kernel,) = (f for g, f in mod.functions.items() if "conv2d" in g.name_hint)
    assert " if " not in kernel.script()


def test_phases_share_every_nest() -> None:
    divided = divide(lowered("wasm32-simd128-threads", finish=False))
    turns = {kernel: [phase.turns for phase in phases] for kernel, phases in divided.phases.items()}
    # Two blocks of channels times 24 tiles of pixels, which are followed by one pixel by itself.
    assert turns == {"transpose": [98], "conv2d": [2], "transpose1": [392]}
    for phases in divided.phases.values():
        for phase in phases:
            assert "for turn in" in divided.module[phase.symbol].script(), phase
