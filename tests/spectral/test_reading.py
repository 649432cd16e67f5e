"""Cubes from every kind of file are the same cube, and what is unclear is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fedvad.data.cubes import reading
from fedvad.data.cubes.reading import read_scene, read_truth
from fedvad.errors import DataError

CUBE = np.random.default_rng(0).integers(0, 4000, (6, 7, 5)).astype(np.uint16)
MASK = np.zeros((6, 7), np.uint8)
MASK[2, 3] = 1


def _mat5(path: Path) -> None:
    savemat(path, {"data": CUBE, "map": MASK})


def _mat73(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        file["data"], file["map"] = CUBE.T, MASK.T
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def _npz(path: Path) -> None:
    np.savez(path, cube=CUBE, truth=MASK)


def _tiff(path: Path) -> None:
    first, *rest = (Image.fromarray(CUBE[:, :, band]) for band in range(5))
    first.save(path, save_all=True, append_images=rest)


def _folder(path: Path) -> None:
    path.mkdir()
    for band in range(5):
        Image.fromarray(CUBE[:, :, band]).save(path / f"light{band}.png")


def _envi(interleave: str, axes: tuple[int, int, int]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(
            "ENVI\ndescription = {lines = 3}\nsamples = 7\nlines = 6\nbands = 5\n"
            f"header offset = 3\ndata type = 12\ninterleave = {interleave}\nbyte order = 1\n"
            "wavelength = {400, 500,\n 600, 700, 800}\n"
        )
        values = CUBE.transpose(axes).astype(">u2").tobytes()
        path.with_suffix(".img").write_bytes(b"abc" + values)

    return write


@pytest.mark.parametrize(
    ("name", "write", "truth"),
    [
        ("a.mat", _mat5, True),
        ("b.mat", _mat73, True),
        ("c.npz", _npz, True),
        ("d.npy", lambda path: np.save(path, CUBE), False),
        ("e.tif", _tiff, False),
        ("f", _folder, False),
        ("g.hdr", _envi("bsq", (2, 0, 1)), False),
        ("h.hdr", _envi("bil", (0, 2, 1)), False),
        ("i.hdr", _envi("bip", (0, 1, 2)), False),
    ],
)
def test_a_cube_is_the_same_from_any_file(
    tmp_path: Path, name: str, write: Callable[[Path], Any], truth: bool
) -> None:
    write(tmp_path / name)
    scene = read_scene(tmp_path / name)
    assert scene.name == name[0]
    assert scene.cube.dtype == np.float32
    assert np.array_equal(scene.cube, CUBE)
    assert (scene.mask is not None) == truth
    if scene.mask is not None:
        assert np.array_equal(scene.mask, MASK == 1)
    if name.endswith("hdr"):
        assert scene.wavelengths is not None
        assert scene.wavelengths.tolist() == [400, 500, 600, 700, 800]


@pytest.mark.parametrize("name", ["SCAN.HDR", "scan.dat.hdr", "scan.HDR"])
def test_values_of_a_header_are_found_under_their_usual_names(tmp_path: Path, name: str) -> None:
    _envi("bip", (0, 1, 2))(tmp_path / "a.hdr")
    values = {"SCAN.HDR": "SCAN.IMG", "scan.dat.hdr": "scan.dat", "scan.HDR": "scan.raw"}[name]
    (tmp_path / "a.hdr").rename(tmp_path / name)
    (tmp_path / "a.img").rename(tmp_path / values)
    assert np.array_equal(read_scene(tmp_path / name).cube, CUBE)


@pytest.mark.parametrize("name", ["mask.png", "mask.mat", "mask.npy"])
def test_a_truth_of_its_own_takes_the_place_of_the_file_s(tmp_path: Path, name: str) -> None:
    other = np.roll(MASK, 1)
    file = tmp_path / name
    if name.endswith("png"):
        Image.fromarray(255 * other).save(file)
    elif name.endswith("mat"):
        savemat(file, {"mask": other})
    else:
        np.save(file, other)
    _mat5(tmp_path / "a.mat")
    scene = read_scene(tmp_path / "a.mat", mask=file)
    assert scene.mask is not None
    assert np.array_equal(scene.mask, other == 1)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": CUBE, "b": CUBE}, r"a \(6, 7, 5\), b \(6, 7, 5\) of three axes"),
        ({"map": MASK}, "no array of three axes"),
        ({"data": CUBE, "map": MASK, "classes": MASK}, "which is its mask"),
        ({"data": CUBE, "map": MASK.T}, "which is its mask"),
        ({"data": CUBE, "map": MASK * 3}, "map holds 0, 3, ...: a mask is 0 and 1"),
        ({"data": CUBE.astype(np.complex64)}, "holds complex64"),
        (
            {"data": np.where(MASK[:, :, None] * np.arange(5) == 1, np.nan, CUBE)},
            r"band \(2, 3, 1\)",
        ),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        read_scene(tmp_path / "a.npz")


def test_a_mask_of_another_scene_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CUBE)
    np.save(tmp_path / "mask.npy", MASK.T)
    with pytest.raises(DataError, match="would fit if transposed"):
        read_scene(tmp_path / "a.npy", mask=tmp_path / "mask.npy")
    np.savez(tmp_path / "two.npz", a=MASK, b=MASK)
    with pytest.raises(DataError, match="give one mask"):
        read_truth(tmp_path / "two.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("lines = 6", "lines = 600"), "is shorter than a.hdr says"),
        (("lines = 6", "lines = 6000000000"), "over the limit"),
        (("lines = 6\n", ""), "'lines' is no whole number"),
        (("data type = 12", "data type = 6"), "data type 6"),
        (("500", "green"), "wavelengths are not numbers"),
        (("800", "800, 900"), "6 wavelengths for 5 bands"),
        (("ENVI", ""), "does not begin with ENVI"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    header = tmp_path / "a.hdr"
    _envi("bsq", (2, 0, 1))(header)
    text = header.read_text()
    # the description has a "lines" of its own, which must not count
    header.write_text(text[:30] + text[30:].replace(*change) if change[0] != "ENVI" else text[4:])
    with pytest.raises(DataError, match=words):
        read_scene(header)


def test_damaged_files_and_missing_readers_are_data_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mat", "a.npy", "a.npz", "a.tif", "a.jpg"):
        (tmp_path / name).write_bytes(b"MATLAB 5.0 MAT-file" * 30)
        with pytest.raises(DataError, match=name):
            read_scene(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        read_scene(tmp_path / "empty")
    (tmp_path / "b.mat").write_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install 'fedvad\[hyperspectral\]'"):
        read_scene(tmp_path / "b.mat")
    monkeypatch.setattr(reading, "MAX_VALUES", 100)
    np.save(tmp_path / "c.npy", CUBE)
    with pytest.raises(DataError, match="has 210 values, over the limit of 100"):
        read_scene(tmp_path / "c.npy")
