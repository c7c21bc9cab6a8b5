"""Stage 1: models by name or from MindSpore. ``fetch`` gives a verified ``.onnx`` file in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from wasmgraph.errors import CacheError, FetchError, UsageError, needing
from wasmgraph.files import cache_dir, cache_lock, write_atomically
from wasmgraph.models.mindspore import from_mindspore
from wasmgraph.models.packaged import PACKAGED_MODELS

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """A model that can be fetched: how its file is built, and the revision of that build.

    ``build`` gets a function to report progress and returns the file's content. ``revision`` is part of the
    cached file's name: raise it when the content changes. ``tokenizer`` returns the content of the
    ``tokenizer.json`` of a network of text.
    """

    name: str
    revision: int
    build: Callable[[Progress], bytes]
    summary: str
    tokenizer: Callable[[Progress], bytes] | None = None


def _resnet50(progress: Progress, trained: bool) -> bytes:
    with needing("making the model's file", "compile"):
        from wasmgraph.models import resnet50
    build = resnet50.build_trained if trained else resnet50.build_random
    return bytes(build(progress).SerializeToString())


def _light(progress: Progress, name: str) -> bytes:
    progress(f"{name} from the onnx package")
    data = resources.files("onnx") / "backend" / "test" / "data" / "light" / f"{name}.onnx"
    try:
        return data.read_bytes()
    except OSError as error:
        raise FetchError(f"the installed onnx package holds no {name}.onnx: {error}.") from error


def _efficientnet(progress: Progress) -> bytes:
    from wasmgraph.models import efficientnet

    return bytes(efficientnet.build(progress).SerializeToString())


def _ocr(progress: Progress, name: str) -> bytes:
    from wasmgraph.models import ocr

    return ocr.build(name, progress)


def _product(progress: Progress, build: str, **sizes: int) -> bytes:
    with needing("making the model's file", "compile"):
        from wasmgraph.models import products

    progress("matrix products")
    return bytes(getattr(products, build)(**sizes).SerializeToString())


def _packaged(progress: Progress, name: str) -> bytes:
    with needing("making the model's file", "compile"):
        import onnx  # noqa: F401
    from wasmgraph.models import packaged

    return packaged.build(name, progress)


def _minilm(progress: Progress) -> bytes:
    with needing("making the model's file", "compile"):
        import onnx  # noqa: F401
    from wasmgraph.models import minilm

    return minilm.build(progress)


def _minilm_tokenizer(progress: Progress) -> bytes:
    from wasmgraph.models import minilm

    return minilm.tokenizer(progress)


def _byte_classifier(progress: Progress) -> bytes:
    with needing("making the model's file", "compile"):
        from wasmgraph.models import byte_classifier

    progress("a byte classifier of random weights")
    return bytes(byte_classifier.build().SerializeToString())


def _recurrent(progress: Progress, kind: Any, steps: int) -> bytes:
    with needing("making the model's file", "compile"):
        from wasmgraph.models import recurrent

    progress(f"{kind} of {steps} steps and random weights")
    return bytes(recurrent.build(kind, steps).SerializeToString())


_LIGHT = "bvlc_alexnet densenet121 inception_v1 inception_v2 resnet50 shufflenet squeezenet vgg19 zfnet512"
MODELS = {
    model.name: model
    for model in (
        Model(
            "resnet50",
            1,
            partial(_resnet50, trained=True),
            "ResNet-50 v1, trained on ImageNet (95 MB download)",
        ),
        Model(
            "resnet50-random",
            1,
            partial(_resnet50, trained=False),
            "the same architecture, seeded random weights",
        ),
        Model(
            "efficientnet_lite0",
            1,
            _efficientnet,
            "EfficientNet-Lite0, trained on ImageNet (17 MB download)",
        ),
        *(
            Model(name, 1, partial(_ocr, name=name), f"PP-OCRv4: text {does} (15 MB download)")
            for name, does in (
                ("ppocr_detection", "detection"),
                ("ppocr_recognition", "recognition"),
                ("ppocr_direction", "direction"),
            )
        ),
        Model(
            "minilm",
            1,
            _minilm,
            "all-MiniLM-L6-v2: vectors of sentences (83 MB download)",
            _minilm_tokenizer,
        ),
        Model(
            "byte_classifier",
            1,
            _byte_classifier,
            "a classifier of 2,048 bytes with seeded random weights: for speed alone",
        ),
        *(
            Model(
                f"{kind.lower()}_{steps}",
                1,
                partial(_recurrent, kind=kind, steps=steps),
                f"{kind} 256 wide, {steps} steps, with seeded random weights: for speed alone",
            )
            for kind in ("LSTM", "GRU")
            for steps in (16, 64, 512)
        ),
        Model(
            "matrix_vector",
            1,
            partial(_product, build="matrix_vector"),
            "products of a row by matrices of 16 MiB, with seeded random weights: for speed alone",
        ),
        *(
            Model(
                f"attention_{size}",
                1,
                partial(_product, build="attention", size=size),
                f"attention over 256 tokens, twelve heads of size {size}: for speed alone",
            )
            for size in (32, 64)
        ),
        *(
            Model(name, 1, partial(_packaged, name=name), packaged.summary)
            for name, packaged in PACKAGED_MODELS.items()
        ),
        *(
            Model(
                f"light_{name}",
                1,
                partial(_light, name=f"light_{name}"),
                f"the architecture {name} with constant weights, from the onnx package: for speed alone",
            )
            for name in _LIGHT.split()
        ),
    )
}


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Return the path of a model's ``.onnx`` file, fetched and verified if it is not yet cached.

    Parameters
    ----------
    name : a key of :data:`MODELS`
    progress : called with a description of each step

    Raises
    ------
    UsageError
        There is no model of that name.
    FetchError, DigestError
        The package cannot be had, or is not what it should be.
    CacheError
        The cache cannot be written.
    """
    model = _model(name)
    return _cached(model, "onnx", model.build, progress)


def fetch_tokenizer(name: str, progress: Progress | None = None) -> Path:
    """Return the path of the ``tokenizer.json`` of a network of text, cached like :func:`fetch`'s file.

    Raises
    ------
    UsageError
        There is no model of that name, or it takes no text.
    FetchError, DigestError, CacheError
        As :func:`fetch` raises them.
    """
    model = _model(name)
    if model.tokenizer is None:
        known = ", ".join(each.name for each in MODELS.values() if each.tokenizer)
        raise UsageError(f"the model {name!r} has no tokenizer; {known} has one.")
    return _cached(model, "tokenizer.json", model.tokenizer, progress)


def _model(name: str) -> Model:
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}; there are {', '.join(MODELS)}.")
    return MODELS[name]


def _cached(
    model: Model, ending: str, build: Callable[[Progress], bytes], progress: Progress | None
) -> Path:
    path = cache_dir("models") / f"{model.name}-{model.revision}.{ending}"
    try:
        if not path.exists():
            with cache_lock(path):
                if not path.exists():
                    write_atomically(path, build(progress or (lambda _: None)))
    except OSError as error:
        raise CacheError(
            f"{model.name}: the cache {path.parent.parent} cannot be written ({error.strerror}): make room"
            " there, or set WASMGRAPH_CACHE to another directory."
        ) from error
    return path


__all__ = ["MODELS", "Model", "fetch", "fetch_tokenizer", "from_mindspore"]
