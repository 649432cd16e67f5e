"""A small drawn scene: two kinds of ground, and four odd pixels."""

from __future__ import annotations

import numpy as np

from fedvad.data.cubes.scene import Scene

ODD = ((5, 6), (5, 7), (14, 20), (22, 4))


def drawn_scene(*, height: int = 28, width: int = 30, bands: int = 40, seed: int = 0) -> Scene:
    """Smooth mixtures of two spectra with noise; the odd pixels hold a third one by half."""
    rng = np.random.default_rng(seed)
    waves = np.linspace(0, 1, bands)
    ground = np.stack([0.3 + 0.4 * waves, 0.6 - 0.3 * waves + 0.1 * np.sin(9 * waves)])
    share = (1 + np.sin(np.arange(height)[:, None] / 5) * np.cos(np.arange(width) / 7)) / 2
    cube = np.stack([share, 1 - share], axis=2) @ ground
    mask = np.zeros((height, width), np.bool_)
    for row, column in ODD:
        mask[row, column] = True
    cube[mask] = 0.5 * cube[mask] + 0.5 * (waves > 0.5)
    cube += rng.normal(0, 0.01, cube.shape)
    return Scene("field", (1000 * cube).astype(np.float32), mask)
