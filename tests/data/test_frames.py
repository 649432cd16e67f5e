"""Pages, frames and slices: each an image of its own, none lost, none counted twice."""

from __future__ import annotations

import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from fedvad.data.folders import read_set
from fedvad.data.frames import frame_path, frames_of, split_frame, stem_of
from fedvad.data.images import decode_rgb, read_bytes, read_mask, read_rgb
from fedvad.data.inputs import read_images
from fedvad.errors import ImageError
from fedvad.features import extractor as extractor_module
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def several(path: Path, colours: list[tuple[int, int, int]] = COLOURS, **options: object) -> Path:
    pictures = [Image.new("RGB", (32, 24), colour) for colour in colours]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {}),
        ("a.TIFF", {"compression": "tiff_lzw"}),
        ("big.tif", {"big_tiff": True}),
        ("a.gif", {}),
        ("a.webp", {"lossless": True}),
        ("a.apng", {"format": "PNG"}),
        ("a.avif", {"quality": 95}),
    ],
)
def test_each_image_of_a_file_is_read_by_its_number(tmp_path: Path, name, options) -> None:
    file = several(tmp_path / name, **options)
    names = frames_of(file)
    assert [n.name for n in names] == [f"{name}#1", f"{name}#2", f"{name}#3"]
    for path, colour in zip(names, COLOURS, strict=True):
        seen = read_rgb(path)
        assert seen.shape == (24, 32, 3)
        assert np.abs(seen.astype(int) - colour).max() < 12


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png", "a.avif"])
def test_a_file_of_several_is_never_read_as_its_first(tmp_path: Path, name) -> None:
    file = several(tmp_path / name)
    for read in (lambda: read_rgb(file), lambda: read_mask(file)):
        with pytest.raises(ImageError, match=r"holds 3 images .* split the file"):
            read()
    with pytest.raises(ImageError, match="no image 4"):
        read_rgb(frame_path(file, 4))


def test_a_file_of_one_has_its_bare_name_and_a_first_image(tmp_path: Path) -> None:
    for name in ("a.tif", "a.gif", "a.webp", "a.avif"):
        file = several(tmp_path / name, COLOURS[:1])
        assert frames_of(file) == [file]
        assert (read_rgb(frame_path(file, 1)) == read_rgb(file)).all()


def test_names_are_taken_apart_by_the_name_alone() -> None:
    assert split_frame(Path("d/a.tif#12")) == (Path("d/a.tif"), 12)
    for whole in ("a.tif", "board#2.png", "a.tif#0", "a.tif#x", "d#2/a.tif"):
        assert split_frame(Path(whole)) == (Path(whole), None)
    assert stem_of(Path("a.nii.gz#3")) == "a#3"
    assert stem_of(Path("board#2.png"), "_mask") == "board#2_mask"


def tags(**values: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    made = TiffImagePlugin.ImageFileDirectory_v2()
    for key, value in values.items():
        made[int(key[1:])] = value
    return made


def tiff(path: Path, *pages: tuple[int, dict[str, int]]) -> Path:
    """A TIFF of grey pages with these values and extra tags."""
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as out:
        for value, extra in pages:
            Image.new("L", (16, 12), value).save(out, "TIFF", tiffinfo=tags(**extra))
            out.newFrame()
    return path


def test_reduced_copies_and_masks_of_a_tiff_do_not_count(tmp_path: Path) -> None:
    file = tiff(tmp_path / "a.tif", (10, {}), (20, {"t254": 1}), (30, {"t254": 4}), (40, {}))
    assert [p.name for p in frames_of(file)] == ["a.tif#1", "a.tif#2"]
    assert read_rgb(frame_path(file, 2)).max() == 40
    one = tiff(tmp_path / "b.tif", (50, {"t254": 1}), (60, {}))
    assert frames_of(one) == [one]
    assert read_rgb(one).max() == 60


def test_a_stack_of_which_one_page_is_listed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "stack.tif"
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270] = "ImageJ=1.53t\nimages=40\nslices=40\n"
    Image.new("L", (16, 12)).save(file, tiffinfo=info)
    assert frames_of(file) == [file]
    with pytest.raises(ImageError, match="lists only a part"):
        read_rgb(file)


def test_chains_that_never_end_do(tmp_path: Path) -> None:
    loop = b"II*\0" + struct.pack("<IHI", 8, 0, 8)
    (tmp_path / "loop.tif").write_bytes(loop)
    assert frames_of(tmp_path / "loop.tif") == [tmp_path / "loop.tif"]
    many = bytearray(b"II*\0" + struct.pack("<I", 8))
    for _ in range(20_000):
        many += struct.pack("<HI", 0, len(many) + 6)
    with pytest.raises(ImageError, match="too many pages"):
        decode_rgb(bytes(many), "x")
    with pytest.raises(ImageError, match="entries"):
        decode_rgb(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60), "x")


