"""Sentences for networks that make vectors of them: tokenised, padded, fed in batches; and real sentences
to measure with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wasmgraph.errors import InputError, ModelError, UsageError, needing
from wasmgraph.models.description import IDS, KINDS, MASK, Embedding
from wasmgraph.tensors import Array

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTENCES = 300
_SENTENCE_TOKENS = 32  # a sentence to measure with, roughly: longer texts are several in a row
_PROSE = re.compile(r"[A-Z][\w ,;'()-]+\.")


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``.

    Raises
    ------
    InputError
        It cannot be read, or is none.
    MissingDependencyError
        The package ``tokenizers`` is not installed.
    """
    with needing("reading text", "text"):
        from tokenizers import Tokenizer
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the tokenizer {path}: {error.strerror or error}.") from error
    except Exception as error:  # tokenizers raises nothing more special
        raise InputError(
            f"{path} is no tokenizer: {error}. Expected a tokenizer.json as Hugging Face's models have it."
        ) from error


@dataclass(frozen=True)
class Tokens:
    """A text as a network takes it: its tokens' ids, and how many tokens the whole text has."""

    ids: tuple[int, ...]
    whole: int


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[Tokens]:
    """Texts as at most ``length`` tokens each, those that begin and end a text included.

    Raises
    ------
    UsageError
        ``length`` leaves no room beside these.
    """
    frame = tokenizer.num_special_tokens_to_add(is_pair=False)
    if length <= frame:
        raise UsageError(
            f"the graph takes {length} tokens, and {frame} of them begin and end a text: compile it with a"
            " longer --shape."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    whole = [len(found.ids) for found in tokenizer.encode_batch(list(texts))]
    tokenizer.enable_truncation(length)
    cut = tokenizer.encode_batch(list(texts))
    return [Tokens(tuple(found.ids), count) for found, count in zip(cut, whole, strict=True)]


def feeds_of(said: Embedding, tokens: Sequence[Tokens]) -> Iterator[dict[str, Array]]:
    """Texts as feeds of ``said.batch`` each, int64 ``[batch, length]``. Short texts are padded with 0 under
    a mask of 0; the last feed is filled up with its last text.
    """
    for first in range(0, len(tokens), said.batch):
        ids, mask = (np.zeros((said.batch, said.length), np.int64) for _ in range(2))
        for row in range(said.batch):
            text = tokens[min(first + row, len(tokens) - 1)].ids
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        arrays = {IDS: ids, MASK: mask, KINDS: np.zeros_like(ids)}
        yield {name: arrays[name] for name in said.names}


def vectors_of(said: Embedding, outputs: Sequence[Mapping[str, Array]], count: int) -> Array:
    """The vectors of ``count`` texts, float64 ``[count, width]``, from the outputs of their feeds.

    Raises
    ------
    ModelError
        The graph has no such output, or one of another shape.
    """
    for each in outputs:
        if said.output not in each or each[said.output].shape[:-1] != (said.batch,):
            there = ", ".join(f"{name} {list(array.shape)}" for name, array in each.items())
            raise ModelError(
                f"the model's description says embedding {said.output!r}, of shape [{said.batch}, width];"
                f" there is {there}."
            )
    return np.concatenate([each[said.output] for each in outputs])[:count].astype(np.float64)


def sentences() -> list[str]:
    """English sentences of prose, at least :data:`SENTENCES`, from the documentation that is part of Python
    (:mod:`pydoc_data.topics`). They are real, need no download, and differ a little between versions of
    Python.
    """
    from pydoc_data.topics import topics

    found = []
    for _, topic in sorted(topics.items()):
        for paragraph in topic.split("\n\n"):
            prose = " ".join(paragraph.split())
            if not paragraph.startswith(" ") and prose.endswith("."):
                found += re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose)
    return list(dict.fromkeys(s for s in found if _PROSE.fullmatch(s) and len(s.split()) >= 6))


def texts_to_measure(length: int) -> list[str]:
    """Texts of about ``length`` tokens: :data:`SENTENCES` sentences, or fewer passages of several."""
    known, several = sentences()[:SENTENCES], max(1, length // _SENTENCE_TOKENS)
    firsts = range(0, len(known) - several + 1, several)
    return [" ".join(known[first : first + several]) for first in firsts]


def distinct(tokens: Sequence[Tokens]) -> list[Tokens]:
    """Without texts that the network cannot tell from one before: neighbours would be a tie."""
    return list({each.ids: each for each in tokens}.values())
