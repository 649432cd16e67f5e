"""What a defect does to the image inside its outline: new pixels, and how opaque they lie there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedvad.data.images import check_rgb
from fedvad.data.synthesis.config import SynthesisConfig
from fedvad.data.synthesis.foreground import find_foreground
from fedvad.data.synthesis.shapes import Region, random_pixel
from fedvad.data.synthesis.textures import augment, cutting, draw_texture
from fedvad.errors import ConfigError

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """What a defect is drawn on and from: image uint8 (H, W, 3), its foreground bool (H, W)."""

    image: Pixels
    foreground: NDArray[np.bool_]
    config: SynthesisConfig
    textures: Sequence[Pixels]
    others: Sequence[Pixels]


@dataclass(frozen=True)
class Paint:
    """What lies on the n pixels of a region, row by row.

    content: float32 (n, 3) in grey levels, which may leave 0 to 255. alpha: opacity (n,), 0 to 1.
    """

    content: Field
    alpha: Field


def paint_texture(scene: Scene, region: Region, rng: np.random.Generator) -> Paint:
    """A texture from the configured source, blended over the image by a random beta.

    Source: DRAEM, section 3.3, and its public code: beta * image + (1 - beta) * texture.
    """
    height, width = region.mask.shape
    content = _texture(scene, (height, width), rng)[region.mask].astype(np.float32)
    return Paint(content, _feathered(region) * _strength(scene, rng))


def paint_patch(scene: Scene, region: Region, rng: np.random.Generator) -> Paint:
    """A piece of this or another image, turned, mirrored and changed a little in its colours.

    It is cut around a pixel of that image's foreground. Source: CutPaste (Li et al., CVPR 2021),
    section 2.1; pieces of other images and their foreground are ours.
    """
    image, allowed = scene.image, scene.foreground
    if len(scene.others) and rng.random() < 0.5:
        image = _any_of(scene.others, rng)
        allowed = find_foreground(image, scene.config)
    row, column = random_pixel(allowed, rng)
    y, x = _from_middle(region)
    if rng.random() < 0.5:
        x = -x
    angle = float(rng.uniform(-math.pi, math.pi))
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    content = _sampled(image, row + y * cos + x * sin, column + x * cos - y * sin)
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, 3)
    content = content * gain.astype(np.float32) + np.float32(rng.uniform(-15, 15))
    return Paint(content, _feathered(region))


def paint_scratch(scene: Scene, region: Region, rng: np.random.Generator) -> Paint:
    """A groove: darker or brighter than what it runs through, with a lit lip on one side. Ours."""
    under = _under(scene, region)
    if _sign(float(under.mean()), rng) < 0:
        groove = -under * np.float32(rng.uniform(0.35, 0.8))
    else:
        groove = (255 - under) * np.float32(rng.uniform(0.25, 0.6))
    # Light comes from the upper left: the lip is a pixel's step of the groove in that direction.
    relief = region.depth - np.float32(0.8) * np.pad(region.depth, 1)[:-2, :-2]
    # Pressed harder here than there.
    uneven = ndimage.gaussian_filter1d(rng.normal(0, 0.6, (len(relief), 1)), 2.0, axis=0)
    tone = np.clip(0.75 + 0.5 * relief, 0.4, 1.2) * (1 + uneven.astype(np.float32))
    depth = region.depth[region.mask]
    return Paint(
        under + groove * tone[region.mask][:, None],
        depth * (np.float32(0.4) + np.float32(0.6) * _strength(scene, rng)),
    )


def paint_stain(scene: Scene, region: Region, rng: np.random.Generator) -> Paint:
    """A soft spot that soaks or covers: the surface shows through, often with a rim. Ours."""
    under = _under(scene, region)
    hue = np.asarray(rng.uniform(0.8, 1.0, 3), dtype=np.float32)
    if _sign(float(under.mean()), rng) < 0:
        content = under * (hue * np.float32(rng.uniform(0.15, 0.7)))
    else:
        content = under + (255 - under) * (hue * np.float32(rng.uniform(0.3, 0.8)))
    depth = region.depth[region.mask] / np.float32(rng.uniform(0.08, 0.5))
    alpha = _step(depth)
    if rng.random() < 0.5:  # it dried from its rim inwards
        alpha = alpha * (1 - np.float32(rng.uniform(0.2, 0.6)) * _step(depth * np.float32(0.5)))
    return Paint(content, alpha * _strength(scene, rng))


def paint_blur(scene: Scene, region: Region, rng: np.random.Generator) -> Paint:
    """The surface without its detail, as worn or smeared; sigma is 1 to 4 % of a side. Ours."""
    height, width = scene.image.shape[:2]
    sigma = max(1.5, float(rng.uniform(0.01, 0.04)) * min(height, width))
    margin = math.ceil(2 * sigma)
    rows, columns = region.box
    top, left = max(0, rows.start - margin), max(0, columns.start - margin)
    near = scene.image[top : rows.stop + margin, left : columns.stop + margin].astype(np.float32)
    blurred = ndimage.gaussian_filter(near, (sigma, sigma, 0), mode="nearest", truncate=2.0)
    content = blurred[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ][region.mask]
    return Paint(content, _step(region.depth[region.mask] * 4))


def paint_warp(scene: Scene, region: Region, rng: np.random.Generator) -> Paint:
    """The surface pushed, twisted, swollen or pinched, most in the middle of the spot. Ours."""
    y, x = _from_middle(region)
    rows, columns = np.nonzero(region.mask)
    weight = _step(region.depth[region.mask] * 2)
    way = rng.integers(3)
    if way == 0:
        angle = float(rng.uniform(0, 2 * math.pi))
        reach = np.float32(rng.uniform(0.4, 0.9) * math.sqrt(len(y) / math.pi)) * weight
        dy, dx = reach * np.float32(math.sin(angle)), reach * np.float32(math.cos(angle))
    elif way == 1:
        twist = np.float32(rng.uniform(0.8, 2.2) * rng.choice([-1.0, 1.0])) * weight
        cos, sin = np.cos(twist), np.sin(twist)
        dy, dx = y * cos + x * sin - y, x * cos - y * sin - x
    else:
        factor = np.float32(rng.choice([-0.7, 1.0])) * weight
        dy, dx = factor * y, factor * x
    top, left = region.box[0].start, region.box[1].start
    content = _sampled(scene.image, top + rows + dy, left + columns + dx)
    return Paint(content, np.ones_like(weight))


def paint_spot(scene: Scene, region: Region, rng: np.random.Generator) -> Paint:
    """The fall-back, seen on any image: each value moves towards or past the middle grey. Ours."""
    under = _under(scene, region)
    step = np.float32(max(40.0, 1.5 * scene.config.min_change))
    content = under + np.where(under < 128, step, -step)
    return Paint(content, np.ones(len(under), dtype=np.float32))


def _under(scene: Scene, region: Region) -> Field:
    """The original pixels (n, 3) of a region."""
    return scene.image[region.box][region.mask].astype(np.float32)


def _texture(scene: Scene, shape: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A texture uint8 (h, w, 3) of the source that the configuration asks for."""
    given = {"textures": scene.textures, "others": scene.others}
    source = scene.config.source
    if source == "auto":
        source = next((name for name in ("textures", "others") if len(given[name])), "procedural")
    if source == "procedural":
        return draw_texture(shape, rng)
    if not len(given[source]):
        raise ConfigError(f"source is {source!r}, but no {source} are given: pass {source}=")
    return augment(cutting(_any_of(given[source], rng), shape, rng), rng)


