"""Mutated ONNX files against ``compile``: bytes that are not a model, and invalid models."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import onnx

import wasmgraph as wg
from trials.fuzzing.modules import _bytes, _model
from wasmgraph.errors import InputError

_OPERATORS = (
    "Relu",
    "Conv",
    "Gemm",
    "Reshape",
    "Softmax",
    "Loop",
    "TopK",
    "Nonsense",
    "",
    "LSTM",
    "If",
    "NonZero",
)
_SIZES = (0, -1, 1, 2, 7, 2**31, 2**62)


@cache
def _content() -> bytes:
    return bytes(_model().SerializeToString())


def _broken(rng: random.Random) -> onnx.ModelProto:
    """A model with one invalid or unusual part."""
    model = onnx.ModelProto()
    model.ParseFromString(_content())
    graph = model.graph
    node = rng.choice(graph.node)
    match rng.randrange(12):
        case 0:
            node.op_type = rng.choice(_OPERATORS)
        case 1:
            node.input[rng.randrange(len(node.input))] = rng.choice(("", "y", "nowhere", "x", "w"))
        case 2:
            node.output[0] = rng.choice(("", "x", "c", "y"))
        case 3:
            graph.initializer[0].dims[rng.randrange(4)] = rng.choice(_SIZES)
        case 4:
            graph.initializer[rng.randrange(2)].data_type = rng.randrange(30)
        case 5:
            dim = graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)]
            dim.dim_value = rng.choice(_SIZES)
        case 6:
            graph.input[0].type.tensor_type.elem_type = rng.randrange(30)
        case 7:
            model.opset_import[0].version = rng.choice((0, 1, 6, 9, 13, 21, 99, -1, 2**40))
        case 8:
            rng.shuffle(nodes := list(graph.node))
            del graph.node[:]
            graph.node.extend(nodes)
        case 9:
            values = [rng.choice(_SIZES) for _ in range(rng.randrange(6))]
            name = rng.choice(("pads", "strides", "dilations", "group", "axis", "kernel_shape", "perm"))
            node.attribute.append(onnx.helper.make_attribute(name, values or "text"))
        case 10:
            graph.initializer[0].external_data.add(
                key="location", value=rng.choice(("../w", "/etc/hosts", "w"))
            )
            graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
        case _:
            del graph.output[:]
    return model


def case(seed: int, place: Path) -> str:
    """Compile one file for SIMD128."""
    rng = random.Random(seed)
    content = _bytes(rng, _content()) if seed % 2 else bytes(_broken(rng).SerializeToString())
    path = place / f"{seed}.onnx"
    path.write_bytes(content)
    try:
        wg.compile(path)
        return "compiled"
    except InputError as error:
        return f"refused: {type(error).__name__}"
    finally:
        path.unlink()
