from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wasmgraph.errors import PhotoError, UsageError
from wasmgraph.models.photos import decode, labelled_folder, preprocess
from wasmgraph.models.resnet50 import PREPROCESSING


@given(st.integers(20, 700), st.integers(20, 700))
@settings(max_examples=25, deadline=None)
def test_any_size_becomes_the_models_input(width: int, height: int) -> None:
    out = preprocess(Image.new("RGB", (width, height), (10, 20, 30)), PREPROCESSING)
    assert out.shape == (1, 3, 224, 224)
    assert out.dtype == np.float32
    means = PREPROCESSING["mean"]
    for channel, value in enumerate((30, 20, 10)):  # blue first
        np.testing.assert_allclose(out[0, channel], value - means[channel], rtol=1e-6)


def test_the_crop_is_central() -> None:
    image = Image.new("RGB", (512, 256))
    image.paste((255, 255, 255), (256, 0, 512, 256))
    out = preprocess(image, PREPROCESSING)[0, 0]
    assert out[:, :100].max() < 0 < out[:, 124:].min()


def test_unreadable_photos(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("not a photo")
    with pytest.raises(PhotoError, match=r"x\.jpg is not an image"):
        decode(tmp_path / "x.jpg")
    with pytest.raises(PhotoError, match="cannot be read"):
        decode(tmp_path / "absent.jpg")
    buffer = BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:700])
    with pytest.raises(PhotoError, match=r"cut\.jpg"):
        decode(tmp_path / "cut.jpg")


def test_a_validation_folder(tmp_path: Path) -> None:
    for index in (3, 12):
        (tmp_path / str(index)).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / str(index) / "a.png")
    (tmp_path / "3" / "notes.txt").write_text("")
    assert sorted((p.label, p.name) for p in labelled_folder(tmp_path)) == [
        (3, "3/a.png"),
        (12, "12/a.png"),
    ]
    (tmp_path / "n0123").mkdir()
    with pytest.raises(UsageError, match="named by class index or all 1000"):
        labelled_folder(tmp_path)
