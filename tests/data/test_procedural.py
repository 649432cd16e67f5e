"""Procedural images: the same bytes for the same numbers, and a wide variety of them."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from fedvad.drawing.fields import FIELDS, labels, noise
from fedvad.drawing.procedural import KINDS, draw_image
from fedvad.errors import ConfigError


@pytest.fixture(scope="module")
def drawn() -> npt.NDArray[np.uint8]:
    return np.stack([draw_image(0, i, 96) for i in range(160)])


def _slope(grey: npt.NDArray[np.float64]) -> float:
    """Fall of log amplitude over log frequency between 3 and 30 cycles per image."""
    n = len(grey)
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * np.outer(np.hanning(n), np.hanning(n)))) ** 2
    radius = np.hypot(np.fft.fftfreq(n)[:, None] * n, np.arange(n // 2 + 1)[None])
    bands = np.geomspace(3, 30, 9)
    rings = [power[(radius >= a) & (radius < b)].mean() for a, b in pairwise(bands)]
    middles = np.sqrt(bands[:-1] * bands[1:])
    return -float(np.polyfit(np.log(middles), 0.5 * np.log(np.array(rings) + 1e-9), 1)[0])


def test_an_image_is_the_same_whatever_was_drawn_before() -> None:
    one = draw_image(3, 17, 48)
    assert one.dtype == np.uint8
    assert one.shape == (48, 48, 3)
    for i in (0, 99, 16):
        draw_image(3, i, 48)
        noise(np.random.default_rng(i), 48, 1.0)
    assert np.array_equal(one, draw_image(3, 17, 48))
    assert not np.array_equal(one, draw_image(3, 18, 48))
    assert not np.array_equal(one, draw_image(4, 17, 48))


def test_there_is_variety_in_spectrum_colour_and_contrast(drawn: npt.NDArray[np.uint8]) -> None:
    scaled = drawn.astype(np.float64) / 255
    grey = scaled.mean(3)
    slopes = np.array([_slope(picture) for picture in grey])
    low, middle, high = np.quantile(slopes, (0.05, 0.5, 0.95))
    # photographs lie around 1, from fine textures to smooth surfaces
    assert low < 0.6
    assert 0.6 < middle < 1.7
    assert high > 1.7
    contrast = grey.std((1, 2))
    assert np.quantile(contrast, 0.05) < 0.08 < 0.2 < np.quantile(contrast, 0.95)
    assert float((contrast < 0.005).mean()) < 0.02  # hardly any says nothing
    means = scaled.mean((1, 2))
    assert means.std(0).min() > 0.1
    saturation = means.max(1) - means.min(1)
    assert np.quantile(saturation, 0.2) < 0.08 < 0.25 < np.quantile(saturation, 0.9)
    clipped = ((drawn == 0) | (drawn == 255)).mean()
    assert clipped < 0.15


def test_neighbouring_pixels_differ_about_as_in_photographs(drawn: npt.NDArray[np.uint8]) -> None:
    grey = drawn.astype(np.float64).mean(3)
    steps = np.abs(np.diff(grey, axis=1)).mean((1, 2))
    # photographs of products lie at 3 to 5 of 255
    assert np.quantile(steps, 0.1) < 4 < np.median(steps) < 11
    assert 0.2 < float((np.ptp(drawn, axis=3).max((1, 2)) == 0).mean()) < 0.45  # grey ones


def test_no_two_images_look_alike(drawn: npt.NDArray[np.uint8]) -> None:
    small = drawn.reshape(len(drawn), 8, 12, 8, 12, 3).mean((2, 4)).reshape(len(drawn), -1)
    distance = np.abs(small[:, None] - small[None]).mean(2)
    distance[np.diag_indices(len(small))] = np.inf
    assert distance.min() > 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_something_at_every_size(kind: str) -> None:
    for size in (16, 33, 96):
        pictures = [draw_image(1, i, size, kind) for i in range(4)]
        assert all(p.shape == (size, size, 3) for p in pictures)
        assert max(p.std() for p in pictures) > 5


@pytest.mark.parametrize("name", FIELDS)
def test_fields_fill_their_range(name: str) -> None:
    for seed in range(3):
        field = FIELDS[name](np.random.default_rng(seed), 64)
        assert field.dtype == np.float32
        assert field.shape == (64, 64)
        assert 0 <= field.min() < 0.05
        assert 0.9 < field.max() <= 1


def test_leaves_cover_each_other_and_have_all_sizes() -> None:
    found = labels(np.random.default_rng(0), 128, 200, 0.02, 0.4)
    counts = np.bincount(found.ravel(), minlength=201)[1:]
    assert found.max() <= 200
    assert (counts > 0).sum() > 60
    assert counts.max() > 30 * np.median(counts[counts > 0])


def test_drawing_keeps_up_with_a_training() -> None:
    draw_image(0, 0, 160)
    start = time.process_time()
    for i in range(20):
        draw_image(0, i, 160)
    # some 10 ms on an idle core; other work on the same core makes it slower
    assert (time.process_time() - start) / 20 < 0.1


def test_what_cannot_be_drawn_is_refused() -> None:
    for wrong in ((0, 0, 8), (-1, 0, 64), (0, -1, 64)):
        with pytest.raises(ConfigError, match="procedural image needs"):
            draw_image(*wrong)
    with pytest.raises(ConfigError, match="choose from"):
        draw_image(0, 0, 64, "cats")
