"""Images to distil with: drawn ones and crops of files, each by its number."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import holds_sets, read_sites
from fedvad.data.formats import IMAGE_SUFFIXES
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.data.inputs import read_images
from fedvad.data.labels import LabelNames
from fedvad.drawing.procedural import draw_image
from fedvad.errors import DataError, ImageError
from fedvad.experiments.distill.recipe import ImageOptions

log = logging.getLogger(__name__)
# numbers from here on are never trained with, as no training is that long
FRESH = 2**40
_TRIES = 20


class TrainingImages:
    """Images by number; see `Images`. Image n depends on seed, files and n alone.

    folders: any folder of images; of sets in MVTec's layout the normal training images only.
    Raises `DataError` for a folder without images.
    """

    def __init__(
        self, options: ImageOptions, folders: Sequence[Path], *, size: int, seed: int
    ) -> None:
        self.count = options.limit
        self._options, self._size, self._seed = options, size, seed
        self._files: list[Path] = []
        self._sets: list[dict[str, Any]] = []
        for folder in folders:
            found = _images_of(folder, LabelNames(options.good, options.defect))
            self._files += found
            self._sets.append(
                {
                    "name": folder.resolve().name,
                    "images": len(found),
                    "licence": options.licences.get(folder.resolve().name, "not stated"),
                    "names": _fingerprint(found),
                }
            )
        self.share = options.procedural if self._files else 1.0
        self._bad: set[Path] = set()

    def __call__(self, number: int) -> npt.NDArray[np.uint8]:
        """Image `number`: uint8 (S, S, 3). Raises `DataError` when files cannot be read."""
        rng = np.random.default_rng([self._seed, 1, number])
        if rng.random() < self.share:
            return draw_image(self._seed, number, self._size)
        for _ in range(_TRIES):
            path = self._files[int(rng.integers(len(self._files)))]
            try:
                whole = read_rgb(path, max_pixels=self._options.max_pixels)
                return resize_rgb(_crop(whole, rng, self._options.crop), self._size)
            except ImageError as error:
                if path not in self._bad:
                    self._bad.add(path)
                    log.warning("skipped %s", error)
        raise DataError(
            f"{_TRIES} images in a row cannot be read ({next(iter(self._bad))}, ...): replace or "
            "remove them"
        )

    def described(self) -> dict[str, Any]:
        """What the images are, as JSON values: shares, sets with licences, limit."""
        return {"procedural": self.share, "limit": self.count, "sets": self._sets}


# what holds defects, wherever it lies
_DEFECTS = ("ground_truth", "Anomaly", "yes")


def _images_of(folder: Path, names: LabelNames | None = None) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"--data {folder}: {'is not a folder' if folder.exists() else 'no such'}")
    if holds_sets(folder, names):
        # test images stay unseen, defects anyway
        found = [i.path for site in read_sites(folder, names) for i in site.train if i.label == 0]
    elif deep := [str(p) for name in _DEFECTS for p in folder.glob(f"**/{name}")]:
        raise DataError(
            f"--data {folder} holds a set further down ({min(deep)}): name the set, or the folder "
            "that its sites lie in, so that no defect is trained on"
        )
    else:
        try:
            found = sorted(read_images([folder]))
        except DataError:
            found = []
    if not found:
        raise DataError(f"--data {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


def _crop(
    image: npt.NDArray[np.uint8], rng: np.random.Generator, smallest: float
) -> npt.NDArray[np.uint8]:
    """A random part of at least `smallest` of the area, sides 3:4 to 4:3 of the image's, mirrored
    every second time.
    """
    height, width = image.shape[:2]
    area, ratio = rng.uniform(smallest, 1), math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)
    side = math.sqrt(area)
    rows = min(height, max(1, round(height * side * ratio)))
    columns = min(width, max(1, round(width * side / ratio)))
    top, left = (int(rng.integers(0, n + 1)) for n in (height - rows, width - columns))
    part = image[top : top + rows, left : left + columns]
    return np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)
