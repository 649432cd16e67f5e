"""Recall of centre and ring, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.outline import outline_recall, split_mask


def square(*boxes: tuple[int, int, int, int], size: int = 12) -> Any:
    """A mask with squares [top, left, bottom, right)."""
    mask = np.zeros((size, size), np.bool_)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def test_a_ring_is_what_an_erosion_takes_away() -> None:
    centre, ring = split_mask(square((2, 2, 8, 8)), 2)
    np.testing.assert_array_equal(centre, square((4, 4, 6, 6)))
    np.testing.assert_array_equal(ring, square((2, 2, 8, 8)) & ~centre)


def test_a_small_region_counts_for_the_ring_alone() -> None:
    centre, ring = split_mask(square((1, 1, 3, 3), (5, 5, 10, 10)), 1)
    np.testing.assert_array_equal(centre, square((6, 6, 9, 9)))
    assert ring[1:3, 1:3].all()


def test_a_defect_cut_by_the_border_has_no_edge_there() -> None:
    centre, _ = split_mask(square((0, 0, 5, 5)), 1)
    np.testing.assert_array_equal(centre, square((0, 0, 4, 4)))
    assert split_mask(np.ones((4, 4), np.bool_), 3)[0].all()


def test_an_empty_mask_has_neither() -> None:
    centre, ring = split_mask(square(), 2)
    assert not centre.any()
    assert not ring.any()


def test_a_map_of_the_edge_and_one_of_the_centre() -> None:
    mask = square((2, 2, 8, 8))
    centre, ring = split_mask(mask, 1)
    for shown, expected in ((ring, (0.0, 1.0)), (centre, (1.0, 0.0)), (mask, (1.0, 1.0))):
        found = outline_recall(shown[None].astype(np.float32), mask[None], width=1)
        assert found is not None
        assert (found.centre, found.ring) == expected
        assert (found.centre_pixels, found.ring_pixels) == (16, 20)
    assert found.whole == 1
    assert found.fpr == 0


def test_the_threshold_leaves_the_allowed_share_of_normal_pixels_above() -> None:
    # 100 normal pixels 0..99 and ten anomalous ones; at 5 % the threshold is 94
    map_ = np.arange(100, dtype=np.float32).reshape(10, 10)
    defect = np.full((10, 1), 94.0, np.float32)
    defect[0] = 94.5
    mask = np.zeros((10, 11), np.bool_)
    mask[:, 10] = True
    found = outline_recall([(np.hstack([map_, defect]), mask)], width=1, fpr=0.05)
    assert found is not None
    assert found.threshold == 94
    assert found.fpr == 0.05
    assert found.whole == 0.1
    assert found.centre is None  # a column has no inside


def test_ties_stay_below_so_the_rate_is_never_exceeded() -> None:
    map_, mask = np.ones((1, 12, 12), np.float32), square((2, 2, 8, 8))[None]
    found = outline_recall(map_, mask, width=1)
    assert found is not None
    assert (found.centre, found.ring, found.fpr) == (0, 0, 0)
    map_[0, 0, 0] = 2
    zero = outline_recall(map_, mask, width=1, fpr=0.0)
    assert zero is not None
    assert zero.threshold == 2


def test_only_a_ring_and_nothing_at_all() -> None:
    mask = square((2, 2, 4, 4))[None]
    found = outline_recall(mask.astype(np.float32), mask, width=3)
    assert found is not None
    assert found.centre is None
    assert found.ring == 1
    empty = square()[None]
    assert outline_recall(empty.astype(np.float32), empty) is None
    assert outline_recall((~empty).astype(np.float32), ~empty) is None


def test_normal_images_count_for_the_threshold() -> None:
    mask = square((2, 2, 8, 8))
    maps = np.stack([mask, np.ones_like(mask)]).astype(np.float32)
    found = outline_recall(maps, np.stack([mask, square()]), width=1)
    assert found is not None
    assert found.threshold == 1
    assert found.whole == 0


@pytest.mark.parametrize("wrong", [{"width": 0}, {"fpr": 1.0}, {"fpr": -0.1}])
def test_wrong_options_are_reported(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        outline_recall(np.zeros((1, 4, 4)), np.zeros((1, 4, 4), np.bool_), **wrong)


def test_masks_that_do_not_fit_are_reported() -> None:
    with pytest.raises(DataError):
        outline_recall(np.zeros((1, 4, 4)), np.zeros((1, 5, 4), np.bool_))
