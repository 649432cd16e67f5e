"""The camera of the demo: it lights a piece of cloth and takes its picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedvad.drawing.cloth import SPAN, Array, Cloth, Scene, blur, build, grid, lay, shrink
from fedvad.drawing.flaws import DEFECTS, ON_SCENE, yarn


@dataclass(frozen=True)
class Camera:
    """How one plant sees and wears its cloth: light (radians), colour, optics, sensor, wear."""

    azimuth: float
    elevation: float
    tint: tuple[float, float, float]
    gain: float
    contrast: float
    blur: float
    noise: float
    vignette: float
    wear: float


def _light(scene: Scene, camera: Camera, n: int) -> Array:
    """Shade the scene: diffuse and glossy light, and darkness in the gaps; linear RGB (n, n, 3)."""
    height = blur(scene.height, 0.45, n)
    pixel = np.float32(SPAN / n)
    gy = ndimage.correlate1d(height, [-0.5, 0, 0.5], axis=0, mode="nearest") / pixel
    gx = ndimage.correlate1d(height, [-0.5, 0, 0.5], axis=1, mode="nearest") / pixel
    lx = math.cos(camera.elevation) * math.cos(camera.azimuth)
    ly = math.cos(camera.elevation) * math.sin(camera.azimuth)
    lz = math.sin(camera.elevation)
    slope = gx * lx + gy * ly
    norm = 1 / np.sqrt(gx * gx + gy * gy + 1)
    diffuse = np.maximum((lz - slope) * norm, 0) * (1 / lz)
    # Half way between light and a viewer straight above.
    shine = np.maximum((lz + 1 - slope) * norm * (1 / math.sqrt(2 + 2 * lz)), 0)
    shine = shine**4
    shine = (shine * shine * shine) ** 2
    # The neighbourhood's mean height is smooth: half resolution is enough for it.
    around = blur(shrink(height), 2.4, n // 2).repeat(2, 0).repeat(2, 1)
    depth = height - around
    open_sky = np.clip(0.78 + 0.22 * depth, 0.25, 1.15)
    light = (0.30 + 0.70 * diffuse) * open_sky
    return np.asarray(
        scene.albedo * light[..., None] + (scene.gloss * shine)[..., None], dtype=np.float32
    )


def _expose(
    linear: Array, camera: Camera, rng: np.random.Generator, size: int
) -> NDArray[np.uint8]:
    """Take the picture: optics, uneven light, sensor; (size, size, 3) uint8."""
    seen = shrink(linear)
    sigma = camera.blur * size / SPAN
    seen = ndimage.gaussian_filter(seen, (sigma, sigma, 0), mode="nearest", truncate=3.0)
    y, x = grid(size)
    radius = ((x - SPAN / 2) ** 2 + (y - SPAN / 2) ** 2) / (SPAN**2 / 2)
    # A soft patch of light that wanders from picture to picture is normal.
    px, py = rng.uniform(0, SPAN, 2)
    spot = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 38.0**2))
    falloff = (1 - camera.vignette * radius) * (1 + rng.uniform(0, 0.16) * spot)
    gain = camera.gain * rng.normal(1, 0.03)
    tint = np.asarray(camera.tint, dtype=np.float32)
    seen = np.clip(seen * (falloff * gain)[..., None] * tint, 0, None) ** (1 / 2.2)
    seen = 0.5 + camera.contrast * (seen - 0.5)
    # Photon noise grows with the light.
    sigma_map = camera.noise * np.sqrt(0.3 + np.clip(seen, 0, 1))
    seen = seen + sigma_map * rng.standard_normal(seen.shape)
    return np.asarray(np.clip(np.rint(seen * 255), 0, 255), dtype=np.uint8)


def photograph(
    cloth: Cloth,
    camera: Camera,
    seed: tuple[int, ...],
    *,
    size: int,
    defect: str | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Picture (size, size, 3) of one piece of cloth and mask (size, size) of its defect.

    The same seed with and without a defect gives the same piece, light and sensor noise, so the
    two pictures differ by the defect alone. Raises KeyError for an unknown defect. Source: ours.
    """
    if defect is not None and defect not in DEFECTS:
        raise KeyError(f"unknown defect {defect!r}; one of {', '.join(DEFECTS)}")
    n = 2 * size
    piece, flaw, sensor = (np.random.default_rng((*seed, k)) for k in range(3))
    weave = lay(cloth, camera.wear, piece, n)
    fuzz = piece.standard_normal((n, n)).astype(np.float32)
    aim = camera.azimuth + piece.normal(0, 0.05)
    severity = float(flaw.uniform(0.2, 1.0))
    touched = np.zeros((n, n), dtype=np.float32)
    if defect == "yarn":
        touched = yarn(weave, flaw, n, severity)
    scene = build(weave, fuzz)
    if defect is not None and defect != "yarn":
        touched = ON_SCENE[defect](scene, flaw, n, severity)
    linear = _light(scene, replace(camera, azimuth=aim), n)
    picture = _expose(linear, camera, sensor, size)
    return picture, np.asarray(shrink(touched) > 0.2)
