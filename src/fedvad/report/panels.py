"""The scored images of a report, and the choice of those that tell most about the detector."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvad.errors import ConfigError, DataError

__all__ = ["BORDER", "CLEAR", "FAINT", "GROUPS", "NEAR", "NORMAL", "Panel", "choose_panels"]

# The four groups of the sheet, in order, by name.
CLEAR, FAINT, NEAR, NORMAL = GROUPS = (
    "clearest defects",
    "missed or faintest defects",
    "borderline",
    "false alarms or highest-scoring normals",
)
BORDER = 0.2  # borderline: within this share of the threshold


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
    def verdict(self) -> str | None:
        """ "caught", "missed", "false alarm" or "passed"; None without a threshold."""
        if self.threshold is None:
            return None
        if self.score > self.threshold:
            return "caught" if self.label else "false alarm"
        return "missed" if self.label else "passed"


def choose_panels(panels: Iterable[Panel], *, per_group: int = 4) -> dict[str, list[Panel]]:
    """Choose at most `per_group` telling images for each of `GROUPS`; no image appears twice.

    * clearest defects: anomalous images with the highest score / threshold, never a missed one;
    * missed or faintest defects: those with the lowest, missed ones first;
    * false alarms or highest-scoring normals: normal images with the highest, alarms first;
    * borderline: of the images left, of either class, those closest to their threshold and no
      further than 20 % from it.

    The first two take turns, so few defects are shared out between them. Within a group sites take
    turns; where only some sites have missed defects (or alarms) these come first, but no site
    takes more than half a group while another has an image to show. Images without threshold
    follow those with one, by bare score. The order of `panels` does not matter.
    Raises ConfigError for per_group < 1, DataError for a score that is not finite.
    """
    if per_group < 1:
        raise ConfigError(f"per_group is {per_group}; show at least 1 image per group")
    pool = sorted(panels, key=lambda panel: (panel.site, str(panel.path)))
    for panel in pool:
        if not math.isfinite(panel.score):
            raise DataError(f"the score of {panel.path} is {panel.score}; mend the detector")
    anomalous = [panel for panel in pool if panel.label]
    normal = [panel for panel in pool if not panel.label]
    clear, faint, alarms, near = (_Group(per_group) for _ in GROUPS)

    taking = True
    while taking:
        caught = [panel for panel in anomalous if panel.verdict != "missed"]
        taking = clear.take(caught, anomalous, _highest)
        taking = faint.take(anomalous, anomalous, _lowest) or taking
    while alarms.take(normal, normal, _highest):
        pass
    rest = [panel for panel in anomalous + normal if _distance(panel) <= BORDER]
    while near.take(rest, rest, lambda panel: (0, False, _distance(panel))):
        pass
    return {
        CLEAR: sorted(clear.chosen, key=_highest),
        FAINT: sorted(faint.chosen, key=_lowest),
        NEAR: sorted(near.chosen, key=_distance),
        NORMAL: sorted(alarms.chosen, key=_highest),
    }


class _Group:
    """Fills one group of the sheet, fair to the sites."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.chosen: list[Panel] = []
        self._taken: Counter[str] = Counter()

    def take(
        self,
        candidates: list[Panel],
        pool: list[Panel],
        order: Callable[[Panel], tuple[Any, ...]],
    ) -> bool:
        """Move the best candidate from the pool into the group; False when full or none is left.

        `order` gives (tier, ...), smallest first. Sorting is stable, so ties keep the pool's order.
        """
        if len(self.chosen) >= self.size or not candidates:
            return False

        def rank(panel: Panel) -> tuple[Any, ...]:
            tier, *rest = order(panel)
            taken = self._taken[panel.site]
            return (2 * taken >= self.size, tier, taken, *rest)

        best = min(candidates, key=rank)
        # By identity: panels hold arrays, whose == is not a truth value.
        for items in (pool, candidates) if candidates is not pool else (pool,):
            del items[next(i for i, panel in enumerate(items) if panel is best)]
        self.chosen.append(best)
        self._taken[best.site] += 1
        return True


def _strength(panel: Panel) -> float:
    return panel.score if panel.ratio is None else panel.ratio


def _highest(panel: Panel) -> tuple[int, bool, float]:
    return (int(panel.verdict != "false alarm"), panel.ratio is None, -_strength(panel))


def _lowest(panel: Panel) -> tuple[int, bool, float]:
    return (int(panel.verdict != "missed"), panel.ratio is None, _strength(panel))


def _distance(panel: Panel) -> float:
    return math.inf if panel.ratio is None else abs(panel.ratio - 1)
