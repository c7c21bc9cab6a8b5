"""BERT encoders (Devlin et al., "BERT", 2019) → ONNX, as exporters write them: ``MatMul`` with activations
``[batch, sequence, width]``, attention and GELU spelled out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from wasmgraph.models.building import GraphBuilder
from wasmgraph.models.description import IDS, KINDS, MASK
from wasmgraph.tensors import Array

INPUTS = (IDS, MASK, KINDS)
HIDDEN, EMBEDDING = "last_hidden_state", "sentence_embedding"


@dataclass(frozen=True)
class Config:
    """Sizes of an encoder, named as in ``config.json`` of Hugging Face's models."""

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12

    @staticmethod
    def of(data: Mapping[str, Any]) -> Config:
        """The sizes in a ``config.json``."""
        return Config(**{name: data[name] for name in Config.__dataclass_fields__})


def random_weights(config: Config, seed: int = 0) -> dict[str, Array]:
    """Seeded weights under the names that PyTorch's BERT gives them."""
    rng = np.random.default_rng(seed)
    width, inner = config.hidden_size, config.intermediate_size
    weights: dict[str, Array] = {}

    def draw(name: str, *shape: int) -> None:
        weights[name] = rng.normal(0, 0.02, shape).astype(np.float32)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(width, np.float32)
        weights[f"{name}.bias"] = np.zeros(width, np.float32)

    def dense(name: str, outputs: int, inputs: int) -> None:
        draw(f"{name}.weight", outputs, inputs)
        draw(f"{name}.bias", outputs)

    draw("embeddings.word_embeddings.weight", config.vocab_size, width)
    draw("embeddings.position_embeddings.weight", config.max_position_embeddings, width)
    draw("embeddings.token_type_embeddings.weight", 2, width)
    norm("embeddings.LayerNorm")
    for layer in range(config.num_hidden_layers):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            dense(f"{name}.attention.self.{part}", width, width)
        dense(f"{name}.attention.output.dense", width, width)
        norm(f"{name}.attention.output.LayerNorm")
        dense(f"{name}.intermediate.dense", inner, width)
        dense(f"{name}.output.dense", width, inner)
        norm(f"{name}.output.LayerNorm")
    return weights


