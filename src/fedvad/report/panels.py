"""The scored images of a report, and what every picture of them needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvad.data.masks import read_masks
from fedvad.errors import ImageError
from fedvad.evaluation.judgement import Outcome, is_borderline, outcome
from fedvad.report.overlay import map_range


@dataclass(frozen=True)
class Panel:
    """One scored image: label 0 normal, 1 anomalous; `map` (h, w) float32 as the score's unit.

    An image is flagged when score > threshold; without threshold (None) it is not judged.
    """

    site: str
    path: Path
    defect: str
    label: int
    score: float
    threshold: float | None
    map: NDArray[np.floating[Any]]
    mask: Path | None
    other_masks: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All ground-truth masks of the image, which are drawn as one."""
        return () if self.mask is None else (self.mask, *self.other_masks)

    @property
    def ratio(self) -> float | None:
        """Score over threshold; None without a positive threshold."""
        if self.threshold is None or not 0 < self.threshold < math.inf:
            return None
        return self.score / self.threshold

    @property
    def outcome(self) -> Outcome:
        """What its threshold says of it; see `evaluation.judgement`."""
        return outcome(self.label, self.score, self.threshold)

    @property
    def borderline(self) -> bool:
        """Whether its score lies close to the threshold; see `evaluation.judgement`."""
        return is_borderline(self.score, self.threshold)

    @property
    def file(self) -> str:
        """Its name with its folder's: in every folder there may be a 000.png."""
        return f"{self.path.parent.name}/{self.path.name}".lstrip("/")


def display_ranges(panels: Sequence[Panel]) -> dict[str, tuple[float, float]]:
    """The display range of each site's maps, by its normal images (`map_range`).

    A site without normal images takes the range of all normal ones; if there are none, of all its
    maps. So pass all test images, not a selection.
    """
    normal = [panel.map for panel in panels if not panel.label]
    ranges = {}
    for site in {panel.site for panel in panels}:
        own = [panel for panel in panels if panel.site == site]
        maps = [panel.map for panel in own if not panel.label] or normal
        ranges[site] = map_range(maps or [panel.map for panel in own])
    return ranges


def drawn_mask(panel: Panel, width: int, height: int) -> NDArray[np.bool_] | None:
    """Its ground truth (height, width) for a small picture; None without a readable one."""
    from PIL import Image

    if not panel.masks:
        return None
    try:
        grey = Image.fromarray(read_masks(panel.masks).astype(np.uint8) * 255)
    except ImageError:
        return None
    # averaged, and any trace counts: by nearest neighbour a thin crack would fall apart
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 0


def score_in_words(score: float, threshold: float | None) -> str:
    """A score in thresholds, or as it is without a positive one.

    >>> score_in_words(0.9981, 1.0), score_in_words(3.0, 2.0), score_in_words(0.1234, None)
    ('0.998 × threshold', '1.50 × threshold', 'score 0.123')
    """
    if threshold is None or not 0 < threshold < math.inf:
        return f"score {score:.3g}"
    ratio = score / threshold
    # near 1, two decimals would round a missed 0.998 to the threshold itself
    digits = 3 if abs(ratio - 1) < 0.005 else 2 if abs(ratio) < 10 else 0
    return f"{ratio:.{digits}f} × threshold"
