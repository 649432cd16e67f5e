"""Synthetic defects: what the mask promises, that they can be seen, and that a seed is enough."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage

from fedvad.data.synthesis import FALL_BACK, KINDS, Defect, SynthesisConfig, synthesise
from fedvad.errors import ConfigError, DataError


def _surface(seed: int = 0, size: int = 96) -> np.ndarray:
    """A surface with detail on every scale, so that every kind of defect can be seen on it."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.zoom(rng.uniform(70, 180, (size // 8, size // 8, 3)), (8, 8, 1), order=1)
    fine = rng.normal(0, 22, (size, size, 1))
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


OTHERS = [_surface(seed) for seed in (7, 8, 9)]


def _change(image: np.ndarray, defect: Defect) -> np.ndarray:
    """Absolute change (n, 3) of the pixels inside the mask, in grey levels."""
    return np.abs(defect.image.astype(int) - image)[defect.mask]


def _only(kind: str, **options: Any) -> SynthesisConfig:
    return SynthesisConfig(kinds={kind: 1.0}, **options)


def _keeps_its_promises(image: np.ndarray, defect: Defect, config: SynthesisConfig) -> None:
    assert defect.image.shape == image.shape
    assert defect.image.dtype == np.uint8
    assert defect.mask.shape == image.shape[:2]
    assert defect.mask.dtype == np.bool_
    assert defect.mask.any()
    assert (defect.image[~defect.mask] == image[~defect.mask]).all()
    assert _change(image, defect).mean() >= config.min_change
    room = image.shape[0] * image.shape[1]
    least = min(room, max(math.ceil(config.area[0] * room), config.min_pixels))
    assert least <= defect.mask.sum() <= max(least, config.area[1] * room)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_seen_and_within_its_area(kind: str) -> None:
    config = _only(kind, area=(0.01, 0.05))
    for index in range(12):
        image = _surface(index)
        defect = synthesise(image, config, seed=(1, index), others=OTHERS)
        assert defect.kind == kind
        _keeps_its_promises(image, defect, config)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bytes_whatever_came_before(kind: str) -> None:
    image, config = _surface(), _only(kind)
    first = synthesise(image, config, seed=(3, 1), others=OTHERS)
    np.random.default_rng(0).random(5)
    synthesise(_surface(5), config, seed=(3, 0), others=OTHERS)
    again = synthesise(image.copy(), config, seed=(3, 1), others=list(OTHERS))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    other = synthesise(image, config, seed=(3, 2), others=OTHERS)
    assert first.image.tobytes() != other.image.tobytes()


def test_the_original_is_not_touched_and_may_be_read_only() -> None:
    image = _surface()
    image.setflags(write=False)
    before = image.tobytes()
    assert synthesise(image, SynthesisConfig(), seed=0).image.flags.writeable
    assert image.tobytes() == before


def test_kinds_come_as_often_as_their_weights_say() -> None:
    config = SynthesisConfig(kinds={"scratch": 3.0, "stain": 1.0, "texture": 0.0})
    image = _surface()
    drawn = [synthesise(image, config, seed=(0, i)).kind for i in range(80)]
    assert set(drawn) == {"scratch", "stain"}
    assert 48 <= drawn.count("scratch") <= 72  # 60 expected; four deviations are 15


@given(
    height=st.integers(1, 48),
    width=st.integers(1, 48),
    grey=st.integers(0, 255),
    noise=st.sampled_from([0, 3, 120]),
    kind=st.sampled_from([*KINDS, "any"]),
    seed=st.integers(0, 2**32),
)
@example(height=16, width=16, grey=0, noise=0, kind="any", seed=0)
@example(height=16, width=16, grey=255, noise=0, kind="blur", seed=0)
@example(height=2, width=700, grey=128, noise=120, kind="scratch", seed=1)
@example(height=700, width=2, grey=255, noise=0, kind="texture", seed=2)
@example(height=1, width=1, grey=0, noise=0, kind="warp", seed=3)
def test_no_image_is_too_even_or_too_small(
    height: int, width: int, grey: int, noise: int, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), float(grey)) + rng.integers(
        -noise, noise + 1, (height, 1, 3)
    )
    image = np.clip(image, 0, 255).astype(np.uint8)
    config = SynthesisConfig() if kind == "any" else _only(kind)
    _keeps_its_promises(image, synthesise(image, config, seed=seed), config)


@pytest.mark.parametrize("grey", [0, 255])
def test_what_an_even_image_cannot_show_becomes_a_spot(grey: int) -> None:
    image = np.full((40, 40, 3), grey, np.uint8)
    for kind in ("blur", "warp"):
        defect = synthesise(image, _only(kind, min_change=60.0), seed=4)
        assert defect.kind == FALL_BACK
        assert _change(image, defect).min() >= 60


