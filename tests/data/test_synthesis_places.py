"""Where defects lie: foreground masks, shapes of an exact area, Perlin noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedvad.data.synthesis import KINDS, SynthesisConfig, find_foreground, synthesise
from fedvad.data.synthesis.foreground import otsu_threshold
from fedvad.data.synthesis.perlin import perlin, turned_perlin
from fedvad.data.synthesis.scratches import scratch
from fedvad.data.synthesis.shapes import blob, patch, speckle, top_region
from fedvad.errors import ConfigError

Y, X = np.mgrid[:96, :96]
DISC = (X - 40) ** 2 + (Y - 52) ** 2 < 26**2


def _picture(inside: float, outside: float, where: np.ndarray = DISC) -> np.ndarray:
    grey = np.where(where, inside, outside) + np.random.default_rng(0).normal(0, 8, where.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _agreement(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize(("inside", "outside"), [(180, 30), (60, 200), (90, 40)])
def test_otsu_finds_the_object_brighter_or_darker_than_its_background(
    inside: float, outside: float
) -> None:
    found = find_foreground(_picture(inside, outside), SynthesisConfig(foreground="otsu"))
    assert _agreement(found, DISC) > 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inside", "outside"), [(160, 10), (60, 245)])
def test_defects_lie_on_the_object(kind: str, inside: float, outside: float) -> None:
    image = _picture(inside, outside)
    config = SynthesisConfig(kinds={kind: 1.0}, foreground="otsu", area=(0.01, 0.2))
    for index in range(6):
        mask = synthesise(image, config, seed=(0, index)).mask
        assert (mask & DISC).sum() >= 0.9 * mask.sum()
        # Shares are those of the object, whose outline is known to a pixel or so.
        assert mask.sum() <= 1.1 * 0.2 * DISC.sum()


def test_threshold_side_and_function() -> None:
    image = _picture(120, 30)
    assert _agreement(find_foreground(image, SynthesisConfig(foreground=75)), DISC) > 0.95
    dark = find_foreground(image, SynthesisConfig(foreground=75, side="dark"))
    assert _agreement(dark, ~DISC) > 0.95
    corner = (X < 20) & (Y < 20)
    given = SynthesisConfig(foreground=lambda image: corner)
    assert (find_foreground(image, given) == corner).all()
    assert not synthesise(image, given, seed=0).mask[~corner].any()


def test_small_holes_are_filled_and_the_hole_of_a_nut_is_not() -> None:
    highlight = (X - 40) ** 2 + (Y - 52) ** 2 < 4**2
    nut = DISC & ((X - 40) ** 2 + (Y - 52) ** 2 > 14**2)
    config = SynthesisConfig(foreground="otsu")
    found = find_foreground(_picture(60, 200, DISC & ~highlight), config)
    assert found[highlight].all()
    assert _agreement(found, DISC) > 0.95
    assert _agreement(find_foreground(_picture(60, 200, nut), config), nut) > 0.9


def test_a_corner_of_background_is_no_hole() -> None:
    corner = X + Y < 20
    config = SynthesisConfig(foreground=100, side="bright")
    found = find_foreground(_picture(180, 30, ~corner), config)
    assert _agreement(found, ~corner) > 0.99


def test_pieces_of_other_images_come_from_their_objects() -> None:
    red = (X > 60) & (Y < 40)
    other = np.where(red[..., None], (220, 40, 40), (20, 20, 110)).astype(np.uint8)
    config = SynthesisConfig(kinds={"cutpaste": 1.0}, foreground="otsu", area=(0.01, 0.03))
    pasted = [synthesise(_picture(120, 10), config, seed=(0, i), others=[other]) for i in range(30)]
    colours = [np.median(defect.image[defect.mask].astype(int), axis=0) for defect in pasted]
    assert sum(red > blue + 60 for red, _, blue in colours) >= 8
    assert sum(blue > red + 60 for red, _, blue in colours) == 0


@pytest.mark.parametrize(
    ("image", "config"),
    [
        (np.full((40, 30, 3), 7, np.uint8), SynthesisConfig(foreground="otsu")),
        (_picture(128, 128), SynthesisConfig(foreground="otsu")),
        (_picture(180, 30, np.zeros_like(DISC)), SynthesisConfig(foreground=100, side="bright")),
        (_picture(90, 90), SynthesisConfig(foreground=lambda i: np.zeros(i.shape[:2], bool))),
        (_picture(90, 90), SynthesisConfig()),
    ],
    ids=["constant", "even", "nothing over the threshold", "function finds nothing", "none"],
)
def test_without_an_object_the_whole_image_is_the_foreground(
    image: np.ndarray, config: SynthesisConfig
) -> None:
    assert find_foreground(image, config).all()
    assert synthesise(image, config, seed=0).mask.any()


@pytest.mark.parametrize("wrong", [np.ones((4, 4), bool), np.ones((96, 96)), None])
def test_a_function_that_returns_no_mask_is_refused(wrong: object) -> None:
    config = SynthesisConfig(foreground=lambda image: wrong)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="must return bool"):
        synthesise(_picture(90, 90), config, seed=0)


def test_otsu_is_the_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        grey = np.clip(np.r_[rng.normal(60, 20, 300), rng.normal(170, 30, 200)], 0, 255)
        grey = grey.astype(np.uint8)
        between = [
            (grey <= t).mean()
            * (grey > t).mean()
            * (grey[grey <= t].mean() - grey[grey > t].mean()) ** 2
            for t in range(int(grey.min()), int(grey.max()))
        ]
        assert between[otsu_threshold(grey) - int(grey.min())] == pytest.approx(max(between))


@pytest.mark.parametrize("pixels", [1, 7, 150, 900])
def test_shapes_have_the_area_that_was_asked_for(pixels: int) -> None:
    for seed in range(6):
        for draw in (speckle, blob, patch):
            region = draw(DISC, pixels, np.random.default_rng(seed))
            assert region.mask.sum() == pixels
            assert DISC[region.box][region.mask].all()
            assert region.depth.max() <= 1
            assert not region.depth[~region.mask].any()
        region = scratch(DISC, pixels, np.random.default_rng(seed))
        assert 1 <= region.mask.sum() <= pixels
        assert DISC[region.box][region.mask].all()


def test_shapes_take_the_whole_object_when_it_is_smaller_and_refuse_none() -> None:
    tiny = np.zeros((50, 60), bool)
    tiny[10, 3] = tiny[40, 50] = True
    rng = np.random.default_rng(0)
    assert [draw(tiny, 99, rng).mask.sum() for draw in (speckle, blob, patch)] == [2, 2, 2]
    with pytest.raises(ValueError, match="at least one"):
        top_region(np.zeros((4, 4), np.float32), np.zeros((4, 4), bool), 3)


def _one_by_one(shape: tuple[int, int], periods: tuple[float, float], seed: int) -> np.ndarray:
    """Perlin noise as the textbook draws it: pixel by pixel, corner by corner."""
    lattice = (math.ceil(periods[0]) + 1, math.ceil(periods[1]) + 1)
    angle = np.random.default_rng(seed).uniform(0, 2 * math.pi, lattice)
    noise = np.zeros(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            y, x = (i + 0.5) / shape[0] * periods[0], (j + 0.5) / shape[1] * periods[1]
            for a in (int(y), int(y) + 1):
                for b in (int(x), int(x) + 1):
                    u, v = abs(y - a), abs(x - b)
                    fade = np.prod([1 - (6 * t**5 - 15 * t**4 + 10 * t**3) for t in (u, v)])
                    away = math.sin(angle[a, b]) * (y - a) + math.cos(angle[a, b]) * (x - b)
                    noise[i, j] += fade * away
    return noise * math.sqrt(2)


@pytest.mark.parametrize("periods", [(1.0, 1.0), (4.0, 2.0), (2.5, 3.7)])
def test_perlin_by_products_is_perlin_by_the_book(periods: tuple[float, float]) -> None:
    drawn = perlin((14, 18), periods, np.random.default_rng(3))
    np.testing.assert_allclose(drawn, _one_by_one((14, 18), periods, 3), atol=2e-6)
    assert np.abs(perlin((200, 200), (9.0, 9.0), np.random.default_rng(0))).max() <= 1


def test_turned_noise_covers_the_image_and_varies_in_coarseness() -> None:
    steps = []
    for seed in range(40):
        noise = turned_perlin((64, 64), np.random.default_rng(seed))
        assert noise.shape == (64, 64)
        # A canvas that did not reach the corners would leave them exactly 0.
        assert (np.abs(noise[[0, 0, -1, -1], [0, -1, 0, -1]]) > 0).all()
        steps.append(np.abs(np.diff(noise, axis=0)).mean() / noise.std())
    assert max(steps) > 5 * min(steps)
    assert turned_perlin((3, 500), np.random.default_rng(0)).shape == (3, 500)