def _any_of(images: Sequence[Pixels], rng: np.random.Generator) -> Pixels:
    image = images[int(rng.integers(len(images)))]
    check_rgb(image)
    return image


def _strength(scene: Scene, rng: np.random.Generator) -> np.float32:
    """What is left for the defect of a random beta."""
    return np.float32(1 - rng.uniform(*scene.config.beta))


def _sign(level: float, rng: np.random.Generator) -> float:
    """-1 for darker, 1 for brighter: what can be seen on grey `level`, or either in the middle."""
    if 70 <= level <= 185:
        return float(rng.choice([-1.0, 1.0]))
    return 1.0 if level < 70 else -1.0


def _feathered(region: Region) -> Field:
    """Opacity (n,): 1 inside, about a half on the outline, so that no hard saw edge shows."""
    soft = ndimage.uniform_filter(region.mask.astype(np.float32), 3, mode="constant")
    return np.asarray(soft[region.mask], dtype=np.float32)


def _from_middle(region: Region) -> tuple[Field, Field]:
    """Rows and columns (n,) of a region's pixels, counted from their mean."""
    rows, columns = np.nonzero(region.mask)
    y, x = rows - rows.mean(), columns - columns.mean()
    return y.astype(np.float32), x.astype(np.float32)


def _sampled(image: Pixels, rows: NDArray[Any], columns: NDArray[Any]) -> Field:
    """The image uint8 (H, W, 3) at fractional places (n,), mirrored beyond its edges: (n, 3)."""
    at = np.stack([rows, columns])
    bands = [
        ndimage.map_coordinates(image[..., band], at, np.float32, order=1, mode="mirror")
        for band in range(3)
    ]
    return np.stack(bands, axis=-1)


def _step(x: Field) -> Field:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    t = np.clip(x, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)