def test_an_exact_area_is_kept() -> None:
    image, config = _surface(), SynthesisConfig(area=(0.03, 0.03))
    sizes = {int(synthesise(image, config, seed=(0, i)).mask.sum()) for i in range(10)}
    assert sizes == {math.ceil(0.03 * 96 * 96)}


def test_min_change_and_min_pixels_are_limits() -> None:
    image = _surface()
    config = SynthesisConfig(min_change=30.0, min_pixels=400, area=(0.001, 0.1))
    for index in range(12):
        defect = synthesise(image, config, seed=(0, index))
        assert _change(image, defect).mean() >= 30
        assert defect.mask.sum() >= 400


def test_beta_is_what_stays_of_the_image() -> None:
    image = np.full((64, 64, 3), 20, np.uint8)
    white = [np.full((64, 64, 3), 255, np.uint8)]
    changes = []
    for beta in (0.0, 0.6):
        config = _only("texture", beta=(beta, beta), source="textures", min_change=1.0)
        defects = [synthesise(image, config, seed=(1, i), textures=white) for i in range(6)]
        changes.append(np.mean([_change(image, defect).mean() for defect in defects]))
    assert changes[1] == pytest.approx(0.4 * changes[0], rel=0.1)


def test_a_scratch_is_long_and_thin_and_a_stain_is_one_compact_spot() -> None:
    image = np.full((128, 128, 3), 128, np.uint8)
    for index in range(8):
        config = _only("scratch", area=(0.004, 0.008), beta=(0.0, 0.2))
        scratch = synthesise(image, config, seed=(0, index))
        stain = synthesise(image, _only("stain", area=(0.01, 0.03)), seed=(0, index))
        # The farthest any pixel lies from the outside: half the width.
        assert ndimage.distance_transform_edt(scratch.mask).max() <= 4
        assert ndimage.distance_transform_edt(stain.mask).max() > 4
        labels, count = ndimage.label(stain.mask)
        assert np.bincount(labels.ravel())[1:].max() >= 0.8 * stain.mask.sum(), count


def test_cutpaste_brings_what_is_there_and_blur_takes_detail_away() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    red = [np.full((64, 64, 3), (200, 0, 0), np.uint8)]
    pasted = [synthesise(image, _only("cutpaste"), seed=(1, i), others=red) for i in range(12)]
    colours = [defect.image[defect.mask].mean(axis=0) for defect in pasted]
    assert sum(colour[0] > 100 for colour in colours) >= 6  # half of the pieces, and retries
    assert max(colour[1:].max() for colour in colours) <= 15  # jitter of the colours
    rough = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    blurred = synthesise(rough, _only("blur", area=(0.05, 0.1)), seed=1)
    inside = ndimage.binary_erosion(blurred.mask, iterations=3)
    assert blurred.image[inside].std() < 0.5 * rough[inside].std()


def test_warp_moves_pixels_and_brings_no_new_values() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::8] = 200
    for index in range(6):
        defect = synthesise(image, _only("warp", area=(0.03, 0.1)), seed=(0, index))
        assert defect.kind == "warp"
        assert defect.image.max() <= 200
        assert (defect.image[..., 0] == defect.image[..., 2]).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kinds": {"rust": 1.0}}, "unknown kind of defect 'rust'"),
        ({"kinds": {}}, "weights"),
        ({"kinds": {"stain": 0.0}}, "weights"),
        ({"kinds": {"stain": -1.0}}, "weights"),
        ({"kinds": {"stain": math.nan}}, "weights"),
        ({"area": (0.0, 0.1)}, "area"),
        ({"area": (0.2, 0.1)}, "area"),
        ({"area": (0.1, 0.9)}, "area"),
        ({"beta": (0.2, 1.0)}, "beta"),
        ({"beta": (-0.1, 0.5)}, "beta"),
        ({"min_pixels": 0}, "min_pixels"),
        ({"min_change": 0.0}, "min_change"),
        ({"min_change": 100.0}, "min_change"),
        ({"foreground": "grabcut"}, "unknown foreground 'grabcut'"),
        ({"foreground": 255}, "grey level 0 to 254"),
        ({"side": "left"}, "unknown side 'left'"),
        ({"source": "web"}, "unknown source 'web'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SynthesisConfig(**options)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8"):
        synthesise(wrong, SynthesisConfig(), seed=0)
    with pytest.raises(DataError, match="uint8"):
        synthesise(_surface(), _only("texture"), seed=0, textures=[wrong])
