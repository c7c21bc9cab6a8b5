"""A model's description of itself: how a photograph or a sentence becomes its input, and what its outputs
mean. It comes from whoever made the model, so it is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any

from wasmgraph.dims import Shape
from wasmgraph.errors import ModelError
from wasmgraph.tensors import TensorSpec

CLASSIFICATION = "image-classification"
EMBEDDING = "sentence-embedding"
IDS, MASK, KINDS = "input_ids", "attention_mask", "token_type_ids"
_LARGEST_SIDE = 4096  # pixels
_CHOICES = {"channels": ("RGB", "BGR"), "layout": ("NCHW", "NHWC")}


def check_preprocessing(how: Any) -> None:
    """Check that ``how`` has what :func:`wasmgraph.models.photos.preprocess` needs.

    Raises
    ------
    ModelError
        A field is missing, has another type, or would take more memory than any network's input.
    """
    if not isinstance(how, Mapping):
        raise ModelError(f"the model's description has preprocessing {how!r}; an object was expected.")
    crop, short = how.get("center_crop"), how.get("resize_short_side")
    if type(crop) is not int or type(short) is not int or not 1 <= crop <= short <= _LARGEST_SIDE:
        raise ModelError(
            f"the model's description says resize_short_side {short!r} and center_crop {crop!r}; whole"
            f" numbers were expected, the second at most the first, and that at most {_LARGEST_SIDE}."
        )
    for name in ("mean", "std"):
        values = how.get(name)
        if (
            not isinstance(values, Sequence)
            or len(values) != 3
            or not all(type(value) in (int, float) and isfinite(value) for value in values)
            or (name == "std" and 0 in values)
        ):
            raise ModelError(
                f"the model's description says {name} {values!r}; a number a channel was expected."
            )
    for name, choices in _CHOICES.items():
        if (said := how.get(name)) not in choices:
            expected = " or ".join(choices)
            raise ModelError(f"the model's description says {name} {said!r}; {expected} was expected.")


@dataclass(frozen=True)
class Classification:
    """How a graph classifies photographs: its input, its output of probabilities, a label a class."""

    input: str
    probabilities: str
    labels: Sequence[str]
    preprocessing: Mapping[str, Any]

    @staticmethod
    def of(
        description: Mapping[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> Classification:
        """Read a description for a graph with these inputs and outputs.

        Raises
        ------
        ModelError
            The description is incomplete, or belongs to another graph.
        """
        labels: Any = description.get("labels")
        how: Any = description.get("preprocessing")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ModelError("the model's description has no list of labels.")
        check_preprocessing(how)
        names = []
        for key, specs in (("input", inputs), ("probabilities", outputs)):
            there = [spec.name for spec in specs]
            if (name := description.get(key)) not in there:
                raise ModelError(
                    f"the model's description says {key} {name!r}; there is {', '.join(there)}."
                )
            names.append(str(name))
        classes = next(prod(spec.shape) for spec in outputs if spec.name == names[1])
        if classes != len(labels):
            raise ModelError(f"the model's description has {len(labels)} labels for {classes} classes.")
        return Classification(names[0], names[1], labels, how)


@dataclass(frozen=True)
class Embedding:
    """How a graph makes vectors of sentences.

    Its inputs (``names``: ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``) have the shape
    ``[batch, length]``; its output ``output`` has a vector a sentence. ``tokenizer`` names the model whose
    tokenizer it takes, and is None where the description names none.
    """

    names: Sequence[str]
    batch: int
    length: int
    output: str
    tokenizer: str | None

    def fitted(self, shape: Shape, texts: int, tokens: int) -> Embedding:
        """The same for a graph whose inputs' ``shape`` may be open: its batch then has that many texts, and
        its length is that of the longest, of so many tokens."""
        batch = self.batch if isinstance(shape[0], int) else min(self.batch, texts)
        length = self.length if isinstance(shape[1], int) else min(self.length, tokens)
        return replace(self, batch=batch, length=length)

    @staticmethod
    def of(description: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> Embedding:
        """Read a description for a graph with these inputs, of their greatest shape if it is open.

        Raises
        ------
        ModelError
            The description is incomplete, or belongs to another graph.
        """
        names = [spec.name for spec in inputs]
        if not {IDS, MASK} <= set(names) <= {IDS, MASK, KINDS}:
            raise ModelError(
                f"a network that embeds sentences takes {IDS}, {MASK} and perhaps {KINDS}; this one takes"
                f" {', '.join(names) or 'nothing'}."
            )
        shapes = {spec.static_shape for spec in inputs}
        shape = shapes.pop()
        if shapes or len(shape) != 2 or 0 in shape:
            raise ModelError(
                "a network that embeds sentences takes inputs of one shape [batch, length]; this one takes"
                f" {', '.join(map(str, inputs))}."
            )
        output, tokenizer = description.get("embedding"), description.get("tokenizer")
        if not isinstance(output, str):
            raise ModelError(f"the model's description says embedding {output!r}; an output was expected.")
        if not isinstance(tokenizer, str | None):
            raise ModelError(f"the model's description says tokenizer {tokenizer!r}; a name was expected.")
        return Embedding(names, *shape, output, tokenizer)
