"""What goes wrong with woven cloth: the defects of the demo.

A defect of `severity` 0 to 1 changes the weave or scene in place and returns how far it touched
each point (n, n), 0 to 1. Lengths are in cloth units (`cloth`).
"""

from __future__ import annotations

import math

import numpy as np

from fedvad.drawing.cloth import SPAN, Array, Scene, Weave, blur, grid, smooth, step


def _curve(
    rng: np.random.Generator, n: int, length: float, bend: float, heading: float
) -> tuple[Array, Array]:
    """Distance (n, n) to a bent line inside the picture, and position along it, 0 to 1."""
    y, x = grid(n)
    steps = 18
    turn = np.cumsum(rng.normal(0, bend, steps)) + heading
    xs = np.cumsum(np.cos(turn)) * length / steps
    ys = np.cumsum(np.sin(turn)) * length / steps
    cx, cy = rng.uniform(0.3, 0.7, 2) * SPAN
    px, py = (xs - xs.mean() + cx).tolist(), (ys - ys.mean() + cy).tolist()
    best = np.full((n, n), np.inf, dtype=np.float32)
    place = np.zeros((n, n), dtype=np.float32)
    for k in range(steps - 1):
        dx, dy = px[k + 1] - px[k], py[k + 1] - py[k]
        norm = max(dx * dx + dy * dy, 1e-9)
        t = np.clip(((x - px[k]) * dx + (y - py[k]) * dy) / norm, 0, 1)
        d = (x - px[k] - t * dx) ** 2 + (y - py[k] - t * dy) ** 2
        closer = d < best
        best = np.where(closer, d, best)
        place = np.where(closer, (t + k) / (steps - 1), place)
    return np.sqrt(best), place


def _blob(rng: np.random.Generator, n: int, radius: float, ragged: float) -> Array:
    """Signed distance-like field (n, n), negative inside an irregular spot."""
    y, x = grid(n)
    cx, cy = (rng.uniform(0.2, 0.8, 2) * SPAN).tolist()
    squash, turn = float(rng.uniform(0.7, 1.0)), float(rng.uniform(0, math.pi))
    u = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
    v = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
    reach = np.hypot(u * squash, v / squash)
    # The outline is bounded, so that a ragged spot stays one spot of about its radius.
    wobble = np.clip(smooth(rng, n, 14), -1.5, 1.5) * ragged * radius
    return np.asarray(reach + wobble - radius, dtype=np.float32)


