"""A model's description of itself: how a photograph becomes its input, and what its outputs mean. It comes
from whoever made the model, so it is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

from wasmgraph.errors import ModelError
from wasmgraph.tensors import TensorSpec

CLASSIFICATION = "image-classification"
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
