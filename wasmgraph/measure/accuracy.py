"""How well a backend classifies, and how far it is from the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wasmgraph.tensors import Array

_FLIP, _CROP, _NOISE = 0, 1, 2


@dataclass(frozen=True)
class Accuracy:
    """Counts over ``inputs`` inputs, and largest absolute differences to the reference.

    ``top1`` and ``top5`` are None without labels; ``max_logit_diff`` is None for a graph without
    a ``logits`` output. A graph that makes vectors of texts has ``cosine_min`` and ``neighbours_agree``
    (:func:`judge_vectors`) instead of classes.
    """

    inputs: int
    top1: int | None
    top5: int | None
    agreement: int | None
    max_prob_diff: float
    max_logit_diff: float | None
    cosine_min: float | None = None
    neighbours_agree: int | None = None


def judge(
    outputs: Sequence[Mapping[str, Array]],
    reference: Sequence[Mapping[str, Array]],
    labels: Sequence[int] | None,
    probabilities: str,
    logits: str | None,
) -> Accuracy:
    """Compare a backend's outputs with the reference's, on the same inputs.

    Parameters
    ----------
    outputs, reference : for each input, the outputs by name
    labels : for each input, the right class; None where it is unknown
    probabilities, logits : which outputs are compared
    """

    def stacked(rows: Sequence[Mapping[str, Array]], name: str) -> Array:
        return np.concatenate([row[name].reshape(1, -1) for row in rows]).astype(np.float64)

    ours, theirs = stacked(outputs, probabilities), stacked(reference, probabilities)
    ranked = np.argsort(-ours, axis=1, kind="stable")
    top1 = top5 = None
    if labels is not None:
        hits = ranked[:, :5] == np.asarray(labels)[:, np.newaxis]
        top1, top5 = int(hits[:, 0].sum()), int(hits.any(axis=1).sum())
    logit_diff = None
    if logits is not None:
        logit_diff = _largest(stacked(outputs, logits) - stacked(reference, logits))
    return Accuracy(
        inputs=len(outputs),
        top1=top1,
        top5=top5,
        agreement=int((ranked[:, 0] == theirs.argmax(axis=1)).sum()),
        max_prob_diff=_largest(ours - theirs),
        max_logit_diff=logit_diff,
    )


def judge_answers(
    outputs: Sequence[Mapping[str, Array]],
    reference: Sequence[Mapping[str, Array]],
    labels: Sequence[str],
    answer: Callable[[Mapping[str, Array]], str],
    is_right: Callable[[str, str], bool],
    probabilities: str,
) -> Accuracy:
    """Compare the answers in outputs with the right ones, and with the reference's.

    ``top1`` counts right answers, ``agreement`` answers equal to the reference's.

    Parameters
    ----------
    answer : extracts the answer from an input's outputs
    is_right : whether an answer is acceptable for a label
    """
    said, expected = [answer(row) for row in outputs], [answer(row) for row in reference]
    pairs = zip(outputs, reference, strict=True)
    gaps = [_largest(a[probabilities].astype(np.float64) - b[probabilities]) for a, b in pairs]
    return Accuracy(
        inputs=len(outputs),
        top1=sum(is_right(s, label) for s, label in zip(said, labels, strict=True)),
        top5=None,
        agreement=sum(s == e for s, e in zip(said, expected, strict=True)),
        max_prob_diff=max(gaps),
        max_logit_diff=None,
    )


def cosines(one: Array, other: Array) -> Array:
    """Cosine between each row of ``one`` and each of ``other``: float64 ``[rows, rows]``. A vector of
    length 0 gives NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (one.astype(np.float64), other.astype(np.float64))
        )
    found: Array = first @ second.T
    return found


def judge_vectors(ours: Array, theirs: Array) -> Accuracy:
    """Compare a backend's vectors of texts with the reference's: ``[texts, width]``, in the same order.

    ``cosine_min`` is the least cosine between a text's two vectors, −1 if one is no vector.
    ``neighbours_agree`` counts texts whose nearest other text is the same by both.
    """

    def nearest(rows: Array) -> Array:
        near = cosines(rows, rows)
        np.fill_diagonal(near, -np.inf)
        found: Array = near.argmax(axis=1)
        return found

    alike = np.nan_to_num(np.diagonal(cosines(ours, theirs)), nan=-1.0)
    return Accuracy(
        inputs=len(ours),
        top1=None,
        top5=None,
        agreement=None,
        max_prob_diff=_largest(ours.astype(np.float64) - theirs),
        max_logit_diff=None,
        cosine_min=float(alike.min()),
        neighbours_agree=int((nearest(ours) == nearest(theirs)).sum()),
    )


@dataclass(frozen=True)
class Doubt:
    """An input whose first class is not the label, or not the reference's: the most probable classes, with
    their probabilities, of the backend and of the reference."""

    input: int
    top: list[tuple[int, float]]
    reference_top: list[tuple[int, float]]


def doubts(
    outputs: Sequence[Mapping[str, Array]],
    reference: Sequence[Mapping[str, Array]],
    labels: Sequence[int] | None,
    probabilities: str,
    count: int = 5,
) -> list[Doubt]:
    """The inputs with a wrong or differing first class; parameters are those of :func:`judge`."""

    def most(row: Mapping[str, Array]) -> list[tuple[int, float]]:
        values = row[probabilities].ravel()
        return [(int(i), float(values[i])) for i in np.argsort(-values, kind="stable")[:count]]

    found = []
    for index, (ours, theirs) in enumerate(zip(outputs, reference, strict=True)):
        top, expected = most(ours), most(theirs)
        wrong = labels is not None and top[0][0] != labels[index]
        if wrong or top[0][0] != expected[0][0]:
            found.append(Doubt(index, top, expected))
    return found


def _largest(difference: Array) -> float:
    """Largest absolute value; infinite if any is NaN, so that a broken result is not taken for a missing
    one."""
    value = float(np.abs(difference).max())
    return float("inf") if np.isnan(value) else value


def augment(inputs: Sequence[Array], count: int, seed: int = 0) -> list[Array]:
    """``count`` variations of NCHW inputs: flips, shifted crops (edges repeated) and noise, seeded."""
    rng = np.random.default_rng(seed)
    varied = []
    for number in range(count):
        image = inputs[number % len(inputs)]
        kind = number // len(inputs) % 3
        if kind == _FLIP:
            image = image[..., ::-1]
        elif kind == _CROP:
            dy, dx = rng.integers(0, 49, 2)
            padded = np.pad(image, ((0, 0), (0, 0), (24, 24), (24, 24)), mode="edge")
            image = padded[..., dy : dy + image.shape[2], dx : dx + image.shape[3]]
        else:
            image = image + rng.normal(0, 12, image.shape).astype(image.dtype)
        if number >= 3 * len(inputs):
            image = image + rng.normal(0, 4, image.shape).astype(image.dtype)
        varied.append(np.ascontiguousarray(image))
    return varied
