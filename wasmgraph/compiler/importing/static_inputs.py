"""Which inputs of ONNX operators are shapes, axes, sizes or counts. They determine the structure of the
graph, so they must be constants in a compiled graph, but for sizes that have a bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from wasmgraph.compiler.importing.frontend.schemas import all_nodes

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
# Input positions by operator; inputs that are data do not belong here.
STATIC_INPUTS: Mapping[str, tuple[int, ...]] = {
    **{f"Reduce{name}": (1,) for name in _REDUCTIONS},  # axes
    "AffineGrid": (1,),  # size
    "BlackmanWindow": (0,),  # size
    "CenterCropPad": (1,),  # shape
    "Col2Im": (1, 2),  # image_shape, block_shape
    "ConstantOfShape": (0,),  # shape
    "CumProd": (1,),  # axis
    "CumSum": (1,),  # axis
    "DFT": (1, 2),  # dft_length, axis
    "Dropout": (2,),  # training_mode
    "Expand": (1,),  # shape
    "GroupQueryAttention": (6,),  # total_sequence_length (of com.microsoft)
    "HammingWindow": (0,),  # size
    "HannWindow": (0,),  # size
    "Loop": (0,),  # trip count
    "MaxUnpool": (2,),  # output_shape
    "MelWeightMatrix": (0, 1),  # num_mel_bins, dft_length
    "OneHot": (1,),  # depth
    "Pad": (1, 3),  # pads, axes
    "Range": (0, 1, 2),  # start, limit, delta: they determine the length
    "Reshape": (1,),  # shape
    "Resize": (2, 3),  # scales, sizes
    "STFT": (1, 3),  # frame_step, frame_length
    "SequenceAt": (1,),  # position
    "SequenceErase": (1,),  # position
    "SequenceInsert": (2,),  # position
    "Slice": (1, 2, 3, 4),  # starts, ends, axes, steps
    "Split": (1,),  # sizes
    "SplitToSequence": (1,),  # sizes
    "Squeeze": (1,),  # axes
    "Tile": (1,),  # repeats
    "TopK": (1,),  # k
    "Trilu": (1,),  # diagonal
    "Unsqueeze": (1,),  # axes
    "Upsample": (1,),  # scales
}
# Of these, sizes that data may say if something bounds them.
SIZES_FROM_DATA: Mapping[str, tuple[int, ...]] = {
    "BlackmanWindow": (0,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Loop": (0,),
    "OneHot": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2),
    "Tile": (1,),
    "TopK": (1,),
}


def static_inputs(model: onnx.ModelProto, bounded: bool = False) -> set[str]:
    """The inputs of a model that its operators use as shapes, axes, sizes or counts, directly or after
    arithmetic on integers and single numbers. If sizes are ``bounded``, without those that data may say.
    """
    needed: set[str] = set()
    made: dict[str, onnx.NodeProto] = {}
    for node in all_nodes(model.graph):
        positions = (
            STATIC_INPUTS.get(node.op_type, ()) if node.domain in ("", "ai.onnx", "com.microsoft") else ()
        )
        if bounded:
            positions = tuple(i for i in positions if i not in SIZES_FROM_DATA.get(node.op_type, ()))
        needed.update(node.input[i] for i in positions if i < len(node.input) and node.input[i])
        made.update(dict.fromkeys(node.output, node))
    reached, waiting = set(needed), list(needed)
    while waiting:
        maker = made.get(waiting.pop())
        if maker is None or maker.op_type in ("Shape", "Size"):  # these use only the shape, not the data
            continue
        graphs = [a.g for a in maker.attribute if a.type == a.GRAPH]
        names = [*maker.input, *(output.name for graph in graphs for output in graph.output)]
        fresh = {name for name in names if name} - reached
        reached |= fresh
        waiting += fresh
    return {v.name for v in model.graph.input if v.name in needed or (v.name in reached and _is_count(v))}


def _is_count(value: onnx.ValueInfoProto) -> bool:
    """Whether an input from which shapes are computed can itself be one: integers, or a single number."""
    tensor = value.type.tensor_type
    integer = tensor.elem_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    return integer or (tensor.HasField("shape") and not tensor.shape.dim)
