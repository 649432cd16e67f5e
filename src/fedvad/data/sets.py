"""Images with their labels, sets of them, and sites: what every layout is read into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np


@dataclass(frozen=True)
class ImageItem:
    """One image file: label 0 normal, 1 anomalous; `defect` is the name of its kind.

    mask: its ground-truth mask, if there is one; other_masks: further masks of the same image,
    which are united with the first.
    """

    path: Path
    label: int
    defect: str
    mask: Path | None = None
    other_masks: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All ground-truth masks of the image, which are united for scoring."""
        return () if self.mask is None else (self.mask, *self.other_masks)


@dataclass(frozen=True)
class ImageSet(Sequence[ImageItem]):
    """An immutable, ordered set of image files, none of them decoded yet."""

    items: tuple[ImageItem, ...]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> ImageSet: ...
    def __getitem__(self, index: int | slice) -> ImageItem | ImageSet:
        return ImageSet(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __add__(self, other: ImageSet) -> ImageSet:
        return ImageSet(self.items + other.items) if isinstance(other, ImageSet) else NotImplemented

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in order."""
        return tuple(item.path for item in self.items)

    @property
    def labels(self) -> np.ndarray:
        """Labels as int64 (n,): 0 normal, 1 anomalous."""
        return np.array([item.label for item in self.items], dtype=np.int64)

    @property
    def defects(self) -> tuple[str, ...]:
        """The kind of each image, in order: "good" or the name of its defect folder."""
        return tuple(item.defect for item in self.items)

    @property
    def has_masks(self) -> bool:
        """Whether at least one anomalous image has a mask."""
        return any(item.label and item.mask is not None for item in self.items)

    def subset(self, indices: Iterable[int] | np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        return ImageSet(tuple(self.items[int(index)] for index in indices))


@dataclass(frozen=True)
class Site:
    """A named place with its own images: normal ones to learn from, and a test set."""

    name: str
    train: ImageSet
    test: ImageSet
