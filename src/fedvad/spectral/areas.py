"""The figures of hyperspectral anomaly detection: areas AUC1 to AUC5 under its ROC curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedvad.data.cubes.scene import Cube, Mask
from fedvad.errors import DataError
from fedvad.evaluation.metrics import average_precision, image_auroc

__all__ = ["Areas", "areas"]


@dataclass(frozen=True)
class Areas:
    """How well a map separates anomalies from background.

    Attributes
    ----------
    auc1 : float
        Area under detections against false alarms, in [0, 1]: the usual AUROC.
    auc2, auc3 : float
        Areas under false alarms, and under detections, against the threshold; the map's range is
        [0, 1]. One bright outlier changes both.
    auc4 : float
        auc1 + auc3 - auc2.
    auc5 : float or None
        auc3 / auc2; None where auc2 is 0.
    ap : float
        Average precision, which shows false alarms that AUC1 hides where anomalies are few.
    """

    auc1: float
    auc2: float
    auc3: float
    ap: float

    @property
    def auc4(self) -> float:
        return self.auc1 + self.auc3 - self.auc2

    @property
    def auc5(self) -> float | None:
        return self.auc3 / self.auc2 if self.auc2 else None


def areas(
    scores: Cube, mask: Mask, *, integration: Literal["trapezoid", "exact"] = "trapezoid"
) -> Areas | None:
    """AUC1 to AUC5 and average precision of a map.

    Parameters
    ----------
    scores : (h, w) float array
        Anomaly map; higher is more anomalous.
    mask : (h, w) bool array
        Anomalous pixels.
    integration : {"trapezoid", "exact"}, default="trapezoid"
        Over thresholds, for auc2 and auc3: trapezoids between the scores that occur, as published
        tables have them, or the exact integral of the steps. With few anomalies auc3 is up to 0.04
        higher by trapezoids.

    Returns
    -------
    Areas or None
        None when only one class is present.

    Raises
    ------
    DataError
        For shapes that differ, NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.areas import areas
    >>> found = areas(np.array([[0.0, 1.0, 2.0, 4.0]]), np.array([[False, False, True, True]]))
    >>> found.auc1, found.auc2, found.auc3, found.auc4
    (1.0, 0.25, 0.875, 1.625)

    Source: Chang 2021 (3D ROC).
    """
    if scores.shape != mask.shape:
        raise DataError(f"map {scores.shape} and mask {mask.shape} must share one (h, w)")
    flat, anomalous = scores.ravel().astype(np.float64), mask.ravel()
    auc1, ap = image_auroc(flat, anomalous), average_precision(flat, anomalous)
    if auc1 is None or ap is None:
        return None
    unit = (flat - flat.min()) / (np.ptp(flat) or 1.0)
    under = []
    for values in (unit[~anomalous], unit[anomalous]):
        if integration == "exact":
            under.append(float(values.mean()))
            continue
        tau = np.unique(unit)
        above = 1 - np.searchsorted(np.sort(values), tau) / values.size
        under.append(float(np.trapezoid(above, tau)))
    return Areas(auc1, under[0], under[1], ap)
