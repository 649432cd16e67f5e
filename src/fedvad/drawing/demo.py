"""A demo set without downloads: a few plants weave one product, each under its own conditions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedvad.drawing.camera import Camera, photograph
from fedvad.drawing.cloth import CLOTHS, Cloth
from fedvad.drawing.flaws import DEFECTS

_NAMES = ("alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel")
# A plant weaves three variants, one of them most. The choice turns from plant to plant: each plant
# alone has seen a part of what is normal, all plants together have seen all of it.
_SHARES = (0.45, 0.33, 0.22)


def _camera(plant: int, seed: int) -> Camera:
    """The fixed conditions of one plant."""
    rng = np.random.default_rng((seed, 7, plant))
    warmth = rng.uniform(-0.07, 0.07)
    return Camera(
        azimuth=float(-2.2 + rng.uniform(-0.25, 0.25)),
        elevation=float(rng.uniform(0.75, 1.0)),
        tint=(1.0 + warmth, 1.0, 1.0 - warmth),
        gain=float(rng.uniform(0.9, 1.12)),
        contrast=float(rng.uniform(0.9, 1.1)),
        blur=float(rng.uniform(0.25, 0.45)),
        noise=float(rng.uniform(0.006, 0.014)),
        vignette=float(rng.uniform(0.05, 0.25)),
        wear=float(rng.uniform(0.1, 0.35)),
    )


def _woven(plant: int, count: int) -> list[Cloth]:
    """What the plant weaves for training: `count` variants in fixed, uneven shares."""
    edges = np.cumsum(_SHARES)
    ranks = np.searchsorted(edges, (np.arange(count) + 0.5) / max(count, 1))
    return [CLOTHS[(plant * 3 + int(rank)) % len(CLOTHS)] for rank in np.minimum(ranks, 2)]


def write_demo(
    root: Path,
    *,
    plants: int = 4,
    train: int = 24,
    test_normal: int = 24,
    test_defect: int = 24,
    size: int = 128,
    seed: int = 0,
) -> list[str]:
    """Write the demo set in MVTec layout under `root`, one folder per plant; return their names.

    `train`, `test_normal` and `test_defect` count images per plant, `size` is in pixels. Training
    shows each plant a part of the normal variants, its test images show all of them. The same
    arguments give the same bytes. Raises ValueError for counts or sizes that make no set.
    Source: ours.
    """
    if plants < 1 or min(train, test_normal, test_defect) < 0 or size < 32:
        raise ValueError("the demo needs plants >= 1, counts >= 0 and size >= 32")
    names = [_NAMES[p] if p < len(_NAMES) else f"plant{p + 1}" for p in range(plants)]
    for plant, name in enumerate(names):
        camera = _camera(plant, seed)
        folder = Path(root) / name
        for part in ("train/good", "test/good"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for i, cloth in enumerate(_woven(plant, train)):
            picture, _ = photograph(cloth, camera, (seed, plant, 0, i), size=size)
            Image.fromarray(picture).save(folder / "train/good" / f"{i:03d}.png")
        for i in range(test_normal):
            cloth = CLOTHS[i % len(CLOTHS)]
            picture, _ = photograph(cloth, camera, (seed, plant, 1, i), size=size)
            Image.fromarray(picture).save(folder / "test/good" / f"{i:03d}.png")
        for i in range(test_defect):
            kind, turn = DEFECTS[i % len(DEFECTS)], i // len(DEFECTS)
            # The shift by plant and turn lets every defect kind meet every cloth.
            cloth = CLOTHS[(i + plant + turn) % len(CLOTHS)]
            picture, mask = photograph(cloth, camera, (seed, plant, 2, i), size=size, defect=kind)
            for part in ("test", "ground_truth"):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / "test" / kind / f"{turn:03d}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(
                folder / "ground_truth" / kind / f"{turn:03d}_mask.png"
            )
    return names
