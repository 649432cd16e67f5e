"""Trivial statistics of images, and the sets that they confound."""

from __future__ import annotations

import numpy as np
import pytest

from fedvad.evaluation.trivial import STATISTICS, trivial_aurocs, trivial_statistics


def test_each_statistic_by_hand() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = [30, 60, 90]  # grey 60 beside black
    np.testing.assert_allclose(trivial_statistics(image), [30, 30, 30, 30])
    np.testing.assert_allclose(trivial_statistics(image[:1, :1]), 0)


def test_chance_is_no_confounder_and_opposite_sites_are() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    by_chance = {name: (rng.normal(size=(60, 4)), labels) for name in "ab"}
    assert trivial_aurocs(by_chance)["confounded"] == []
    # brighter defects at one site and darker ones at the other: 0.5 in the mean, and no chance
    signs = {"a": 1.0, "b": -1.0}
    opposite = {
        name: (rng.normal(size=(60, 4)) + sign * np.outer(labels, [2, 0, 0, 0]), labels)
        for name, sign in signs.items()
    }
    found = trivial_aurocs(opposite)
    assert found["confounded"] == ["brightness"]
    assert found["statistics"]["brightness"]["mean"] == pytest.approx(0.5, abs=0.1)


def test_a_few_images_prove_nothing() -> None:
    values = np.zeros((4, 4))
    values[2:] = 1  # a perfect order, which chance gives once in three
    found = trivial_aurocs({"a": (values, np.arange(4) >= 2), "b": (values, np.zeros(4, bool))})
    assert found["confounded"] == []
    assert found["statistics"]["colour"] == {"mean": 1.0, "sites": {"a": 1.0}}
    assert list(found["statistics"]) == list(STATISTICS)
