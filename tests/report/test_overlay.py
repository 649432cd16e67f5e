from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fedvad.errors import ConfigError, DataError, StorageError
from fedvad.report.overlay import (
    LINE,
    draw_outline,
    heatmap_overlay,
    map_range,
    middle,
    outline,
    own_range,
    save_png,
)


def photograph(height: int = 24, width: int = 36) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_below_low_the_photograph_is_untouched():
    image, map_ = photograph(), np.full((4, 6), 0.9, np.float32)
    map_[0, 0] = 5.0
    shown = heatmap_overlay(image, map_, low=1.0, high=2.0)
    assert shown.dtype == np.uint8
    assert shown.shape == image.shape
    np.testing.assert_array_equal(shown[12:, 18:], image[12:, 18:])
    assert (shown[:3, :3] != image[:3, :3]).any()


def test_opacity_rises_to_strength_and_stays():
    # Opacity, computed from how much of the difference between black and white is left.
    map_ = np.linspace(0, 3, 40, dtype=np.float32)[None]
    black, white = np.zeros((1, 40, 3), np.uint8), np.full((1, 40, 3), 255, np.uint8)
    shown = [
        heatmap_overlay(i, map_, low=1.0, high=2.0, strength=0.6).astype(int)
        for i in (black, white)
    ]
    opacity = 1 - (shown[1] - shown[0])[0, :, 0] / 255
    assert (np.diff(opacity) >= -0.01).all()
    assert (opacity[map_[0] <= 1] == 0).all()
    np.testing.assert_allclose(opacity[map_[0] >= 2], 0.6, atol=0.005)
    np.testing.assert_allclose(opacity, 0.6 * np.clip(map_[0] - 1, 0, 1), atol=0.005)


def test_map_is_enlarged_bilinearly():
    grey = np.full((1, 8, 3), 100, np.uint8)
    shown = heatmap_overlay(grey, np.array([[0, 1]], np.float32), low=0, high=1, strength=1)
    assert len(np.unique(shown[0], axis=0)) == 6  # two flat ends, four steps between


@pytest.mark.parametrize("value", [-2.0, 0.0, 1e-9, 3.0])
def test_constant_map(value):
    image, map_ = photograph(), np.full((3, 3), value, np.float32)
    np.testing.assert_array_equal(heatmap_overlay(image, map_, low=value, high=value), image)
    low, high = map_range([map_])
    assert low < high
    np.testing.assert_array_equal(heatmap_overlay(image, map_, low=low, high=high), image)


def test_a_strong_defect_is_hugged_and_a_second_one_still_shows():
    y, x = np.mgrid[:32, :32]
    halo = 4 * np.exp(-((x - 16) ** 2 + (y - 16) ** 2) / (2 * 4.0**2)).astype(np.float32)
    halo[2, 2] = 4 / 3  # a second defect, of a third of the height
    grey = np.full((32, 32, 3), 128, np.uint8)

    def lit(low: float, high: float) -> np.ndarray:
        shown = heatmap_overlay(grey, halo, low=low, high=high).astype(int)
        return np.abs(shown - 128).max(2)

    whole, own = lit(0.2, 1.0), lit(*own_range(halo, 0.2, 1.0))
    assert (own > 40).sum() < 0.5 * (whole > 40).sum()
    assert own[16, 16] == whole[16, 16]
    assert own[2, 2] > 8
    assert own_range(halo, 0.2, float(halo.max())) == (0.2, float(halo.max()))


def test_overlay_refuses_what_it_cannot_draw():
    image, map_ = photograph(), np.ones((2, 2), np.float32)
    with pytest.raises(ConfigError, match="range"):
        heatmap_overlay(image, map_, low=2, high=1)
    with pytest.raises(ConfigError, match="range"):
        heatmap_overlay(image, map_, low=0, high=np.inf)
    with pytest.raises(ConfigError, match="strength"):
        heatmap_overlay(image, map_, low=0, high=1, strength=1.5)
    with pytest.raises(DataError, match="uint8"):
        heatmap_overlay(image.astype(np.float32), map_, low=0, high=1)
    with pytest.raises(DataError, match="shape"):
        heatmap_overlay(image, map_[None], low=0, high=1)
    with pytest.raises(DataError, match="NaN"):
        heatmap_overlay(image, map_ * np.nan, low=0, high=1)


def test_range_follows_normal_maps():
    maps = np.random.default_rng(1).normal(5, 1, (30, 16, 16))
    low, high = map_range(maps)
    top = np.quantile(maps, 0.999)
    assert np.median(maps) < low < top < high
    assert (top - low) / (high - low) == pytest.approx(0.5)  # documented: half strength
    moved = map_range(list(3 * maps - 40))
    np.testing.assert_allclose(moved, (3 * low - 40, 3 * high - 40))
    with pytest.raises(DataError, match="at least one"):
        map_range([])
    with pytest.raises(DataError, match="NaN"):
        map_range([np.array([[np.nan]])])


def test_a_drawn_outline_keeps_clear_of_the_mask():
    image, mask = photograph(), np.zeros((24, 36), bool)
    mask[8:14, 10:20] = True
    drawn = draw_outline(image, mask)
    np.testing.assert_array_equal(drawn[7:15, 9:21][mask[7:15, 9:21]], image[mask])
    assert (drawn[6, 12] == LINE).all()  # two pixels away
    assert (drawn[5, 12] != image[5, 12]).any()  # the rim
    np.testing.assert_array_equal(drawn[:4], image[:4])
    assert draw_outline(image, ~mask & mask) is image


def test_outline_by_hand():
    mask = np.array(
        [
            [0, 0, 0, 0, 0, 1],
            [0, 1, 1, 1, 0, 1],
            [0, 1, 1, 1, 0, 1],
            [0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 1, 0],
        ],
        dtype=bool,
    )
    expected = mask.copy()
    expected[2, 2] = False
    np.testing.assert_array_equal(outline(mask), expected)
    full = outline(np.ones((4, 5), bool))  # closed along the image's edge
    assert full.sum() == 14
    assert not full[1:-1, 1:-1].any()
    assert not outline(np.zeros((3, 3), bool)).any()
    with pytest.raises(DataError, match="bool"):
        outline(np.zeros((3, 3)))


def test_save_png(tmp_path):
    path = tmp_path / "new" / "a.png"
    save_png(path, photograph())
    save_png(path, photograph()[:5])
    np.testing.assert_array_equal(np.asarray(Image.open(path)), photograph()[:5])
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with pytest.raises(DataError, match="uint8"):
        save_png(path, np.zeros((3, 3)))


def test_save_png_tells_when_the_disk_refuses(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(StorageError, match="cannot write"):
            save_png(path, photograph())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.png"]


def test_cells_outside_the_region_of_interest_say_nothing_about_the_range() -> None:
    scored = np.linspace(1, 2, 64, dtype=np.float32).reshape(8, 8)
    masked = np.zeros((32, 32), np.float32)
    masked[:8, :8] = scored
    assert middle(masked) == middle(scored) == 1.5
    assert map_range([masked]) == map_range([scored])
    assert middle(np.zeros((2, 2), np.float32)) == 0
