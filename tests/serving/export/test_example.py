"""The exported example prepares the very pixels that fedvad does, and refuses what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvad.data.images import read_rgb, resize_rgb
from fedvad.errors import ImageError
from fedvad.serving.export.example import read
from tests.data.test_images import raw_tiff

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize(
    ("name", "pixels", "options"),
    [
        ("plain.png", RGB, {}),
        ("grey.pgm", GREY, {}),
        ("lossy.jpg", RGB, {"exif": EXIF}),
        ("turned.png", RGB, {"exif": EXIF}),
        ("turned.tif", RGB, {"exif": EXIF}),
        ("turned.webp", RGB, {"exif": EXIF, "lossless": True}),
        ("alpha.png", np.dstack([RGB, GREY]), {"exif": EXIF}),
        ("alpha.webp", np.dstack([RGB, GREY]), {"lossless": True}),
        ("half.png", np.dstack([GREY, GREY]), {}),
        ("keyed.png", GREY, {"transparency": int(GREY[0, 0])}),
        ("deep.png", GREY.astype(np.uint16) * 199, {}),
        ("dark.png", GREY.astype(np.uint16), {}),
        ("deep.tif", GREY.astype(np.uint16) * 199, {}),
        ("whole.tif", GREY.astype(np.int32), {}),
        ("float.tif", GREY.astype(np.float32) / 255, {}),
        ("bright.tif", GREY.astype(np.float32), {}),
        ("holes.tif", np.where(GREY > 99, np.nan, GREY).astype(np.float32), {}),
        ("bit.png", GREY > 99, {}),
        ("still.gif", RGB, {}),
    ],
)
def test_its_tensor_is_ours(tmp_path: Path, name: str, pixels: Any, options: Any) -> None:
    Image.fromarray(pixels).save(tmp_path / name, **options)
    ours = resize_rgb(read_rgb(tmp_path / name), 32)
    np.testing.assert_array_equal(read(str(tmp_path / name), (32, 32)), ours)


@pytest.mark.parametrize("name", ["c.jpg", "c.tif", "p.png"])
def test_cmyk_and_palettes(tmp_path: Path, name: str) -> None:
    picture = Image.fromarray(np.dstack([RGB, GREY]))
    picture = picture.convert("P") if name == "p.png" else picture.convert("RGB").convert("CMYK")
    picture.save(tmp_path / name)
    ours = resize_rgb(read_rgb(tmp_path / name), 32)
    np.testing.assert_array_equal(read(str(tmp_path / name), (32, 32)), ours)


def test_another_shape_than_the_model_was_made_for(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    assert read(str(tmp_path / "a.png"), (20, 30), True).shape == (20, 30, 3)
    assert read(str(tmp_path / "a.png"), (30, 30)).shape == (30, 30, 3)
    with pytest.raises(ValueError, match=r"a\.png: this model takes images of 30 x 30 pixels"):
        read(str(tmp_path / "a.png"), (30, 30), True)


def test_odd_tiffs(tmp_path: Path) -> None:
    for index, data in enumerate(
        [
            raw_tiff(np.array([0, 9000, 65535], np.uint16), photometric=0),
            raw_tiff(np.array([0, 200, 9000], np.int16)),
            raw_tiff(np.array([0, 257, 65535], np.uint16), end=">"),
        ]
    ):
        file = tmp_path / f"{index}.tif"
        file.write_bytes(data)
        ours = resize_rgb(read_rgb(file), 8)
        np.testing.assert_array_equal(read(str(file), (8, 8)), ours)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 1.5]], np.float32),
        np.array([[-9, 1]], np.float32),
        np.array([[np.nan]], np.float32),
        np.array([[0, 4095]], np.int32),
    ],
)
def test_it_refuses_what_we_refuse(tmp_path: Path, values: Any) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(values).save(file)
    with pytest.raises(ImageError):
        read_rgb(file)
    with pytest.raises(ValueError, match="holds"):
        read(str(file), (8, 8))


def test_it_refuses_several_images(tmp_path: Path) -> None:
    pages = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="holds 2 images"):
        read(str(tmp_path / "a.tif"), (8, 8))
