"""Regions of masks: boxes, areas, and outlines that enclose exactly their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, label

from fedvad.errors import DataError
from fedvad.evaluation.regions import regions


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


@pytest.mark.parametrize("seed", range(5))
def test_every_outline_encloses_its_region(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((23, 31)) < 0.55
    map_ = rng.random((23, 31), dtype=np.float32)
    labels, count = label(mask)
    found = regions(mask, map_)
    assert len(found) == count > 5
    for number, region in enumerate(found, start=1):
        part = labels == number
        assert region.area == part.sum()
        assert region.highest == map_[part].max()
        # clockwise, with the holes filled (what touches at a corner only is outside)
        assert _area(region.polygon) == binary_fill_holes(part, np.ones((3, 3))).sum() or (
            _area(region.polygon) >= region.area
        )
        left, top, width, height = region.box
        assert region.polygon.min(axis=0).tolist() == [left, top]
        assert region.polygon.max(axis=0).tolist() == [left + width, top + height]


def test_a_ring_and_a_pixel_at_its_corner() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:4, 1:4] = True
    mask[2, 2] = False
    mask[4, 4] = True
    ring, lone = regions(mask, np.ones((6, 6), np.float32))
    assert (ring.box, ring.area, _area(ring.polygon)) == ((1, 1, 3, 3), 8, 9)
    assert lone.polygon.tolist() == [[4, 4], [5, 4], [5, 5], [4, 5]]
    assert regions(np.zeros((3, 3), bool), np.ones((3, 3), np.float32)) == []


def test_arrays_must_fit() -> None:
    with pytest.raises(DataError, match="does not fit"):
        regions(np.zeros((3, 3), bool), np.ones((3, 4), np.float32))
