"""Endless images without a licence: random fields and shapes, coloured, lit, and photographed.

They are for training networks whose inputs should vary more than any one product does. Image i of
a seed is always the same, whatever was drawn before, and nothing of it comes from a photograph.
Source: ours, after work on learning to see from noise (Baradad et al. 2021) and dead leaves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedvad.drawing.fields import FIELDS, Field, labels, noise
from fedvad.errors import ConfigError

_Colour = NDArray[np.float32]
_GREY = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)


def draw_image(seed: int, index: int, size: int, kind: str | None = None) -> NDArray[np.uint8]:
    """Image `index` of `seed`: uint8 RGB (size, size, 3). kind: one of `KINDS`, None for any.

    Raises `ConfigError` for a size below 16, negative numbers or an unknown kind.
    """
    if size < 16 or seed < 0 or index < 0:
        raise ConfigError("a procedural image needs size >= 16, seed >= 0 and index >= 0")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"no procedural images of kind {kind!r}; choose from {KINDS}")
    rng = np.random.default_rng([seed, index])
    picture = _layer(rng, size, kind)
    if rng.random() < 0.35:
        over = _layer(rng, size, kind)
        share = _mask(rng, size)[..., None]
        picture = picture + (over - picture) * share
    picture = _lit(rng, picture)
    if rng.random() < 0.5:
        picture = _nearer(rng, picture)
    return _photographed(rng, picture)


def _layer(rng: np.random.Generator, n: int, kind: str | None) -> _Colour:
    kind = str(rng.choice(KINDS, p=_SHARES)) if kind is None else kind
    if kind == "leaves":
        return _leaves(rng, n)
    if kind == "objects":
        return _objects(rng, n)
    field = FIELDS[kind](rng, n)
    if kind not in _SPARSE or rng.random() < 0.2:
        return _coloured(rng, field)
    ground = _coloured(rng, FIELDS[str(rng.choice(_FLAT))](rng, n))
    over = _coloured(rng, field)
    share = np.clip(2 * field, 0, 1)[..., None]
    return np.asarray(ground + (over - ground) * share, dtype=np.float32)


def _leaves(rng: np.random.Generator, n: int) -> _Colour:
    """Dead leaves: each with a colour, and some with a texture of their own."""
    count = int(rng.integers(60, 300))
    smallest = float(rng.uniform(0.012, 0.05))
    found = labels(rng, 2 * n, count, smallest, float(rng.uniform(0.2, 0.5)))
    colours = _palette(rng, int(rng.integers(3, 9)))
    tones = colours[rng.integers(0, len(colours), count + 1)]
    tones = tones + rng.normal(0, 0.06, tones.shape).astype(np.float32)
    amount = (rng.uniform(0, 1, count + 1) ** 2 * rng.uniform(0, 1.6)).astype(np.float32)
    grain = noise(rng, n, float(rng.uniform(0.3, 1.4)), float(rng.uniform(1, 5)))
    strength = np.take(amount, found[::2, ::2]) * (grain - np.float32(0.5))
    flat = _halved(np.take(tones, found, axis=0))
    return np.asarray(flat * (1 + strength[..., None]), dtype=np.float32)


def _objects(rng: np.random.Generator, n: int) -> _Colour:
    """A few rounded things on a ground, each with its texture, shading and shadow."""
    fields = [FIELDS[str(rng.choice(_FLAT))](rng, n) for _ in range(2)]
    picture = _coloured(rng, fields[0]) * np.float32(rng.uniform(0.5, 1))
    turn, drop = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.05) * n
    moved = round(drop * math.sin(turn)), round(drop * math.cos(turn))
    for _ in range(int(rng.integers(1, 4))):
        found = labels(rng, n, int(rng.integers(1, 6)), 0.08, 0.5) > 0
        dome = ndimage.gaussian_filter(found.astype(np.float32), n * 0.035, truncate=2.0)
        shadow = np.roll(dome, moved, (0, 1)) * np.float32(rng.uniform(0, 0.7))
        picture = picture * (1 - shadow[..., None])
        skin = _coloured(rng, fields[1])
        if rng.random() < 0.4:  # nearly plain
            skin = skin * np.float32(0.15) + _palette(rng, 1)[0] * np.float32(0.85)
        relief = _relief(dome, turn + math.pi, n * float(rng.uniform(0.01, 0.05)))
        picture = np.where(found[..., None], skin * relief[..., None], picture)
    return picture


def _coloured(rng: np.random.Generator, field: Field) -> _Colour:
    """A field through a random ramp of 2 to 6 colours, now and then with a second field's hue."""
    colours = _palette(rng, int(rng.integers(2, 7)))
    stops = np.sort(rng.uniform(0, 1, len(colours)))
    bins = np.linspace(0, 1, 256)
    ramp = np.stack([np.interp(bins, stops, colours[:, c]) for c in range(3)], 1)
    picture = np.take(ramp.astype(np.float32), (field * 255).astype(np.int32), axis=0)
    if rng.random() < 0.25:
        hue = noise(rng, len(field), float(rng.uniform(1, 2)))[..., None] - np.float32(0.5)
        picture = picture + hue * rng.normal(0, 0.3, 3).astype(np.float32)
    return picture


