"""Pictures saved again are found among others, and calibrate once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import fedvad
from fedvad.features.near_copies import Sketches, copies_of, same_picture
from tests.helpers import OPTIONS


def test_groups_are_much_nearer_than_what_is_around_them() -> None:
    rng = np.random.default_rng(0)
    others = rng.normal(size=(20, 64)).astype(np.float32)
    again = [others[3] + 0.1, others[3] - 0.1, others[7] + 0.1]
    vectors = np.concatenate([others, again]).astype(np.float32)
    assert copies_of(vectors) == [[3, 20, 21], [7, 22]]
    # with nothing else there, or no others in sight, nobody knows
    assert copies_of(vectors[[3, 20, 21]]) == []
    assert copies_of(vectors[:2]) == copies_of(vectors[:0]) == []
    # parts that lie together, as parts of a rare kind do, are none
    kind = (1 + 0.8 * rng.normal(size=(5, 64))).astype(np.float32)
    assert copies_of(np.concatenate([others, kind])) == []


def test_sketches_keep_distances_and_shapes_apart() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(8, 8, 12)).astype(np.float16) for _ in range(12)]
    images[5] = images[2] + np.float16(0.02)
    images[7][0, 0] = np.nan  # outside the region of interest
    images += [image[:4] for image in images[:4]]
    sketches = Sketches()
    for image in images:
        sketches.add(image)
    assert sketches.copies() == [[2, 5]]


def test_two_photographs_are_not_one_picture() -> None:
    rng = np.random.default_rng(0)
    weave = np.add.outer(np.sin(np.arange(96) / 2), np.sin(np.arange(96) / 3))[..., None] * 40 + 120

    def photograph() -> npt.NDArray[np.uint8]:
        spots = rng.normal(0, 12, (24, 24, 3)).repeat(4, 0).repeat(4, 1)
        return np.clip(weave + spots, 0, 255).astype(np.uint8)

    one, other = photograph(), photograph()
    assert not same_picture(one, other)
    assert same_picture(one, np.roll(one, (1, -2), (0, 1)))
    assert same_picture(one, np.clip(one * 1.05 + 3, 0, 255).astype(np.uint8))
    again = io.BytesIO()
    Image.fromarray(one).save(again, "JPEG", quality=75)
    assert same_picture(one, np.asarray(Image.open(again)))
    flat = np.full_like(one, 90)
    assert not same_picture(flat, flat)
    assert not same_picture(flat[:1, :1], flat)


def test_near_copies_calibrate_once_and_are_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for site in ("a", "b"):
        good = tmp_path / "data" / site / "train/good"
        good.mkdir(parents=True)
        for n in range(6):
            pixels = rng.integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(good / f"{n}.png")
            if site == "a" and n < 4:
                Image.fromarray(pixels).save(good / f"{n}again.jpg", quality=95)
    found = {}
    for mode in ("leave-one-out", "holdout"):
        results = fedvad.train(
            tmp_path / "data", tmp_path / mode, cache=tmp_path / "cache", **OPTIONS,
            calibration=mode, holdout=0.5,
        )  # fmt: skip
        notes = [note[:33] for note in results.data.notes if "near copies" in note]
        assert notes == ["a: 4 training images are near cop"]
        found[mode] = {name: own.n for name, own in results.threshold.sites.items()}
    assert found == {"leave-one-out": {"a": 6, "b": 6}, "holdout": {"a": 3, "b": 3}}
    scores = fedvad.load(tmp_path / "leave-one-out").sites["a"].thresholds["global"].scores
    assert min(scores) > 0.3 * max(scores)  # no copy vouched for another
