"""Does an exported model score like the detector it was made of?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.images import resize_rgb
from fedvad.detectors.feddymem import MemoryDetector
from fedvad.detectors.scoring import MemoryScorer
from fedvad.half import to_float

__all__ = ["drawn_images", "largest_difference"]

_Images = npt.NDArray[np.uint8]
_Run = Callable[[Path, _Images], list[npt.NDArray[Any]]]


def largest_difference(
    run: _Run,
    contents: Mapping[str, bytes],
    model_file: str,
    detector: MemoryDetector,
    images: _Images,
) -> dict[str, float]:
    """Largest relative difference of `score` and `map` on (b, S, S, 3) images, by output.

    run: gives the outputs of a model file for images. contents: the model's files by name,
    `model_file` the one to load. A map's difference is relative to its highest cell.
    """
    assert detector.bank_ is not None
    assert detector.generator_ is not None
    with tempfile.TemporaryDirectory(prefix="fedvad-export-") as folder:
        for file, content in contents.items():
            (Path(folder) / file).write_bytes(content)
        scores, maps = run(Path(folder) / model_file, images)[:2]
    scorer = MemoryScorer(detector.bank_, detector.scoring)
    worst = {"score": 0.0, "map": 0.0}
    for i, descriptors in enumerate(detector.extractor.describe(images)):
        score, map_ = scorer.score(detector.generator_(to_float(descriptors)))
        for name, made, wanted in (("score", scores[i], score), ("map", maps[i], map_)):
            gap = np.abs(np.asarray(made, np.float64) - wanted).max() / np.abs(wanted).max()
            worst[name] = float(np.fmax(worst[name], gap)) if np.isfinite(gap) else float("inf")
    return worst


def drawn_images(size: int) -> _Images:
    """(3, size, size, 3) coarse noise: nothing of anybody's data, and no cell like another."""
    rng = np.random.default_rng(0)
    return np.stack(
        [resize_rgb(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), size) for _ in range(3)]
    )
