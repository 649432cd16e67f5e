"""New images that are near copies of images behind the rows of a memory, which are gone."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from fedvad.detectors.base import NormalFeatures
from fedvad.half import HalfArray, to_float
from fedvad.memory.bank import MemoryBank
from fedvad.memory.distances import nearest
from fedvad.runs.memory_run import TrainedRun

log = logging.getLogger(__name__)
# Of screws, tiles, hazelnuts and head MRI, 24 images each at 128 pixels: images saved again as JPEG
# had 0.02 to 0.10, those moved by two pixels 0.22 to 0.68, others 0.63 to 1.
_SHARE = 0.55
_FEWEST_ROWS, _FEWEST_IMAGES = 3, 10


class KnownImages:
    """The images of a site by the rows that its memory has of them.

    A near copy of one lies much nearer to the rows of that one than to those of any other: the
    median distance of those rows to it is at most 0.55 of that of the next image. Images of fewer
    than three rows are not known, and of fewer than ten images nobody knows how far apart they
    lie. Source: ours.
    """

    def __init__(self, bank: MemoryBank, site: str) -> None:
        origin, self._vectors = bank.origin, bank.vectors
        images = () if origin is None else sorted({s.image for s in origin.sources if s.image})
        rows = [np.flatnonzero(origin.share_of(site, image) > 0) for image in images if origin]
        self._rows = [own for own in rows if len(own) >= _FEWEST_ROWS]

    def has_copy_of(self, descriptors: HalfArray) -> bool:
        """Whether (h, w, d) descriptors, NaN outside a region, are of a near copy of one."""
        import torch

        if len(self._rows) < _FEWEST_IMAGES:
            return False
        patches = to_float(descriptors).reshape(-1, descriptors.shape[-1])
        patches = np.ascontiguousarray(patches[~np.isnan(patches[:, 0])])
        squared, _ = nearest(torch.from_numpy(self._vectors), torch.from_numpy(patches))
        distances = np.sqrt(squared.clamp_min(0).numpy())
        first, second, *_ = sorted(float(np.median(distances[own])) for own in self._rows)
        return first <= _SHARE * second


def unlike_known(
    run: TrainedRun, images: Mapping[str, NormalFeatures]
) -> dict[str, NormalFeatures]:
    """Images by site without near copies of those that trained a run, which say nothing new."""
    found = {}
    for name, features in images.items():
        new = list(range(len(features)))
        if name in run.sites:
            known = KnownImages(run.sites[name].bank, name)
            new = [i for i, each in enumerate(features) if not known.has_copy_of(each)]
        if (count := len(features) - len(new)) > 0:
            log.warning(
                "%s: %d of the new images are near copies of images that trained the run (saved "
                "again, moved by a pixel): learned from, but not counted in what the threshold "
                "promises", name, count,
            )  # fmt: skip
        found[name] = features.subset(new)
    return found
