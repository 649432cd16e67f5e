"""Ground truth of a test set, pixel by pixel: which masks can be believed, and what ails others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.headers import read_header
from fedvad.data.masks import nearest, read_masks
from fedvad.data.sets import ImageItem, ImageSet
from fedvad.detectors.scoring import upsample
from fedvad.errors import ImageError
from fedvad.memory.bank import FloatArray

__all__ = ["GroundTruth", "Pair", "read_truth"]

Pair = tuple[FloatArray, npt.NDArray[np.bool_]]

NO_MASK = "without a mask"
EMPTY = "with an empty mask"
UNREADABLE = "with an unreadable mask"
INVERTED = "with a mask of nearly the whole image (inverted?)"
TRANSPOSED = "with a mask whose height and width are swapped"
TURNED = "turned by EXIF, their masks not"
VANISHED = "with a mask that vanishes at {size} pixels (raise --image-size)"
MARKED = "normal, but with a marked mask"

# An inverted mask marks what lies around a defect: most of the image, and of its border.
_MOST, _NEARLY_ALL, _OF_BORDER = 0.5, 0.9, 0.9
_SAME_SHAPE = 0.05  # of the logarithm of height over width
_SHOWN = 3


@dataclass(eq=False)
class GroundTruth:
    """The masks of a test set at one size.

    Attributes
    ----------
    size : int
        Of the masks, in pixels a side.
    defective, masked : int
        Anomalous images of the set, and those of them whose mask is used.
    faults : dict of str to list of str
        Names of the images whose mask is not used, by reason.
    """

    size: int
    defective: int = 0
    masked: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    _masks: dict[int, npt.NDArray[np.uint8] | None] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether there is a mask of at least one anomalous image."""
        return self.masked > 0

    def pairs(self, maps: FloatArray) -> Iterator[Pair]:
        """(map, mask), both (size, size), of each image whose pixels are known, one at a time.

        `maps` is (n, h, w), one for each image of the set. A normal image's mask is empty.
        """
        shape = (self.size, self.size)
        for index, packed in self._masks.items():
            mask = np.zeros(shape, dtype=bool)
            if packed is not None:
                mask = np.unpackbits(packed, count=mask.size).astype(bool).reshape(shape)
            yield upsample(maps[index][None], shape)[0], mask

    def to_json(self) -> dict[str, Any]:
        """JSON values: how many images the pixel figures rest on, and why not on all."""
        return {
            "defective": self.defective,
            "masked": self.masked,
            "faults": {reason: len(names) for reason, names in self.faults.items()},
        }

    def note(self) -> str:
        """One sentence on the images that pixel figures do not rest on; "" for none."""
        if not self.faults or (self.masked == 0 and set(self.faults) == {NO_MASK}):
            return ""
        whys = [
            f"{len(names)} {reason} ({', '.join(names[:_SHOWN])}"
            f"{', …' if len(names) > _SHOWN else ''})"
            for reason, names in self.faults.items()
        ]
        base = (
            f"pixel figures on {self.masked} of {self.defective} defective images"
            if self.masked
            else "no pixel figures"
        )
        return f"{base}: {'; '.join(whys)}"


def read_truth(images: ImageSet, size: int) -> GroundTruth:
    """Read and check the masks of a set; a doubtful one is not used, and counted by its fault.

    Doubtful are masks that are missing, unreadable, empty, inverted, of swapped sides, or of an
    image that EXIF turns while its mask is not turned, so that nobody knows which pixel is meant.

    Parameters
    ----------
    images : ImageSet
        Test images with their masks.
    size : int
        Side of the masks to make, in pixels.

    Examples
    --------
    >>> from pathlib import Path
    >>> from fedvad.data.sets import ImageItem, ImageSet
    >>> from fedvad.evaluation.truth import read_truth
    >>> truth = read_truth(ImageSet((ImageItem(Path("7.png"), 1, "scratch"),)), 64)
    >>> truth.usable, truth.faults
    (False, {'without a mask': ['7.png']})
    """
    truth = GroundTruth(size)
    found: Counter[str] = Counter()
    for index, item in enumerate(images):
        truth.defective += item.label
        fault, packed = _read(item, size)
        if fault is None:
            truth.masked += item.label
            truth._masks[index] = packed
        else:
            found[fault] += 1
            truth.faults.setdefault(fault, []).append(item.path.name)
    return truth


def _read(item: ImageItem, size: int) -> tuple[str | None, npt.NDArray[np.uint8] | None]:
    """The fault of an image's masks, or none and the mask as packed bits (None: empty)."""
    if not item.masks:
        return (NO_MASK if item.label else None), None
    try:
        whole = read_masks(item.masks, None)
    except ImageError:
        return UNREADABLE, None
    if not item.label:
        return (MARKED if whole.any() else None), None
    if fault := _fault(item, whole):
        return fault, None
    mask = nearest(whole, (size, size))
    if not mask.any():
        return VANISHED.format(size=size), None
    return None, np.packbits(mask)


def _fault(item: ImageItem, mask: npt.NDArray[np.bool_]) -> str | None:
    if not mask.any():
        return EMPTY
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    share = float(mask.mean())
    if share > _NEARLY_ALL or (share > _MOST and float(border.mean()) > _OF_BORDER):
        return INVERTED
    image = read_header(item.path)
    if image is None or item.mask is None:
        return None
    swapped = _swapped(mask.shape, (image.height, image.width))
    if image.turned:
        own = read_header(item.mask)
        if own is not None and not own.turned and (swapped or not image.sideways):
            return TURNED
        if own is not None and not own.turned and image.height == image.width:
            return TURNED
    return TRANSPOSED if swapped else None


def _swapped(mask: tuple[int, ...], image: tuple[int, int]) -> bool:
    ours, theirs = math.log(mask[0] / mask[1]), math.log(image[0] / image[1])
    return abs(ours - theirs) > _SAME_SHAPE and abs(ours + theirs) <= _SAME_SHAPE
