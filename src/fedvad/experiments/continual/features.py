"""What the features of a stream's tasks have in common: for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.continual.importance import (
    conflicts,
    feature_importance,
    most_important,
    task_map,
)
from fedvad.data.contents import normals
from fedvad.data.folders import Site
from fedvad.errors import DataError
from fedvad.experiments.continual.stream import Analysis
from fedvad.features.extractor import FeatureExtractor
from fedvad.half import to_float

_SIDE = 32  # positions looked at along a side, at most


def analyse_features(
    sites: Sequence[Site], extractor: FeatureExtractor, options: Analysis, *, seed: int
) -> dict[str, Any]:
    """Of the tasks' most important features: t-SNE points of images, and overlaps of ranges.

    top: share of the features. features: their number. points: (n, 2) by task. overlaps: of each
    pair of tasks, see `ranges_overlap`. Raises `DataError` for a task without a readable image.
    """
    found = {site.name: _descriptors(site, extractor, options.images) for site in sites}
    importance = feature_importance(np.concatenate(list(found.values())))
    chosen = most_important(importance, options.top)
    features = {name: own[:, chosen] for name, own in found.items()}
    points = task_map(features, seed=seed)
    return {
        "top": options.top,
        "features": int(chosen.sum()),
        "points": {name: np.round(own, 3).tolist() for name, own in points.items()},
        "overlaps": [[a, b, share] for (a, b), share in conflicts(features).items()],
    }


def _descriptors(site: Site, extractor: FeatureExtractor, images: int) -> npt.NDArray[np.float32]:
    paths = normals(site.train)[:images]
    kept = []
    for item in extractor.stream(paths):
        if item.descriptors is not None:
            step = -(-max(item.descriptors.shape[:2]) // _SIDE)
            kept.append(to_float(item.descriptors[::step, ::step]))
    if not kept:
        raise DataError(f"{site.name}: no readable normal image whose features could be looked at")
    return np.stack(kept)
