"""Leak measurements: certain where rows are patches, at chance where they tell nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fedvad.errors import DataError
from fedvad.evaluation.leaks import invert, look, membership, retrieve

Images = npt.NDArray[np.float16]


@pytest.fixture(scope="module")
def images() -> Images:
    return np.random.default_rng(0).normal(size=(40, 4, 4, 16)).astype(np.float16)


def test_copied_patches_give_their_images_away(images: Images) -> None:
    rows = images[:20].reshape(-1, 16)[::5].astype(np.float32)
    inside, outside = look(images[:20], rows), look(images[20:], rows)
    assert membership(inside, outside, seed=0).auc == 1.0
    found = retrieve(inside, outside, rows)
    assert (found.found, found.copies, found.chance) == (1.0, 1.0, 0.5)
    flat = images[:20].reshape(20, -1, 16).astype(np.float32)
    assert np.array_equal(flat[inside.image, inside.patch], rows)


def test_rows_that_nobody_had_a_part_in_tell_nothing(images: Images) -> None:
    rows = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    inside, outside = look(images[:20], rows, rows[::-1]), look(images[20:], rows, rows[::-1])
    reported = membership(inside, outside, seed=0)
    assert 0.3 < reported.auc < 0.7
    assert any(name.endswith("relative") for name in reported.each)
    found = retrieve(inside, outside, rows)
    assert 0.2 < found.found < 0.8
    assert found.copies == 0


def test_choosing_the_statistic_does_not_flatter_the_attacker() -> None:
    """Over many draws without any membership the mean is chance, though the best is chosen."""
    rng = np.random.default_rng(5)
    aucs = []
    for seed in range(30):
        rows = rng.normal(size=(16, 4)).astype(np.float32)
        drawn = rng.normal(size=(24, 2, 2, 4)).astype(np.float16)
        reported = membership(look(drawn[:12], rows), look(drawn[12:], rows), seed=seed)
        aucs.append(reported.auc)
    assert abs(np.mean(aucs) - 0.5) < 0.06


def test_too_few_images_are_refused(images: Images) -> None:
    rows = images[0].reshape(-1, 16).astype(np.float32)
    few = look(images[:3], rows)
    with pytest.raises(DataError, match="at least four"):
        membership(few, few, seed=0)
    with pytest.raises(DataError, match="no image"):
        look([], rows)


def test_a_decoder_restores_what_descriptors_hold_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (3000, 4, 4, 3), dtype=np.uint8)
    features = pixels.reshape(3000, -1)[:, :24].astype(np.float32)  # half of the pixels
    known = features[:2500], pixels[:2500]
    own, behind = features[2500:], pixels[2500:]
    noise = rng.normal(features.mean(), features.std(), own.shape).astype(np.float32)
    good = invert(known, own, own, behind, seed=0, pictures=3)
    assert 0.35 < good.explained < 0.55
    assert good.explained == good.ceiling
    assert good.restored.shape == good.originals.shape == (3, 4, 4, 3)
    assert invert(known, noise, own, behind, seed=0).explained < 0.05
    assert invert(known, own, own, behind, seed=0).explained == good.explained  # seeded