def test_an_animation_costs_no_more_than_the_largest_image(tmp_path: Path) -> None:
    data = several(tmp_path / "a.gif", COLOURS * 7).read_bytes()
    assert decode_rgb(data, "x", frame=16, max_pixels=32 * 24).shape == (24, 32, 3)
    with pytest.raises(ImageError, match="needs 16 earlier frames"):
        decode_rgb(data, "x", frame=17, max_pixels=32 * 24)


def test_a_later_frame_of_a_gif_cannot_be_larger_than_the_picture(tmp_path: Path) -> None:
    data = bytearray(several(tmp_path / "a.gif").read_bytes())
    second = data.index(b",", data.index(b",") + 10)
    data[second + 5 : second + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError):
        decode_rgb(bytes(data), "x", frame=2)


def test_odd_files_are_one_image_of_which_reading_tells_the_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "cut.tif").write_bytes(several(tmp_path / "a.tif").read_bytes()[:2500])
    (tmp_path / "text.gif").write_text("no picture")
    for name in ("pipe.tif", "cut.tif", "text.gif", "missing.tif"):
        assert frames_of(tmp_path / name) == [tmp_path / name]
        with pytest.raises(ImageError, match=name):
            read_rgb(tmp_path / name)


def test_folders_list_every_image_of_every_file(tmp_path: Path) -> None:
    good, hole = tmp_path / "train/good", tmp_path / "test/hole"
    masks = tmp_path / "ground_truth/hole"
    for folder in (good, hole, masks):
        folder.mkdir(parents=True)
    several(good / "a.tif")
    Image.new("L", (8, 8)).save(good / "b.jfif", "JPEG")
    several(hole / "x.tif")
    several(masks / "x_mask.tif")
    site = read_set(tmp_path)
    assert [p.name for p in site.train.paths] == ["a.tif#1", "a.tif#2", "a.tif#3", "b.jfif"]
    assert [i.mask and i.mask.name for i in site.test] == [f"x_mask.tif#{n}" for n in (1, 2, 3)]
    assert read_images([good / "a.tif#2", good / "b.jfif"]) == [good / "a.tif#2", good / "b.jfif"]
    assert [p.name for p in read_images([good / "a.tif"])] == ["a.tif#1", "a.tif#2", "a.tif#3"]


def test_images_of_one_file_have_features_of_their_own(tmp_path: Path, cache_root: Path) -> None:
    file = several(tmp_path / "a.gif")
    config = FeatureConfig(backbone="filterbank", image_size=64, engine="torch")
    extractor = FeatureExtractor(config, DescriptorCache(cache_root))
    first = [e.descriptors for e in extractor.stream(frames_of(file))]
    again = [e.descriptors for e in extractor.stream(frames_of(file))]
    assert extractor.computed == 3
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(first[0].astype(float) - first[1]).max() > 0.01
    (bare,) = extractor.stream([file])
    assert bare.descriptors is None
    assert "holds 3 images" in str(bare.error)


def test_a_file_of_many_images_is_read_once(
    tmp_path: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        extractor_module, "read_bytes", lambda path: read.append(path.name) or read_bytes(path)
    )
    files = [
        several(tmp_path / f"{blue}.tif", [(i, 2 * i, blue) for i in range(70)])
        for blue in (40, 80)  # of more pages than are read at a time
    ]
    pages = [page for file in files for page in frames_of(file)]
    config = FeatureConfig(backbone="filterbank", image_size=32, engine="torch")
    for computed in (140, 0):  # a first pass, and one that finds everything in the cache
        extractor = FeatureExtractor(config, DescriptorCache(cache_root))
        found = [item.descriptors for item in extractor.stream(pages)]
        assert all(one is not None for one in found)
        assert extractor.computed == computed
        # threads may meet at the border of two files
        assert len(read) <= 6
        read.clear()


def test_a_large_image_is_read_where_the_limit_is_raised(tmp_path: Path, cache_root: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (100, 100)).save(path)
    cache = DescriptorCache(cache_root)
    for limit, wanted in ((9_999, False), (10_000, True), (9_999, False)):
        config = FeatureConfig(
            backbone="filterbank", image_size=64, engine="torch", max_pixels=limit
        )
        (found,) = FeatureExtractor(config, cache).stream([path])
        assert (found.descriptors is not None) == wanted


def test_a_mask_of_several_pages_is_read_by_number(tmp_path: Path) -> None:
    file = several(tmp_path / "m.tif", [(0, 0, 0), (9, 0, 0)])
    assert [bool(read_mask(p).any()) for p in frames_of(file)] == [False, True]


def test_bytes_of_a_stack_are_refused_too() -> None:
    buffer = BytesIO()
    pages = [Image.new("L", (8, 8), v) for v in (1, 2)]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="upload: holds 2 images"):
        decode_rgb(buffer.getvalue(), "upload")
    assert decode_rgb(buffer.getvalue(), "upload", frame=2).max() == 2
