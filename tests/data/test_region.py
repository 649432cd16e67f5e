"""Where to look: rectangles and masks, as cells of any grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.region import Region, is_shape, parse_region
from fedvad.errors import ConfigError


def test_a_rectangle_in_percent() -> None:
    cells = Region.of("50,0,100%,25").cells((8, 4))
    expected = np.zeros((8, 4), bool)
    expected[:2, 2:] = True
    np.testing.assert_array_equal(cells, expected)


def test_a_polygon_in_percent() -> None:
    cells = Region.of("0,0,100,0,0,100").cells((8, 8))
    np.testing.assert_array_equal(cells, np.add.outer(np.arange(8), np.arange(8)) <= 7)


def test_a_mask_covers_cells_of_which_it_marks_half(tmp_path: Path) -> None:
    mask = np.zeros((40, 80), np.uint8)
    mask[:, :26] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    cells = Region.of(parse_region(str(tmp_path / "m.png"))).cells((4, 8))
    np.testing.assert_array_equal(cells, np.tile(np.arange(8) < 3, (4, 1)))


def test_a_region_smaller_than_a_cell_has_one() -> None:
    assert Region.of("10,10,12,12").cells((4, 4)).sum() == 1


def test_cells_outside_become_nan() -> None:
    found = Region.of("0,0,50,100").within(np.ones((4, 4, 3), np.float16))
    assert np.isnan(found[:, 2:]).all()
    assert (found[:, :2] == 1).all()


@pytest.mark.parametrize(
    "text", ["90,0,10,100", "0,0,0,5", "0,0,101,5", "nan,0,1,1", "1,1,2,2,3", "0,0,9,9,9,101"]
)
def test_an_impossible_rectangle_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="in percent"):
        is_shape(text)


def test_masks_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"region: .*none\.png"):
        parse_region(str(tmp_path / "none.png"))
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    with pytest.raises(ConfigError, match="black everywhere"):
        parse_region(str(tmp_path / "black.png"))
    Image.new("L", (9, 9), 255).save(tmp_path / "white.png")  # a photograph has no black pixel
    with pytest.raises(ConfigError, match=r"so it is the whole image .* paint black"):
        parse_region(str(tmp_path / "white.png"))
