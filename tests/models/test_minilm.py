"""The trained network of text: real sentences, its neighbours, onnxruntime's vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import wasmgraph as wg
from wasmgraph.artifact import Artifact
from wasmgraph.compiler.importing import bind_shapes
from wasmgraph.errors import IndexRangeError, UsageError
from wasmgraph.measure.accuracy import cosines
from wasmgraph.models import fetch_tokenizer
from wasmgraph.models.bert import EMBEDDING, HIDDEN, INPUTS, Config, build, random_weights
from wasmgraph.models.description import Embedding
from wasmgraph.models.evaluation import describe
from wasmgraph.models.text import Tokens, feeds_of, read_tokenizer, sentences, tokenize, vectors_of

TARGETS = ("wasm32-simd128", "native")
# Each says what the one before it says, in other words.
PAIRS = (
    ("A man is eating pasta.", "Someone is having a meal of noodles."),
    ("The stock market fell sharply today.", "Share prices dropped a lot this afternoon."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
)


def said(artifact: Artifact) -> Embedding:
    return Embedding.of(artifact.manifest.description, artifact.inputs)


def tokens(texts: list[str], length: int) -> list[Tokens]:
    return tokenize(read_tokenizer(fetch_tokenizer("minilm")), texts, length)


def bound(path: Path, to: Path, shape: tuple[int, int]) -> Path:
    """The model in one shape, for onnxruntime."""
    model = onnx.load(path)
    bind_shapes(model, {"input_ids": shape})
    onnx.save(model, to)
    return to


def test_the_model_is_what_it_says(minilm_onnx: Path) -> None:
    model = onnx.load(minilm_onnx)
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in [*model.graph.input, *model.graph.output]}  # fmt: skip
    assert shapes == {name: ["batch", "sequence"] for name in INPUTS} | {
        HIDDEN: ["batch", "sequence", 384],
        EMBEDDING: ["batch", 384],
    }
    lookups = {n.name for n in model.graph.node if n.op_type == "Gather"}
    assert lookups == {"embeddings.word_embeddings", "embeddings.token_type_embeddings"}
    description = describe(minilm_onnx)
    assert (description["weights"], description["tokenizer"]) == ("trained", "minilm")
    count = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert count == pytest.approx(22.6e6, rel=0.01)


@pytest.mark.parametrize("target", TARGETS)
def test_vectors_are_onnxruntimes(
    target: str, minilm_onnx: Path, minilm_artifact: Callable[[str], Artifact], tmp_path: Path
) -> None:
    artifact = minilm_artifact(target)
    feeds = list(feeds_of(said(artifact), tokens(sentences()[:6], 16)))
    reference = bound(minilm_onnx, tmp_path / "bound.onnx", (2, 16))
    with wg.load(artifact) as session, wg.load(reference) as other:
        for each in feeds:
            ours, theirs = session.run(each), other.run(each)
            assert np.diagonal(cosines(ours[EMBEDDING], theirs[EMBEDDING])).min() >= 0.99999
            np.testing.assert_allclose(np.linalg.norm(ours[EMBEDDING], axis=1), 1, atol=1e-6)
            np.testing.assert_allclose(ours[HIDDEN], theirs[HIDDEN], atol=1e-4)


def test_what_means_the_same_is_near(minilm_artifact: Callable[[str], Artifact]) -> None:
    artifact = minilm_artifact("wasm32-simd128")
    texts = [text for pair in PAIRS for text in pair]
    with wg.load(artifact) as session:
        outputs = [session.run(feeds) for feeds in feeds_of(said(artifact), tokens(texts, 16))]
    vectors = vectors_of(said(artifact), outputs, len(texts))
    near = cosines(vectors, vectors)
    np.fill_diagonal(near, -1)
    assert near.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_padding_changes_nothing(minilm_artifact: Callable[[str], Artifact]) -> None:
    """A text's vector is the same beside another one, and whatever its padding holds."""
    artifact = minilm_artifact("native")
    feeds = next(feeds_of(said(artifact), tokens(list(PAIRS[0]), 16)))
    other = {name: array.copy() for name, array in feeds.items()}
    other["input_ids"][feeds["attention_mask"] == 0] = 999
    other["input_ids"][1], other["attention_mask"][1] = 7, 1
    with wg.load(artifact) as session:
        np.testing.assert_allclose(
            session.run(other)[EMBEDDING][0], session.run(feeds)[EMBEDDING][0], atol=1e-6
        )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "index", "node"),
    [
        ("input_ids", 30522, "embeddings.word_embeddings"),
        ("input_ids", -30523, "embeddings.word_embeddings"),
        ("token_type_ids", 2, "embeddings.token_type_embeddings"),
    ],
)
def test_ids_beyond_the_vocabulary_are_refused(
    target: str, name: str, index: int, node: str, minilm_artifact: Callable[[str], Artifact]
) -> None:
    artifact = minilm_artifact(target)
    feeds = next(feeds_of(said(artifact), tokens(list(PAIRS[0]), 16)))
    with wg.load(artifact) as session:
        right = session.run(feeds)[EMBEDDING]
        wrong = feeds | {name: feeds[name].copy()}
        wrong[name][1, 3] = index
        with pytest.raises(IndexRangeError, match=f"index {index} is out of range at node '{node}'"):
            session.run(wrong)
        np.testing.assert_array_equal(session.run(feeds)[EMBEDDING], right)


def test_a_small_encoder_of_other_sizes_agrees(tmp_path: Path) -> None:
    """The graph's writer, without a download: a width that no tile divides, other heads and layers."""
    config = Config(36, 2, 3, 50, vocab_size=40, max_position_embeddings=11)
    model = build(config, random_weights(config), "small", {})
    onnx.save(model, tmp_path / "small.onnx")
    rng = np.random.default_rng(0)
    feeds = {
        "input_ids": rng.integers(0, 40, (3, 7)),
        "attention_mask": (np.arange(7) < [[7], [4], [1]]).astype(np.int64),
        "token_type_ids": rng.integers(0, 2, (3, 7)),
    }
    reference = bound(tmp_path / "small.onnx", tmp_path / "bound.onnx", (3, 7))
    with wg.load(wg.compile(model, shapes={"input_ids": (3, 7)})) as session, wg.load(reference) as other:
        ours, theirs = session.run(feeds), other.run(feeds)
    for name in (HIDDEN, EMBEDDING):
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5)


def test_only_networks_of_text_have_a_tokenizer() -> None:
    with pytest.raises(UsageError, match="'resnet50' has no tokenizer; minilm has one"):
        fetch_tokenizer("resnet50")
    with pytest.raises(UsageError, match="unknown model 'gpt'"):
        fetch_tokenizer("gpt")
