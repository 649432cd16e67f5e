"""Pixel figures equal scikit-learn's on the flattened maps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from fedvad.errors import DataError
from fedvad.evaluation.pixels import pixel_figures


def test_equal_to_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((3, 20, 20)) < 0.1
    maps = (rng.normal(size=masks.shape) + 1.5 * masks).round(1).astype(np.float32)  # with ties
    found = pixel_figures(maps, masks)
    assert found is not None
    assert found.average_precision == pytest.approx(
        average_precision_score(masks.ravel(), maps.ravel())
    )
    best = max(f1_score(masks.ravel(), maps.ravel() >= t) for t in np.unique(maps))
    assert found.oracle_f1 == pytest.approx(best)


def test_pairs_of_several_sizes_are_one_set() -> None:
    maps = [np.array([[0.9, 0.1]], np.float32), np.array([[0.5], [0.7], [0.2]], np.float32)]
    masks = [np.array([[True, False]]), np.array([[False], [True], [False]])]
    found = pixel_figures(zip(maps, masks, strict=True))
    assert found is not None
    assert (found.average_precision, found.oracle_f1) == (1.0, 1.0)


def test_one_class_has_no_figures_and_bad_values_are_refused() -> None:
    assert pixel_figures(np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool)) is None
    with pytest.raises(DataError):
        pixel_figures(np.full((1, 2, 2), np.nan), np.eye(2, dtype=bool)[None])
