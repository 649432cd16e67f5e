"""A seeded synthetic defect on a normal image, with a mask of the pixels that it changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedvad.data.images import check_rgb
from fedvad.data.synthesis.config import SynthesisConfig
from fedvad.data.synthesis.foreground import find_foreground
from fedvad.data.synthesis.paints import (
    Paint,
    Scene,
    paint_blur,
    paint_patch,
    paint_scratch,
    paint_spot,
    paint_stain,
    paint_texture,
    paint_warp,
)
from fedvad.data.synthesis.scratches import scratch
from fedvad.data.synthesis.shapes import Region, blob, patch, speckle

FALL_BACK = "spot"
_ATTEMPTS = 6
_NEAR = 7  # pixels a side: so wide is the neighbourhood in which a change is seen

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Shape = Callable[[Mask, int, np.random.Generator], Region]
Painter = Callable[[Scene, Region, np.random.Generator], Paint]


@dataclass(frozen=True)
class Defect:
    """An image uint8 (H, W, 3) with a defect of a kind, and the mask bool (H, W) of its pixels."""

    image: Pixels
    mask: Mask
    kind: str


def _cut(allowed: Mask, pixels: int, rng: np.random.Generator) -> Region:
    """A rectangle or an irregular piece."""
    shape = patch if rng.random() < 0.5 else partial(blob, ragged=0.8)
    return shape(allowed, pixels, rng)


_DRAWN: dict[str, tuple[Shape, Painter]] = {
    "texture": (speckle, paint_texture),
    "cutpaste": (_cut, paint_patch),
    "scratch": (scratch, paint_scratch),
    "stain": (blob, paint_stain),
    "blur": (blob, paint_blur),
    "warp": (partial(blob, ragged=0.15), paint_warp),
}


def synthesise(
    image: Pixels,
    config: SynthesisConfig,
    *,
    seed: int | Sequence[int],
    textures: Sequence[Pixels] | None = None,
    others: Sequence[Pixels] | None = None,
) -> Defect:
    """Draw one defect on a copy of a normal image uint8 (H, W, 3).

    Outside the mask (H, W) the image is the original to the last bit. Inside, the mean absolute
    change over pixels and channels is at least `min_change` grey levels. The mask covers between
    area[0] and area[1] of the foreground and at least `min_pixels`, or the whole foreground if
    that has fewer; a pixel within it can by chance have kept its value.

    A defect that cannot be seen is drawn again, its kind too. After six attempts (an even
    image cannot show a blur) a spot of strong contrast takes its place; its kind is `spot`.
    seed: the same seed, image, configuration and sources give the same bytes, whatever was drawn
    before; pass (seed, index) for the images of a set. textures and others: images uint8
    (h, w, 3) of any size, to take content from.

    Raises `DataError` for any other array, `ConfigError` when a source in the configuration is
    not given, `ImageError` when a texture file that is used cannot be read. Source: `config` says.
    """
    check_rgb(image)
    rng = np.random.default_rng(seed)
    scene = Scene(
        image,
        find_foreground(image, config),
        config,
        () if textures is None else textures,
        () if others is None else others,
    )
    room = int(scene.foreground.sum())
    least = min(room, max(math.ceil(config.area[0] * room), config.min_pixels))
    most = max(least, int(config.area[1] * room))
    kinds = list(config.kinds)
    weights = np.array(list(config.kinds.values()), dtype=np.float64)
    for _ in range(_ATTEMPTS):
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        shape, painter = _DRAWN[kind]
        region = shape(scene.foreground, _pixels(least, most, rng), rng)
        found = _blended(image, region, painter(scene, region, rng), config.min_change)
        if found is not None and found[1].sum() >= least:
            return Defect(*found, kind)
    region = blob(scene.foreground, _pixels(least, most, rng), rng)
    found = _blended(image, region, paint_spot(scene, region, rng), 0.0)
    assert found is not None
    return Defect(*found, FALL_BACK)


def _pixels(least: int, most: int, rng: np.random.Generator) -> int:
    """A count of pixels from `least` to `most`, as often in each octave."""
    drawn = round(math.exp(float(rng.uniform(math.log(least), math.log(most)))))
    return min(most, max(least, drawn))


def _blended(
    image: Pixels, region: Region, paint: Paint, min_change: float
) -> tuple[Pixels, Mask] | None:
    """The image with the defect and its mask; None when it changes less than `min_change`.

    Where the change around a pixel stays below half of that, the original is put back: the edge of
    a soft stain, or the part of a pasted piece that lands on its like.
    """
    inside = region.mask  # most boxes are mostly empty: only pixels of the region are computed
    before = image[region.box][inside].astype(np.float32)
    mixed = before + paint.alpha[:, None] * (paint.content - before)
    after = np.clip(np.rint(mixed), 0, 255)
    change = np.zeros(inside.shape, dtype=np.float32)
    change[inside] = np.abs(after - before).mean(axis=1)
    near = ndimage.uniform_filter(change, _NEAR, mode="constant")
    seen = inside & (near >= min_change / 2)
    if not seen.any() or change[seen].mean() < min_change:
        return None
    drawn, mask = image.copy(), np.zeros(image.shape[:2], dtype=np.bool_)
    drawn[region.box][seen] = after[seen[inside]]
    mask[region.box] = seen
    return drawn, mask
