"""How images are resized and cut: forms of the option, proportions, padding, tiles and seams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.sets import ImageItem, ImageSet, Site
from fedvad.data.view_choice import choose_size, sizes_of
from fedvad.data.views import View, is_plain, parse_size
from fedvad.errors import ConfigError

LARGE = np.random.default_rng(0).integers(0, 256, (100, 300, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (256, 256), ("256", 256), ("256x256", 256), ("256 x 512", "256x512"),
        ("FIT:256x512", "fit:256x512"), ("fit:256", "fit:256x256"), ("short:320", "short:320"),
        ("Auto", "auto"),
    ],
)  # fmt: skip
def test_one_parser_for_all_forms(given: int | str, plain: int | str) -> None:
    assert parse_size(given) == plain
    assert parse_size(plain) == plain


@pytest.mark.parametrize("given", ["", "wide", "256x", "1x2x3", "fit:", "short:9", 31, 2049, -1])
def test_what_is_no_size_is_refused(given: int | str) -> None:
    with pytest.raises(ConfigError, match=r"image.size"):
        parse_size(given)


@pytest.mark.parametrize(
    ("tile", "overlap"), [(500, 64), (32, 0), (4096, 64), (256, 160), (256, 40), (256, -32)]
)
def test_tiles_that_do_not_fit_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=r"multiple of 32"):
        parse_size(4000, tile, overlap)


def test_larger_images_only_in_tiles() -> None:
    assert parse_size("fit:4000x6000", 512) == "fit:4000x6000"
    with pytest.raises(ConfigError, match="--tiles"):
        parse_size("fit:4000x6000")


def test_only_plain_sizes_make_a_view() -> None:
    assert [is_plain(s) for s in (256, "256x512", "fit:9x9", "auto", "short:256")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="none of the forms"):
        View.of("auto")


def test_squashed_images_lose_their_proportions() -> None:
    assert View(64, 96).scaled(LARGE).shape == (64, 96, 3)


def test_fitted_images_keep_them_and_are_never_enlarged() -> None:
    view = View(64, 96, fit=True)
    assert view.shape(100, 300) == (32, 96)
    assert view.shape(300, 100) == (64, 21)
    assert view.shape(20, 40) == (20, 40)
    assert view.scaled(LARGE).shape == (32, 96, 3)


def test_padding_mirrors_the_image_and_has_no_cells() -> None:
    view = View(64, 96, fit=True)
    image = view.scaled(LARGE)
    tiling = view.tiling((32, 96), (8, 12))
    (whole,) = tiling.cut(image)
    assert whole.shape == (64, 96, 3)
    np.testing.assert_array_equal(whole[:32], image)
    np.testing.assert_array_equal(whole[32:], image[::-1])
    assert tiling.grid == (4, 12)


@pytest.mark.parametrize("length", [40, 64, 65, 100, 160, 161, 1000])
@pytest.mark.parametrize("overlap", [0, 32])
def test_tiles_cover_everything_and_share_their_overlap(length: int, overlap: int) -> None:
    view = View(1000, 1000, fit=True, tile=64, overlap=overlap)
    rows = view.tiling((length, 64), (16, 16)).rows
    assert rows.starts[0] == 0
    assert length <= rows.length < length + 64
    gaps = np.diff(rows.starts)
    assert (gaps > 0).all()
    assert (gaps <= 64 - overlap).all()
    assert all(start % 32 == 0 for start in rows.starts)
    assert rows.own == -(-(length - 2) // 4)  # cells of 4 pixels whose centre lies in the image
    total = np.zeros(rows.total)
    for number, weight in enumerate(rows.weights()):
        assert (weight > 0).all()
        total[rows.place(number)] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_tiles_are_cut_where_they_lie() -> None:
    view = View(100, 300, tile=64, overlap=0)
    tiling = view.tiling((100, 300), (16, 16))
    tiles = list(tiling.cut(LARGE))
    assert len(tiles) == len(tiling) == 2 * 5
    np.testing.assert_array_equal(tiles[1], LARGE[:64, 64:128])


def test_tiles_of_no_whole_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match="other --tiles"):
        View(100, 100, tile=64).tiling((100, 100), (9, 9))


def _site(folder: Path, name: str, *shapes: tuple[int, int]) -> Site:
    items = []
    for i, (height, width) in enumerate(shapes):
        path = folder / f"{name}{i}.png"
        Image.new("L", (width, height)).save(path)
        items.append(ImageItem(path, 0, "good"))
    return Site(name, ImageSet(tuple(items)), ImageSet(()))


@pytest.mark.parametrize(
    ("shape", "size", "tiled", "found"),
    [
        ((1024, 1024), "auto", False, 512),
        ((1080, 1300), "auto", False, 512),
        ((400, 400), "auto", False, 384),
        ((256, 256), "auto", False, 256),
        ((64, 64), "auto", False, 256),
        ((40, 90), "auto", False, 256),
        ((150, 750), "auto", False, "144x736"),
        ((1000, 4000), "auto", False, "256x1024"),
        ((1000, 4000), "auto", True, "fit:1000x4000"),
        ((1080, 1920), "short:512", False, "fit:512x910"),
        ((200, 300), "short:512", False, "fit:200x300"),
        ((1000, 4000), "96x64", False, "96x64"),
    ],
)
def test_the_size_follows_from_the_images(
    tmp_path: Path, shape: tuple[int, int], size: str, tiled: bool, found: int | str
) -> None:
    sizes = sizes_of([_site(tmp_path, "a", shape)])
    assert choose_size(size, sizes, tiled=tiled) == found


def test_sites_have_one_voice_each(tmp_path: Path) -> None:
    sites = [
        _site(tmp_path, "a", *[(64, 64)] * 9),
        _site(tmp_path, "b", (600, 620)),
        _site(tmp_path, "c", (700, 720), (900, 900)),
    ]
    sizes = sizes_of(sites)
    assert sizes is not None
    assert (sizes.height, sizes.width) == (600, 620)


def test_unlike_proportions_are_kept(tmp_path: Path) -> None:
    sizes = sizes_of([_site(tmp_path, "a", (300, 600), (300, 600), (300, 900))])
    assert choose_size("auto", sizes, tiled=False) == "fit:300x600"


def test_without_headers_the_usual_size() -> None:
    assert sizes_of([]) is None
    assert choose_size("auto", None, tiled=False) == 256
