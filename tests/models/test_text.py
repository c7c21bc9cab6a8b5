from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from wasmgraph.errors import InputError, MissingDependencyError, ModelError, UsageError
from wasmgraph.models.description import Embedding
from wasmgraph.models.evaluation import Evaluation
from wasmgraph.models.text import (
    SENTENCES,
    Tokens,
    distinct,
    feeds_of,
    read_tokenizer,
    sentences,
    texts_to_measure,
    tokenize,
    vectors_of,
)
from wasmgraph.tensors import TensorSpec

DESCRIPTION = {"task": "sentence-embedding", "embedding": "v", "tokenizer": "minilm"}
SAID = Embedding(("input_ids", "attention_mask", "token_type_ids"), 2, 6, "v", None)


def specs(shape: tuple[int, ...] = (2, 6), *names: str) -> list[TensorSpec]:
    return [TensorSpec(name, shape, "int64") for name in names or ("input_ids", "attention_mask")]


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    """A tokenizer of ten words. It asks for truncation and padding of its own, which are not ours."""
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "sat", "on", "the", "mat")
    content = {
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 50},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "[UNK]",
        },
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def test_texts_are_cut_and_padded(tokenizer_json: Path) -> None:
    texts = ["A cat sat on the mat", "a dog", ""]
    found = tokenize(read_tokenizer(tokenizer_json), texts, 6)
    assert found == [Tokens((2, 4, 5, 6, 7, 3), 8), Tokens((2, 4, 1, 3), 4), Tokens((2, 3), 2)]
    first, second = feeds_of(SAID, found)
    assert list(first) == list(SAID.names)
    assert {array.dtype.name for array in first.values()} == {"int64"}
    assert first["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3], [2, 4, 1, 3, 0, 0]]
    assert first["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert not first["token_type_ids"].any()
    assert second["input_ids"].tolist() == [[2, 3, 0, 0, 0, 0]] * 2
    with pytest.raises(UsageError, match="takes 2 tokens, and 2 of them begin and end"):
        tokenize(read_tokenizer(tokenizer_json), texts, 2)


def test_tokenizers_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="absent.json: No such file"):
        read_tokenizer(tmp_path / "absent.json")
    for content in (b"{}", b"\xff", b""):
        (tmp_path / "none.json").write_bytes(content)
        with pytest.raises(InputError, match="none.json is no tokenizer"):
            read_tokenizer(tmp_path / "none.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"needs tokenizers: pip install 'wasmgraph\[text\]'"):
        read_tokenizer(tmp_path / "none.json")


def test_vectors_are_those_of_the_texts() -> None:
    outputs = [{"v": np.full((2, 3), number, np.float32)} for number in range(2)]
    assert vectors_of(SAID, outputs, 3)[:, 0].tolist() == [0, 0, 1]
    for wrong in ({"w": np.zeros((2, 3))}, {"v": np.zeros((2, 6, 3))}, {"v": np.zeros(2)}):
        with pytest.raises(ModelError, match="says embedding 'v'"):
            vectors_of(SAID, [wrong], 2)


def test_what_is_well_described() -> None:
    found = Embedding.of(DESCRIPTION, specs())
    assert found == Embedding(["input_ids", "attention_mask"], 2, 6, "v", "minilm")


@pytest.mark.parametrize(
    ("change", "inputs", "words"),
    [
        ({}, specs((2, 6), "input_ids"), "this one takes input_ids"),
        ({}, specs((2, 6), "input_ids", "attention_mask", "x"), "this one takes .*x"),
        ({}, [*specs((2, 6), "input_ids"), *specs((2, 5), "attention_mask")], "of one shape"),
        ({}, specs((2, 6, 1)), "of one shape"),
        ({}, specs((2, 0)), "of one shape"),
        ({"embedding": None}, specs(), "says embedding None"),
        ({"tokenizer": ["/etc/passwd"]}, specs(), "says tokenizer"),
    ],
)
def test_a_description_of_another_graph(change: dict, inputs: list[TensorSpec], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Embedding.of(DESCRIPTION | change, inputs)


def test_sentences_are_prose_and_each_is_there_once() -> None:
    found = sentences()
    assert len(found) >= SENTENCES == len(texts_to_measure(8))
    assert len(set(found)) == len(found)
    assert all(text[0].isupper() and text.endswith(".") and "`" not in text for text in found)
    longer = texts_to_measure(128)
    assert len(longer) == SENTENCES // 4
    assert longer[0] == " ".join(found[:4])


def test_texts_that_are_cut_to_the_same_count_once() -> None:
    assert distinct([Tokens((1, 2), 5), Tokens((1, 2), 4), Tokens((3,), 1)]) == [
        Tokens((1, 2), 4),
        Tokens((3,), 1),
    ]


def test_accuracy_looks_at_texts_alone() -> None:
    """The row that fills up the last feed does not count."""
    theirs = [{"v": np.eye(4, dtype=np.float32)[rows]} for rows in ([0, 1], [2, 2])]
    ours = [{"v": array["v"] * 2} for array in theirs]
    ours[1]["v"][1] = np.nan
    judged = Evaluation([], None, {}, embedding=SAID, texts=3).accuracy(ours, theirs, [])
    assert (judged.inputs, judged.neighbours_agree, judged.agreement) == (3, 3, None)
    assert judged.cosine_min == pytest.approx(1)