def yarn(weave: Weave, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Missing or thick pick: one weft yarn changes its radius over a stretch."""
    cy, cx = (rng.uniform(0.3, 0.7, 2) * (n - 1)).astype(int)
    number = int(weave.weft_at[cy, cx])
    offset = weave.weft_at - number - 0.5
    away = np.abs(weave.warp_at - weave.warp_at[cy, cx]) * weave.cloth.pitch[0]
    half = 12 + 30 * severity
    stretch = (1 - step((away - half) / 6)) * (np.abs(offset) < 0.5)
    if rng.random() < 0.5:
        weave.weft_radius = weave.weft_radius * (1 - (0.35 + 0.65 * severity) * stretch)
    else:
        weave.weft_radius = weave.weft_radius * (1 + (0.25 + 0.55 * severity) * stretch)
        weave.weft_shade = weave.weft_shade * (1 + 0.12 * stretch)
    return np.asarray(stretch, dtype=np.float32)


def _hole(scene: Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Hole: yarns end in a frayed, raised rim, the dark ground shows."""
    inside = _blob(rng, n, 2.2 + 5.5 * severity, 0.30)
    gone = 1 - step((inside + 0.8) / 1.6)
    rim = step((inside + 1.0) / 1.6) * (1 - step((inside - 0.6) / 1.6))
    tuft = 0.5 + 0.5 * np.clip(smooth(rng, n, 48), -1, 1)
    frayed: Array = np.asarray(rim * tuft, dtype=np.float32)
    scene.height = scene.height * (1 - gone) - 3.2 * gone + 1.1 * frayed
    scene.albedo = scene.albedo * (1 - 0.85 * gone[..., None]) * (1 + 0.2 * frayed[..., None])
    return np.asarray(np.maximum(gone, rim), dtype=np.float32)


def _cut(scene: Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Cut: a thin slit that tapers out, its lips turned up."""
    far, place = _curve(rng, n, 14 + 34 * severity, 0.06, rng.uniform(0, math.pi))
    taper = np.sqrt(np.clip(4 * place * (1 - place), 0, 1))
    width: Array = np.asarray((0.5 + 0.8 * severity) * taper, dtype=np.float32)
    slit = 1 - step((far - width + 0.5) / 1.0)
    lips = (1 - step((far - width - 0.5) / 1.3)) * (1 - slit)
    scene.height = scene.height - 2.5 * slit + 0.8 * lips
    scene.albedo = scene.albedo * (1 - 0.75 * slit[..., None])
    return np.asarray(np.maximum(slit, lips), dtype=np.float32)


def _stain(scene: Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Oil stain: the yarns stay, soaked darker and warmer, darkest at the drying edge."""
    inside = _blob(rng, n, 7 + 12 * severity, 0.22)
    wet = 1 - step((inside + 1.5) / 3.0)
    edge = wet * (1 - step(-inside / 4.0))
    soak = (0.24 + 0.34 * severity) * (wet + 0.5 * edge)
    loss = np.asarray([0.75, 0.95, 1.2], dtype=np.float32)
    left: Array = np.asarray(1 - np.clip(soak[..., None] * loss, 0, 0.9), dtype=np.float32)
    scene.albedo = scene.albedo * left
    scene.gloss = scene.gloss + 0.15 * wet
    return wet


def _fibre(scene: Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Foreign fibre: a thin curled thread on top of the cloth; it throws its shadow itself."""
    far, place = _curve(rng, n, 30 + 40 * severity, 0.22, rng.uniform(0, 2 * math.pi))
    thick = 0.55 + 0.45 * severity
    body = 1 - step((far - thick + 0.4) / 0.8)
    # The thread dives under a yarn here and there.
    body = body * step(2.5 + 2.5 * np.sin(place * 21 + rng.uniform(0, 6)) + severity)
    colours = np.asarray(
        [[0.75, 0.72, 0.66], [0.05, 0.05, 0.06], [0.45, 0.10, 0.10], [0.12, 0.22, 0.42]],
        dtype=np.float32,
    )
    colour = colours[int(rng.integers(len(colours)))]
    top = blur(scene.height, 2.0, n) + 1.2 + np.sqrt(np.maximum(thick**2 - far**2, 0))
    scene.height = scene.height * (1 - body) + top * body
    scene.albedo = scene.albedo * (1 - body[..., None]) + colour * body[..., None]
    return body


def _melt(scene: Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Heat damage: yarns sink into one another, colours run, the spot shines."""
    inside = _blob(rng, n, 6 + 8 * severity, 0.2)
    hot = (1 - step((inside + 1.2) / 2.4)) * (0.65 + 0.35 * severity)
    flat = blur(scene.height, 2.6, n)
    scene.height = scene.height + (flat - scene.height) * hot
    for band in range(3):
        run = blur(np.ascontiguousarray(scene.albedo[..., band]), 1.8, n)
        scene.albedo[..., band] += (run * 0.95 - scene.albedo[..., band]) * hot
    scene.gloss = scene.gloss + 0.25 * hot
    return hot


# Those drawn on the built cloth; `yarn` comes before, it changes the weave.
ON_SCENE = {"hole": _hole, "cut": _cut, "stain": _stain, "fibre": _fibre, "melt": _melt}
DEFECTS: tuple[str, ...] = ("hole", "cut", "stain", "yarn", "fibre", "melt")