def _palette(rng: np.random.Generator, count: int) -> _Colour:
    """Colours (count, 3) around a common hue or of all hues, of a common saturation."""
    hue, spread = rng.uniform(0, 1), rng.choice([0.04, 0.2, 1.0])
    hues = (hue + rng.uniform(-0.5, 0.5, count) * spread)[:, None]
    # from grey to vivid; much of industry is nearly grey
    saturation = rng.uniform(0, 0.9) ** 1.5 * rng.uniform(0.6, 1, (count, 1))
    value = rng.uniform(0.03, 1, (count, 1))
    wheel = np.abs((hues + np.asarray([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return np.asarray(value * (1 - saturation * (1 - np.clip(wheel, 0, 1))), dtype=np.float32)


def _mask(rng: np.random.Generator, n: int) -> Field:
    """Where a second layer lies: blots, shapes, half the picture, or everywhere a little."""
    kind = rng.random()
    if kind < 0.15:
        return np.full((n, n), rng.uniform(0.2, 0.6), dtype=np.float32)
    if kind < 0.5:
        found = (labels(rng, 2 * n, int(rng.integers(1, 12)), 0.05, 0.5) > 0).astype(np.float32)
        return _halved(found[..., None])[..., 0]
    field = noise(rng, n, float(rng.uniform(1.3, 2.5)))
    level, edge = rng.uniform(0.35, 0.65), rng.uniform(0.005, 0.2)
    return np.asarray(np.clip((field - level) / edge + 0.5, 0, 1), dtype=np.float32)


def _lit(rng: np.random.Generator, picture: _Colour) -> _Colour:
    """Light from a side, a spot, and relief: brightness taken for height."""
    n = len(picture)
    turn = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.3:
        height = picture @ _GREY
        picture = picture * _relief(height, turn, n * float(rng.uniform(0.003, 0.03)))[..., None]
    line = np.linspace(-1, 1, n, dtype=np.float32)
    slope = rng.uniform(0, 0.5) * (math.cos(turn) * line[None] + math.sin(turn) * line[:, None])
    cy, cx = rng.uniform(-1, 1, 2)
    away = (line[:, None] - cy) ** 2 + (line[None] - cx) ** 2
    spot = rng.uniform(-0.3, 0.5) * np.exp(-away / rng.uniform(0.2, 2))
    light = np.clip(1 + slope + spot, 0.1, None).astype(np.float32)
    return np.asarray(picture * light[..., None], dtype=np.float32)


def _nearer(rng: np.random.Generator, picture: _Colour) -> _Colour:
    """A part of the picture, enlarged: photographs change little from one pixel to the next."""
    n = len(picture)
    side = max(8, round(n / math.exp(rng.uniform(math.log(1.3), math.log(4)))))
    top, left = rng.integers(0, n - side + 1, 2)
    part = picture[top : top + side, left : left + side]
    return np.asarray(ndimage.zoom(part, (n / side, n / side, 1), order=2), dtype=np.float32)


def _photographed(rng: np.random.Generator, picture: _Colour) -> NDArray[np.uint8]:
    """Blur or sharpening, exposure, contrast, tint and sensor noise; grey pictures, too."""
    n = len(picture)
    if rng.random() < 0.35:
        sigma = n * float(rng.uniform(0.002, 0.01))
        picture = ndimage.gaussian_filter(picture, (sigma, sigma, 0), truncate=2.5)
    if rng.random() < 0.3:  # many cameras of factories and hospitals see no colour
        picture = np.repeat((picture @ _GREY)[..., None], 3, 2)
    else:
        picture = picture * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    grey = picture @ _GREY
    mean, spread = float(grey.mean()), float(grey.std())
    # pictures too flat or too harsh to tell anything are brought to a usual contrast
    wanted = float(np.clip(spread, *np.sort(rng.uniform(0.03, 0.3, 2))))
    level = float(np.clip(mean, 0.2, 0.75) + rng.normal(0, 0.08))
    picture = (picture - mean) * min(wanted / max(spread, 1e-4), 6) + level
    picture = np.clip(picture, 0, 1)
    if rng.random() < 0.4:
        picture = picture ** np.float32(rng.uniform(0.6, 1.6))
    if rng.random() < 0.5:
        grain = rng.standard_normal((n, n, 1), dtype=np.float32)
        picture = picture + grain * np.float32(0.04 * rng.uniform() ** 2)
    return np.asarray(np.clip(np.rint(picture * 255), 0, 255), dtype=np.uint8)


def _relief(height: Field, turn: float, strength: float) -> Field:
    """Brightness (n, n) of a relief lit from direction `turn`; 1 on a flat one."""
    gy, gx = np.gradient(height)
    slope = (gx * math.cos(turn) + gy * math.sin(turn)) * strength
    return np.asarray(np.clip(1 + 2 * slope, 0.15, 2.2), dtype=np.float32)


def _halved(picture: NDArray[np.float32]) -> _Colour:
    """(2 n, 2 n, c) averaged to (n, n, c)."""
    total = picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2]
    return np.asarray(total * np.float32(0.25), dtype=np.float32)


_SPARSE = ("flames", "strokes")  # little but ground: what they are drawn on is another field
_FLAT = ("spectrum", "clouds", "stripes", "weave", "cells")
_WEIGHTS = {"leaves": 5.0, "objects": 3.0, "spectrum": 2.0, "clouds": 2.0, "flames": 1.5}
KINDS: tuple[str, ...] = ("leaves", "objects", *FIELDS)
_SHARES = np.asarray([_WEIGHTS.get(kind, 1.5) for kind in KINDS])
_SHARES = _SHARES / _SHARES.sum()
