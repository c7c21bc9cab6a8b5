from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wasmgraph.errors import ModelError
from wasmgraph.models.description import Classification, check_preprocessing
from wasmgraph.tensors import TensorSpec

GOOD = {
    "resize_short_side": 256,
    "center_crop": 224,
    "channels": "RGB",
    "mean": [1, 2.5, 3],
    "std": [1, 1, 1],
    "layout": "NCHW",
}
INPUTS, OUTPUTS = [TensorSpec("x", (1, 3, 224, 224), "float32")], [TensorSpec("p", (1, 2), "float32")]
SAYS = {"input": "x", "probabilities": "p", "labels": ["cat", "dog"], "preprocessing": GOOD}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


def test_what_is_well_described() -> None:
    found = Classification.of(SAYS, INPUTS, OUTPUTS)
    assert (found.input, found.probabilities, found.labels) == ("x", "p", ["cat", "dog"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("center_crop", 10**6),
        ("center_crop", 257),
        ("center_crop", 0),
        ("resize_short_side", 10**6),
        ("resize_short_side", True),
        ("mean", [1, 2]),
        ("mean", [1, 2, float("nan")]),
        ("std", [1, 0, 1]),
        ("channels", "RGBA"),
        ("layout", ["NCHW"]),
    ],
)
def test_preprocessing_that_is_none(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=name):
        check_preprocessing(GOOD | {name: value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("labels", 5, "no list of labels"),
        ("labels", ["cat", 5], "no list of labels"),
        ("labels", ["cat"], "1 labels for 2 classes"),
        ("input", "y", "there is x"),
        ("probabilities", ["p"], "there is p"),
        ("preprocessing", None, "an object was expected"),
    ],
)
def test_a_description_of_another_graph(name: str, value: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Classification.of(SAYS | {name: value}, INPUTS, OUTPUTS)


@given(st.sampled_from([*SAYS, *GOOD]), anything)
def test_whatever_it_says_it_is_refused_in_our_words(name: str, value: Any) -> None:
    said = SAYS | {name: value} if name in SAYS else SAYS | {"preprocessing": GOOD | {name: value}}
    try:
        Classification.of(said, INPUTS, OUTPUTS)
    except ModelError:
        pass
    else:
        check_preprocessing(said["preprocessing"])
