"""Arrays, tensors and PIL images become the pixels that the same picture's file gives."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedvad.data.arrays import as_path, is_image, to_rgb
from fedvad.data.images import decode_rgb, read_rgb
from fedvad.errors import DataError, ImageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "CMYK", "I;16", "F", "I"])
def test_a_pil_image_gives_what_its_file_gives(mode) -> None:
    if mode in ("F", "I"):
        picture = Image.fromarray(RGB[:, :, 0].astype(np.float32 if mode == "F" else np.int32))
    elif mode == "I;16":
        picture = Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 199)
    else:
        picture = Image.fromarray(np.dstack([RGB, RGB[:, :, 0]])).convert(mode)
    buffer = BytesIO()
    picture.save(buffer, "TIFF")
    assert (to_rgb(picture) == decode_rgb(buffer.getvalue(), "x")).all()


def test_a_pil_image_is_turned_by_its_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        assert (to_rgb(picture) == read_rgb(tmp_path / "a.png")).all()
        assert to_rgb(picture).shape == (9, 6, 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[True, False]]), [255, 0]),
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 128, 255]], np.int64), [0, 128, 255]),
        (np.array([[0, 0.5, 1]]), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float16), [0, 128, 255]),
        (np.array([[0, 128, 255]], ">f4"), [0, 128, 255]),
    ],
)
def test_grey_of_any_type(array, expected) -> None:
    for shape in (array, array[:, :, None]):
        seen = to_rgb(shape)
        assert seen.dtype == np.uint8
        assert seen.tolist() == [[[v] * 3 for v in expected]]


def test_alpha_is_composited_over_white() -> None:
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 1, 3] = 51
    assert to_rgb(rgba)[0, :, 0].tolist() == [255, 204]
    assert to_rgb(rgba / 255)[0, :, 0].tolist() == [255, 204]


def test_tensors_take_channels_first_or_last() -> None:
    assert (to_rgb(torch.from_numpy(RGB)) == RGB).all()
    assert (to_rgb(torch.from_numpy(RGB).permute(2, 0, 1)) == RGB).all()
    assert (to_rgb(torch.from_numpy(RGB)[:, :, 0]) == RGB[:, :, :1]).all()
    square = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)  # both ends: torch's order
    assert (to_rgb(square) == square.numpy().transpose(1, 2, 0)).all()
    for odd in (torch.zeros(4, 4).to_sparse(), torch.zeros(4, 4, device="meta")):
        with pytest.raises(DataError, match="NumPy cannot take"):
            to_rgb(odd)
    half = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    assert to_rgb(half)[0, :, 0].tolist() == [0, 128, 255]


def test_a_range_that_cannot_be_known_is_an_error_of_that_image() -> None:
    for array in (np.array([[0, 3.0]]), np.array([[-5.0, 1]]), np.full((2, 2), np.nan)):
        with pytest.raises(ImageError, match=r"^y: holds"):
            to_rgb(array, "y")
    with pytest.raises(ImageError, match="over the limit of 53"):
        to_rgb(RGB, max_pixels=53)
    with pytest.raises(DataError, match="is of type list"):
        to_rgb([[1, 2], [3, 4]])


def test_what_is_one_image() -> None:
    one = (
        "a.png",
        Path("a"),
        b"x",
        bytearray(b"x"),
        RGB,
        torch.zeros(2, 2),
        Image.new("L", (1, 1)),
    )
    assert all(is_image(value) for value in one)
    assert not any(is_image(value) for value in ([RGB], iter([]), None, 3))


def test_what_is_no_image_is_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x: is an empty path"):
        as_path("", "x")  # never the folder one is in
    (tmp_path / "a").write_bytes(b"1\n2\n")
    with (tmp_path / "a").open("rb") as file:
        assert is_image(file)
        with pytest.raises(DataError, match="is of type BufferedReader"):
            as_path(file, "x")
    with pytest.raises(DataError, match="is a masked array: give array"):
        to_rgb(np.ma.array(RGB, mask=RGB > 9))  # what is masked would count as seen
    assert (to_rgb(np.matrix(RGB[:, :, 0])) == to_rgb(RGB[:, :, 0])).all()


def test_a_picture_goes_where_a_path_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = as_path(RGB[:, :, ::-1], "images[0]")
    assert (read_rgb(picture) == RGB[:, :, ::-1]).all()
    assert (str(picture), picture.stem) == ("images[0]", "images[0]")
    with pytest.raises(ImageError, match="images\\[1\\]: is empty"):
        read_rgb(as_path(b"", "images[1]"))
    with pytest.raises(ImageError, match="over the limit"):
        read_rgb(picture, max_pixels=2)
    assert as_path("a.png", "x") == Path("a.png")
