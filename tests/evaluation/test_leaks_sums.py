"""Tracing an image from sums: found among few, lost among many and under noise."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from fedvad.errors import DataError
from fedvad.evaluation.metrics import image_auroc

# a script's folder is no package
_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "leaks_sums.py"
sums_statistics = run_path(str(_SCRIPT))["sums_statistics"]


def _auc(images: int, noise: float, seed: int = 0) -> float:
    """Of the likelihood ratio, for terms of 40 values among so many."""
    rng = np.random.default_rng(seed)
    inside, outside, reference = (
        rng.normal(3.0, np.linspace(0.1, 2, 40), (n, 40)) for n in (images, 200, 300)
    )
    total = inside.sum(0) + rng.normal(0, noise, 40)
    asked = np.concatenate([inside[:200], outside])
    found = sums_statistics(asked, total, images, reference, np.full(40, noise))
    labels = np.repeat([1, 0], [len(asked) - 200, 200])
    return image_auroc(found["likelihood ratio"], labels) or 0.0


def test_the_fewer_the_images_the_clearer_the_trace() -> None:
    found = [np.mean([_auc(n, 0.0, seed) for seed in range(5)]) for n in (20, 200, 2000)]
    assert found[0] > 0.75 > found[1] > 0.57 > found[2] > 0.5


def test_noise_hides_what_took_part() -> None:
    assert np.mean([_auc(20, 60.0, seed) for seed in range(20)]) == pytest.approx(0.5, abs=0.05)


def test_it_is_as_good_as_the_theory_for_equal_directions() -> None:
    """The statistic of a member is p / n higher, against a deviation of sqrt(p / n): d' of
    sqrt(p / n), so an AUC of Phi(sqrt(p / 2 n))."""
    from scipy.stats import norm

    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        inside, outside, reference = (rng.normal(size=(n, 50)) for n in (200, 200, 1000))
        scores = sums_statistics(
            np.concatenate([inside, outside]), inside.sum(0), 200, reference, np.zeros(50)
        )
        labels = np.repeat([1, 0], 200)
        found.append(image_auroc(scores["likelihood ratio"], labels) or 0.0)
    assert np.mean(found) == pytest.approx(norm.cdf((50 / 400) ** 0.5), abs=0.02)


def test_without_a_reference_there_is_no_attack() -> None:
    with pytest.raises(DataError, match="at least two"):
        sums_statistics(np.ones((1, 2)), np.ones(2), 3, np.ones((1, 2)), np.zeros(2))
