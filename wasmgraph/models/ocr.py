"""PP-OCRv4's three networks (find a line of text, tell which way up it is, read it), from a PyPI package;
and rendered lines of text, with the right answer of each network.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wasmgraph.models.packages import Package, package_file
from wasmgraph.tensors import Array

PACKAGE = Package(
    registry="pypi",
    name="rapidocr-onnxruntime",
    version="1.4.4",
    filename="rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    sha256="971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
LINES = ("WebAssembly 2026", "one portable module", "reads 3 lines of text")


@dataclass(frozen=True)
class OcrModel:
    """One of the networks: its file in the package, its task, its default shape, and its output."""

    file: str
    task: str
    shape: tuple[int, int, int, int]
    output: str


OCR_MODELS = {
    "ppocr_detection": OcrModel(
        "ch_PP-OCRv4_det_infer.onnx", "text-detection", (1, 3, 320, 640), "sigmoid_0.tmp_0"
    ),
    "ppocr_recognition": OcrModel(
        "ch_PP-OCRv4_rec_infer.onnx", "text-recognition", (1, 3, 48, 320), "softmax_11.tmp_0"
    ),
    "ppocr_direction": OcrModel(
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "text-direction",
        (1, 3, 48, 192),
        "save_infer_model/scale_0.tmp_1",
    ),
}


def build(name: str, progress: Callable[[str], None]) -> bytes:
    """The network's ONNX file, with a description of its task; its dimensions stay open.

    Raises
    ------
    FetchError
        The package cannot be had, or is not what it should be.
    """
    import onnx

    model = OCR_MODELS[name]
    with zipfile.ZipFile(package_file(PACKAGE, progress)) as wheel:
        proto = onnx.load(io.BytesIO(wheel.read(f"rapidocr_onnxruntime/models/{model.file}")))
    description: dict[str, Any] = {
        "task": model.task,
        "weights": "trained",
        "input": "x",
        "probabilities": model.output,
        "shapes": {"x": model.shape},
    }
    known = {p.key: p.value for p in proto.metadata_props}
    if "character" in known:
        description["labels"] = ["", *known["character"].split("\n"), " "]
    onnx.helper.set_model_props(proto, known | {"wasmgraph": json.dumps(description)})
    return bytes(proto.SerializeToString())


def _line(text: str, height: int) -> Image.Image:
    """A line of black text on white, as high as asked."""
    font = ImageFont.load_default(size=round(height * 0.62))
    left, _, right, _ = font.getbbox(text)
    image = Image.new("RGB", (round(right - left) + height // 2, height), "white")
    ImageDraw.Draw(image).text((height // 4, height // 2), text, "black", font, anchor="lm")
    return image


def _as_input(image: Image.Image, shape: Sequence[int]) -> Array:
    """An image at the left of an input; the rest is the mean."""
    _, _, height, width = shape
    scale = min(height / image.height, width / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)[..., ::-1]
    made = np.zeros((1, 3, height, width), np.float32)
    made[0, :, : size[1], : size[0]] = (pixels / 127.5 - 1).transpose(2, 0, 1)
    return made


def examples(task: str, shape: Sequence[int]) -> list[tuple[Array, str]]:
    """Inputs of batch 1 for a task, with the right answer to each."""
    if task == "text-recognition":
        return [(_as_input(_line(text, 48), shape), text) for text in LINES]
    if task == "text-direction":
        lines = [(_line(text, 48), "0") for text in LINES]
        turned = [(image.transpose(Image.Transpose.ROTATE_180), "180") for image, _ in lines]
        return [(_as_input(image, shape), answer) for image, answer in [*lines, *turned]]
    _, _, height, width = shape
    found = []
    for number, text in enumerate(LINES):
        page = Image.new("RGB", (width, height), "white")
        line = _line(text, height // 6)
        at = (width // 16, (1 + 2 * number) * height // 8)
        page.paste(line, at)
        ink = np.asarray(page.convert("L")) < 128
        found.append((_as_input(page, shape), _box(ink)))
    return found


def _box(mask: Array, unclip: float = 0.0) -> str:
    """The box around all marked pixels: left, top, right, bottom.

    The network marks lines shrunk: ``unclip`` moves each side out by area·unclip/circumference (Liao et
    al., "Real-time Scene Text Detection with Differentiable Binarization", 2020).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return "nothing"
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    width, height = right - left, bottom - top
    out = round(width * height * unclip / (2 * (width + height)))
    return f"{left - out},{top - out},{right + out},{bottom + out}"


def answer(task: str, description: Mapping[str, Any], outputs: Mapping[str, Array]) -> str:
    """A network's answer: the text that it reads, ``0`` or ``180``, or the box of the text that it
    finds."""
    said = outputs[description["probabilities"]][0]
    if task == "text-recognition":
        best = said.argmax(axis=-1)  # connectionist temporal classification: repeats and blanks go
        kept = [c for n, c in enumerate(best) if c and (n == 0 or c != best[n - 1])]
        return "".join(description["labels"][c] for c in kept).strip()
    if task == "text-direction":
        return ("0", "180")[int(said.argmax())]
    return _box(said[0] > 0.3, unclip=1.6)


def is_right(task: str, said: str, expected: str) -> bool:
    """Whether an answer is right. A box is, if its overlap is at least half of the union of both boxes."""
    if task != "text-detection" or "nothing" in (said, expected):
        return said == expected
    one, other = ([int(n) for n in box.split(",")] for box in (said, expected))
    sides = [min(one[a + 2], other[a + 2]) - max(one[a], other[a]) for a in (0, 1)]
    shared = max(0, sides[0]) * max(0, sides[1])
    both = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    return shared * 2 >= both


TASKS = tuple(model.task for model in OCR_MODELS.values())