class _Encoder:
    """The graph of one encoder under construction."""

    def __init__(self, config: Config, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.weights = weights
        self.graph = GraphBuilder()
        self._scalars: dict[str, str] = {}

    def integers(self, name: str, *values: int) -> str:
        return self.graph.constant(name, np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        name = f"const_{value:g}"
        if name not in self._scalars:
            self._scalars[name] = self.graph.constant(name, np.array(value, np.float32))
        return name

    def dense(self, source: str, name: str) -> str:
        weight = self.graph.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        product = self.graph.node("MatMul", [source, weight], f"{name}/product")
        bias = self.graph.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.graph.node("Add", [product, bias], f"{name}/out")

    def norm(self, source: str, name: str, output: str | None = None) -> str:
        parts = [
            self.graph.constant(f"{name}.{p}", self.weights[f"{name}.{p}"]) for p in ("weight", "bias")
        ]
        epsilon = self.config.layer_norm_eps
        return self.graph.node(
            "LayerNormalization", [source, *parts], output or name, axis=-1, epsilon=epsilon
        )

    def embeddings(self) -> str:
        graph, weights = self.graph, self.weights
        words = graph.constant("words", weights["embeddings.word_embeddings.weight"])
        kinds = graph.constant("kinds", weights["embeddings.token_type_embeddings.weight"])
        length = graph.node("Shape", [IDS], "length", start=1, end=2)
        zero, axis = self.integers("zero", 0), self.integers("first_axis", 0)
        positions = graph.constant("positions", weights["embeddings.position_embeddings.weight"])
        positions = graph.node("Slice", [positions, zero, length, axis], "positions_used")
        token = graph.node("Gather", [words, IDS], "embeddings.word_embeddings")
        kind = graph.node("Gather", [kinds, KINDS], "embeddings.token_type_embeddings")
        total = graph.node("Add", [graph.node("Add", [token, kind], "typed"), positions], "embedded")
        return self.norm(total, "embeddings.LayerNorm")

    def mask(self) -> str:
        """0 where a token counts, a large negative number at padding: ``[batch, 1, 1, sequence]``."""
        graph = self.graph
        axes = self.integers("mask_axes", 1, 2)
        counts = graph.node("Cast", [MASK], "mask_float", to=TensorProto.FLOAT)
        spread = graph.node("Unsqueeze", [counts, axes], "mask_spread")
        inverse = graph.node("Sub", [self.scalar(1.0), spread], "mask_inverse")
        return graph.node("Mul", [inverse, self.scalar(float(np.finfo(np.float32).min))], "mask")

    def attention(self, x: str, name: str, mask: str) -> str:
        graph, config = self.graph, self.config
        heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        split = self.integers(f"{name}.split", 0, 0, heads, size)
        parts = {}
        for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
            out = self.dense(x, f"{name}.self.{part}")
            out = graph.node("Reshape", [out, split], f"{name}.{part}/heads")
            parts[part] = graph.node("Transpose", [out], f"{name}.{part}/turned", perm=list(order))
        scores = graph.node("MatMul", [parts["query"], parts["key"]], f"{name}/scores")
        scores = graph.node("Div", [scores, self.scalar(sqrt(size))], f"{name}/scaled")
        scores = graph.node("Add", [scores, mask], f"{name}/masked")
        shares = graph.node("Softmax", [scores], f"{name}/shares", axis=-1)
        mixed = graph.node("MatMul", [shares, parts["value"]], f"{name}/mixed")
        mixed = graph.node("Transpose", [mixed], f"{name}/joined", perm=[0, 2, 1, 3])
        join = self.integers(f"{name}.join", 0, 0, config.hidden_size)
        mixed = graph.node("Reshape", [mixed, join], f"{name}/wide")
        out = self.dense(mixed, f"{name}.output.dense")
        return self.norm(graph.node("Add", [out, x], f"{name}/sum"), f"{name}.output.LayerNorm")

    def gelu(self, x: str, name: str) -> str:
        graph = self.graph
        scaled = graph.node("Div", [x, self.scalar(sqrt(2))], f"{name}/scaled")
        erf = graph.node(
            "Add", [graph.node("Erf", [scaled], f"{name}/erf"), self.scalar(1.0)], f"{name}/one"
        )
        return graph.node(
            "Mul", [graph.node("Mul", [x, erf], f"{name}/gated"), self.scalar(0.5)], f"{name}/gelu"
        )

    def layer(self, x: str, name: str, mask: str, output: str | None) -> str:
        x = self.attention(x, f"{name}.attention", mask)
        inner = self.gelu(self.dense(x, f"{name}.intermediate.dense"), f"{name}.intermediate")
        out = self.dense(inner, f"{name}.output.dense")
        total = self.graph.node("Add", [out, x], f"{name}/sum")
        return self.norm(total, f"{name}.output.LayerNorm", output)

    def pooled(self, x: str) -> str:
        """The mean of the tokens that count, of length 1."""
        graph = self.graph
        last, middle = self.integers("last_axis", -1), self.integers("middle_axis", 1)
        weights = graph.node("Unsqueeze", ["mask_float", last], "pool_weights")
        total = graph.node(
            "ReduceSum", [graph.node("Mul", [x, weights], "counted"), middle], "total", keepdims=0
        )
        count = graph.node("ReduceSum", [weights, middle], "count", keepdims=0)
        count = graph.node("Max", [count, self.scalar(1e-9)], "count_floor")
        mean = graph.node("Div", [total, count], "mean")
        norm = graph.node("ReduceL2", [mean], "norm", axes=[-1], keepdims=1)
        norm = graph.node("Max", [norm, self.scalar(1e-12)], "norm_floor")
        return graph.node("Div", [mean, norm], EMBEDDING)


def build(
    config: Config, weights: Mapping[str, Array], name: str, description: Mapping[str, Any]
) -> onnx.ModelProto:
    """A sentence encoder with open dimensions ``batch`` and ``sequence``.

    It takes ``input_ids``, ``attention_mask`` (1 where a token counts, 0 at padding) and
    ``token_type_ids``, all int64 ``[batch, sequence]``. It gives ``last_hidden_state``, float32 ``[batch,
    sequence, hidden_size]``, and ``sentence_embedding``, float32 ``[batch, hidden_size]``: the mean of the
    tokens that count, of length 1. A sequence has at most ``max_position_embeddings`` tokens.

    Parameters
    ----------
    weights : under the names that PyTorch's BERT gives them, all float32
    description : what the model says of itself

    Raises
    ------
    KeyError
        ``weights`` lacks one.
    """
    encoder = _Encoder(config, weights)
    x, mask = encoder.embeddings(), encoder.mask()
    last = config.num_hidden_layers - 1
    for layer in range(config.num_hidden_layers):
        x = encoder.layer(x, f"encoder.layer.{layer}", mask, HIDDEN if layer == last else None)
    encoder.pooled(x)

    def value(tensor: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor, kind, shape)

    tokens = [value(tensor, TensorProto.INT64, "batch", "sequence") for tensor in INPUTS]
    outputs = [
        value(HIDDEN, TensorProto.FLOAT, "batch", "sequence", config.hidden_size),
        value(EMBEDDING, TensorProto.FLOAT, "batch", config.hidden_size),
    ]
    return encoder.graph.finish(name, tokens, outputs, description)
