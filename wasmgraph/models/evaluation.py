"""Inputs for measuring a model: labelled photographs or English sentences where it takes them, otherwise
seeded noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from wasmgraph.artifact import DESCRIPTION_KEY
from wasmgraph.errors import FetchError, MissingDependencyError
from wasmgraph.measure.accuracy import Accuracy, judge, judge_answers, judge_vectors
from wasmgraph.models import text
from wasmgraph.models.description import EMBEDDING, Embedding
from wasmgraph.models.ocr import TASKS, answer, examples, is_right
from wasmgraph.models.photos import Photo, accuracy_set, inputs_of, labelled_folder
from wasmgraph.tensors import Array, TensorSpec, noise

_NOISE_INPUTS = 3


@dataclass(frozen=True)
class Evaluation:
    """Feeds, and their labels where these are known and the weights are trained.

    ``description`` is the model's own: weights, preprocessing, labels. ``photos`` are the photographs that
    the feeds were made from, if any. Labels are class indices, or the right answers of a task with text.
    ``texts`` of them are in the feeds of ``embedding``, which makes vectors of them.
    """

    feeds: Sequence[dict[str, Array]]
    labels: Sequence[int] | Sequence[str] | None
    description: dict[str, Any]
    photos: Sequence[Photo] = ()
    embedding: Embedding | None = None
    texts: int = 0

    @property
    def length(self) -> int | None:
        """Tokens of a text; None for a network that takes none."""
        return self.embedding.length if self.embedding else None

    @property
    def sha256(self) -> str:
        """Digest of all feeds, in their order."""
        digest = hashlib.sha256()
        for feeds in self.feeds:
            for name in sorted(feeds):
                digest.update(f"{name} {feeds[name].dtype} {feeds[name].shape}\n".encode())
                digest.update(np.ascontiguousarray(feeds[name]).tobytes())
        return digest.hexdigest()

    def class_name(self, index: int) -> str:
        """The model's name for a class, or the class's number."""
        names = self.description.get("labels") or []
        return str(names[index]) if 0 <= index < len(names) else str(index)

    def accuracy(
        self,
        outputs: Sequence[Mapping[str, Array]],
        reference: Sequence[Mapping[str, Array]],
        specs: Sequence[TensorSpec],
    ) -> Accuracy:
        """How well a backend does the model's task, and how far it is from the reference.

        ``outputs`` and ``reference`` are those of the feeds, ``specs`` the outputs' specs.
        """
        if self.embedding:
            said = self.embedding
            ours, theirs = (text.vectors_of(said, rows, self.texts) for rows in (outputs, reference))
            return judge_vectors(ours, theirs)
        probabilities, logits = self.outputs(specs)
        task = self.description.get("task")
        if task not in TASKS or self.labels is None:
            return judge(outputs, reference, cast(Any, self.labels), probabilities, logits)
        return judge_answers(
            outputs,
            reference,
            [str(label) for label in self.labels],
            lambda row: answer(task, self.description, row),
            lambda said, label: is_right(task, said, label),
            probabilities,
        )

    def outputs(self, specs: Sequence[TensorSpec]) -> tuple[str, str | None]:
        """Names of the outputs that accuracy looks at: probabilities, and logits if there are any."""
        return self.description.get("probabilities", specs[0].name), self.description.get("logits")


def describe(path: Path) -> dict[str, Any]:
    """The description that an ``.onnx`` file carries, empty where it has none."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    raw = next((p.value for p in proto.metadata_props if p.key == DESCRIPTION_KEY), "{}")
    description: dict[str, Any] = json.loads(raw)
    return description


def evaluation(
    path: Path, inputs: Sequence[TensorSpec], images: Path | None, notice: Callable[[str], None]
) -> Evaluation:
    """Inputs for the model in ``path``.

    Parameters
    ----------
    inputs : what the graph takes
    images : a folder of labelled photographs instead of the twenty known ones
    notice : called with the reason if photographs or a tokenizer cannot be had
    """
    description = describe(path)
    photos = []
    if "preprocessing" in description:
        try:
            photos = labelled_folder(images) if images is not None else accuracy_set()
        except FetchError as error:
            notice(f"No photographs: {error} Accuracy is measured on seeded noise.")
    if description.get("task") == EMBEDDING and description.get("tokenizer"):
        try:
            return _texts(Embedding.of(description, inputs), description)
        except (FetchError, MissingDependencyError) as error:
            notice(f"No sentences: {error} Measured on seeded noise, without accuracy.")
    if description.get("task") in TASKS and inputs[0].static_shape[0] == 1:
        pairs = examples(description["task"], inputs[0].static_shape)
        lines = [{description["input"]: image} for image, _ in pairs]
        return Evaluation(lines, [label for _, label in pairs], description)
    if photos:
        name = description["input"]
        arrays = inputs_of(photos, description["preprocessing"])
        batch = inputs[0].static_shape[0]
        if batch > 1:  # labels are of single photographs: calls are compared as wholes
            rows = [
                np.take(arrays, range(i, i + batch), 0, mode="wrap") for i in range(0, len(arrays), batch)
            ]
            return Evaluation([{name: np.concatenate(row)} for row in rows], None, description)
        feeds = [{name: array} for array in arrays]
        trained = description.get("weights") != "random"
        labels = [photo.label for photo in photos] if trained else None
        return Evaluation(feeds, labels, description, photos)
    rng = np.random.default_rng(0)
    return Evaluation([noise(inputs, rng) for _ in range(_NOISE_INPUTS)], None, description)


def _texts(said: Embedding, description: dict[str, Any]) -> Evaluation:
    """Sentences, or passages as long as the network takes."""
    from wasmgraph.models import fetch_tokenizer

    tokenizer = text.read_tokenizer(fetch_tokenizer(said.tokenizer or ""))
    tokens = text.tokenize(tokenizer, text.texts_to_measure(said.length), said.length)
    tokens = text.distinct(tokens)
    feeds = list(text.feeds_of(said, tokens))
    return Evaluation(feeds, None, description, embedding=said, texts=len(tokens))
