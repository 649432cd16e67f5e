"""What changed at a site: light, focus, colour, position, product; and nothing without a change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter

from fedvad.evaluation.change import FIRST, Change, ChangeWatch, Normals, normals_from

Pixels = npt.NDArray[np.uint8]
SIDE = 96


def part(rng: np.random.Generator, product: str = "disc") -> Pixels:
    """A grainy part on a dark ground, a little off its place, in light that varies a little."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5 + rng.normal(0, 0.01, (2, 1, 1))
    inside = (x**2 + y**2 < 0.1) if product == "disc" else (np.abs(x) < 0.1) | (np.abs(y) < 0.05)
    grey = np.where(inside, 150.0, 60.0) + rng.normal(0, 12, (SIDE, SIDE))
    light = rng.normal(1, 0.03)
    return np.clip(grey[:, :, None] * light * [1, 0.9, 0.8], 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "light": lambda x: (x * 0.8).astype(np.uint8),
    "focus": lambda x: np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(1.2))),
    "position": lambda x: np.roll(x, 9, axis=1),
    "colour": lambda x: np.clip(x * [1.1, 1.0, 0.9], 0, 255).astype(np.uint8),
}


@pytest.fixture(scope="module")
def normals() -> Normals:
    rng = np.random.default_rng(100)
    return normals_from(part(rng) for _ in range(60))


def watched(
    normals: Normals | None,
    change: Callable[[Pixels], Pixels],
    *,
    before: int = 0,
    product: str = "disc",
    score: float = 1.0,
) -> Change:
    """After `before` images as usual and 30 that changed; scores are `score` times the usual."""
    rng = np.random.default_rng(7)
    usual = rng.normal(1, 0.1, 60).tolist()
    watch = ChangeWatch(1.3, usual, normals)
    for i in range(before + 30):
        new = i >= before
        pixels = change(part(rng, product)) if new else part(rng)
        value = float(rng.normal(1, 0.1)) * (score if new else 1)
        watch.add(value, watch.look(pixels), when=f"{i:04d}")
    return watch.change()


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_of_the_picture_is_named_and_nothing_else(normals: Normals, kind: str) -> None:
    found = watched(normals, CHANGES[kind])
    assert found["changed"] == [kind]
    assert found["since"] is not None
    assert found["since"] <= "0015"
    assert found["says"].startswith(f"Changed since {found['since']}: {kind} (")


def test_another_product_is_one_change_and_scores_alone_are_the_product_too(
    normals: Normals,
) -> None:
    assert watched(normals, lambda x: x, product="cross", score=2)["changed"] == ["product"]
    assert watched(normals, lambda x: x, score=1.2)["changed"] == ["product"]
    assert watched(normals, lambda x: x, score=2)["changed"] == ["product"]  # all are stopped


def test_without_a_change_it_says_so(normals: Normals) -> None:
    found = watched(normals, lambda x: x, before=60)
    assert found["changed"] == []
    assert found["says"] == "No change in 90 images."
    assert all(figure["peak"] < found["needed"] for figure in found["figures"])


def test_without_normal_images_the_first_ones_count() -> None:
    found = watched(None, lambda x: x, before=FIRST - 35)
    assert found["missing"] == 5
    assert {figure["name"] for figure in found["figures"]} == {"stopped", "score"}
    found = watched(None, CHANGES["light"], before=FIRST + 20)
    assert found["missing"] == 0
    assert found["changed"] == ["light"]


def test_of_400_watched_streams_no_more_alarm_than_promised() -> None:
    alarms = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        looks = {name: rng.normal(0, 1, 40).tolist() for name in ("brightness", "sharpness")}
        usual = rng.normal(1, 0.1, 40).tolist()
        watch = ChangeWatch(1.2, usual, Normals(looks, np.zeros((64, 64))), alpha=0.05)
        for _ in range(40):
            looked = {"looks": {name: float(rng.normal()) for name in looks}}
            watch.add(float(rng.normal(1, 0.1)), looked, when="now")
        alarms += bool(watch.change()["changed"])
    assert alarms <= 0.05 * 400
