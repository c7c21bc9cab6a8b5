"""Simplifying: onnxruntime's *basic* optimisations fold BatchNorm and Pad into Conv, compute constants
and fix shapes, without leaving standard ONNX.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime

from wasmgraph.compiler.importing.binding import fed_inputs
from wasmgraph.compiler.importing.checking import check, onnxruntime_crashes
from wasmgraph.compiler.importing.open_constants import leaves_open
from wasmgraph.compiler.importing.weights import FOLDED, hide
from wasmgraph.errors import ModelError
from wasmgraph.tensors import Array

# The IR version does not affect anything that is imported here, and onnxruntime supports fewer versions
# than onnx.
_IR_VERSION = 10
_UNCHANGED = (
    "onnxruntime could not simplify the model, so that normalizations and constants stay as they are: "
)


def optimize(
    proto: onnx.ModelProto, name: str, weights: Mapping[str, Array] | None = None
) -> tuple[onnx.ModelProto, list[str]]:
    """Return a simplified model whose inputs are those that are fed, and notes for the user.

    If the model is valid but onnxruntime lacks a kernel for it, the model is returned unchanged, with a
    note that nothing was folded. ``weights`` are stored outside ``proto``; onnxruntime gets inputs in their
    place. ``name`` is for error messages.
    """
    fed = {value.name for value in fed_inputs(proto)}
    hide(proto, weights or {})
    simplified, notes = _simplified(proto, name)
    nodes = simplified.graph.node
    hidden = any(n.op_type in FOLDED and not set(weights or {}).isdisjoint(n.input) for n in nodes)
    if hidden and any(n.op_type in ("BatchNormalization", "Pad") for n in nodes):
        notes.append(
            "the weights of convolutions are larger than a message to onnxruntime may be, so that"
            " normalizations and paddings stay as they are"
        )
    # onnxruntime folds initializers away but leaves their entries among the inputs.
    kept = [value for value in simplified.graph.input if value.name in fed]
    del simplified.graph.input[:]
    simplified.graph.input.extend(kept)
    return simplified, notes


def _simplified(proto: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, list[str]]:
    if onnxruntime_crashes(proto):
        return proto, [_UNCHANGED + "one of its functions has an operator that onnxruntime does not find"]
    with tempfile.TemporaryDirectory(prefix="wasmgraph-") as directory:
        path = Path(directory, "simplified.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        version = proto.ir_version
        try:
            proto.ir_version = min(version, _IR_VERSION)
            serialized = proto.SerializeToString()
            onnxruntime.InferenceSession(
                serialized,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"] if leaves_open(proto) else [],
            )
            return onnx.load(path), []
        except Exception as refusal:  # onnxruntime's exceptions share no base class
            proto.ir_version = version
            first = str(refusal).strip().splitlines()[0]
            try:
                check(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
            except Exception as error:
                raise ModelError(f"{name}: onnxruntime refuses the model: {first}") from error
            return proto, [_UNCHANGED + first]
