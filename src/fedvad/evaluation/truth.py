"""Ground truth of a test set, pixel by pixel: which masks can be believed, and what ails others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.headers import read_header
from fedvad.data.masks import nearest, read_masks
from fedvad.data.sets import ImageItem, ImageSet
from fedvad.data.views import Size, View
from fedvad.detectors.scoring import upsample
from fedvad.errors import ImageError
from fedvad.memory.bank import FloatArray

__all__ = ["GroundTruth", "Pair", "read_truth"]

Pair = tuple[FloatArray, npt.NDArray[np.bool_]]
_Packed = tuple[tuple[int, int], npt.NDArray[np.uint8] | None]

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
_LONGEST = 1024  # pixels of the longer side of what pixel figures are found on


@dataclass(eq=False)
class GroundTruth:
    """The masks of a test set, each in the size at which its image is read.

    Attributes
    ----------
    defective, masked : int
        Anomalous images of the set, and those of them whose mask is used.
    faults : dict of str to list of str
        Names of the images whose mask is not used, by reason.
    """

    defective: int = 0
    masked: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    _masks: dict[int, _Packed] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether there is a mask of at least one anomalous image."""
        return self.masked > 0

    def pairs(self, maps: FloatArray | Sequence[FloatArray]) -> Iterator[Pair]:
        """(map, mask), both (H, W), of each image whose pixels are known, one at a time.

        `maps` are (h, w) each, one for each image of the set. A normal image's mask is empty.
        """
        for index, (shape, packed) in self._masks.items():
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


def read_truth(images: ImageSet, size: Size | View) -> GroundTruth:
    """Read and check the masks of a set; a doubtful one is not used, and counted by its fault.

    Doubtful are masks that are missing, unreadable, empty, inverted, of swapped sides, or of an
    image that EXIF turns while its mask is not turned, so that nobody knows which pixel is meant.

    Parameters
    ----------
    images : ImageSet
        Test images with their masks.
    size : int, str or View
        How images are read; masks are resized alike, to at most 1024 pixels of the longer side.

    Examples
    --------
    >>> from pathlib import Path
    >>> from fedvad.data.sets import ImageItem, ImageSet
    >>> from fedvad.evaluation.truth import read_truth
    >>> truth = read_truth(ImageSet((ImageItem(Path("7.png"), 1, "scratch"),)), 64)
    >>> truth.usable, truth.faults
    (False, {'without a mask': ['7.png']})
    """
    view = View.of(size)
    truth = GroundTruth()
    found: Counter[str] = Counter()
    for index, item in enumerate(images):
        truth.defective += item.label
        fault, packed = _read(item, view)
        if fault is None:
            truth.masked += item.label
            truth._masks[index] = packed
        else:
            found[fault] += 1
            truth.faults.setdefault(fault, []).append(item.path.name)
    return truth


def _read(item: ImageItem, view: View) -> tuple[str | None, _Packed]:
    """The fault of an image's masks, or none and the mask as packed bits (None: empty)."""
    shape = view.height, view.width
    if not item.masks:
        if view.varies and (image := read_header(item.path)):
            shape = view.shape(image.height, image.width)
        return (NO_MASK if item.label else None), (_at_most(shape), None)
    try:
        whole = read_masks(item.masks)
    except ImageError:
        return UNREADABLE, (shape, None)
    shape = _at_most(view.shape(*whole.shape))
    if not item.label:
        return (MARKED if whole.any() else None), (shape, None)
    if fault := _fault(item, whole):
        return fault, (shape, None)
    mask = nearest(whole, shape)
    if not mask.any():
        words = f"{shape[0]}" if shape[0] == shape[1] else f"{shape[0]} x {shape[1]}"
        return VANISHED.format(size=words), (shape, None)
    return None, (shape, np.packbits(mask))


def _at_most(shape: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, _LONGEST / max(shape))
    return max(1, round(scale * shape[0])), max(1, round(scale * shape[1]))


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
