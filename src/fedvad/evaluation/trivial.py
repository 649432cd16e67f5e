"""How far four plain numbers of an image get on a set: a check for confounded test images.

Where the mean grey level alone separates normal images from defects, a detector's AUROC may say
more about the lamp than about the defects. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.evaluation.metrics import image_auroc

__all__ = ["STATISTICS", "trivial_aurocs", "trivial_statistics"]

STATISTICS = ("brightness", "contrast", "sharpness", "colour")
_MARGIN = 0.15  # distance of a mean AUROC from chance that makes a set confounded
_DEVIATIONS = 3.0  # and how many standard errors of chance it must be


def trivial_statistics(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Brightness, contrast, sharpness and colour of an image.

    Parameters
    ----------
    image : (h, w, 3) uint8
        RGB.

    Returns
    -------
    (4,) float64
        Mean and standard deviation of the grey level, its mean absolute gradient, and the mean
        distance of the largest from the smallest channel; all in grey levels, 0 to 255.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.trivial import trivial_statistics
    >>> trivial_statistics(np.full((8, 8, 3), 100, np.uint8)).tolist()
    [100.0, 0.0, 0.0, 0.0]
    """
    pixels = image.astype(np.float64)
    grey = pixels.mean(axis=2)
    gradients = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1]
    return np.array(
        [
            grey.mean(),
            grey.std(),
            np.mean(gradients) if gradients else 0.0,
            (pixels.max(axis=2) - pixels.min(axis=2)).mean(),
        ]
    )


def trivial_aurocs(
    sites: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]],
) -> dict[str, Any]:
    """Image AUROC of each statistic used as a score, and which of them confound the set.

    Parameters
    ----------
    sites : mapping of site to ((n, 4) float64, (n,) bool)
        `trivial_statistics` of the test images, and which of these are defects.

    Returns
    -------
    dict
        statistics: {name: {"mean", "sites"}}, where an AUROC below 0.5 means that defects have the
        smaller value; sites with one class only have none. confounded: names of the statistics
        whose AUROC differs from 0.5 by more than 0.15 and three standard errors of chance, in
        the mean over sites, whichever side each site lies on.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.trivial import trivial_aurocs
    >>> values = np.zeros((40, 4))
    >>> values[20:, 0] = 1  # every defect is brighter
    >>> found = trivial_aurocs({"alder": (values, np.arange(40) >= 20)})
    >>> found["statistics"]["brightness"]["mean"], found["confounded"]
    (1.0, ['brightness'])
    """
    statistics: dict[str, Any] = {}
    confounded = []
    for column, name in enumerate(STATISTICS):
        found = {}
        deviations = []
        for site, (values, labels) in sites.items():
            auroc = image_auroc(values[:, column], labels)
            if auroc is not None:
                found[site] = auroc
                deviations.append((abs(auroc - 0.5), _error_of_chance(labels)))
        mean = float(np.mean(list(found.values()))) if found else None
        statistics[name] = {"mean": mean, "sites": found}
        if deviations:
            distance, error = (np.mean(part) for part in zip(*deviations, strict=True))
            if distance > max(_MARGIN, _DEVIATIONS * error):
                confounded.append(name)
    return {"statistics": statistics, "confounded": confounded}


def _error_of_chance(labels: npt.NDArray[np.bool_]) -> float:
    """Standard error of an AUROC of 0.5 (Mann-Whitney)."""
    anomalous = int(labels.sum())
    normal = len(labels) - anomalous
    return float(np.sqrt((normal + anomalous + 1) / (12 * normal * anomalous)))
