"""The pictures of a page, each as two small files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.images import read_rgb
from fedvad.errors import ImageError, StorageError
from fedvad.report.choice import choose
from fedvad.report.html.record import Gallery, Picture, printable
from fedvad.report.overlay import draw_outline, heatmap_overlay, own_range
from fedvad.report.panels import Panel, display_ranges, drawn_mask

__all__ = ["GALLERY_FOLDER", "write_gallery"]

GALLERY_FOLDER = "gallery"
_SIDE = 224  # pixels: twice what a phone shows in two columns
_QUALITY = 70

Pixels = NDArray[np.uint8]


def write_gallery(panels: Sequence[Panel], folder: Path, *, limit: int = 200) -> Gallery:
    """Draw the chosen images into `folder`/gallery and list them in `folder`/gallery.json.

    Each becomes two WebP files of at most 224 pixels a side: the photograph, and the same under its
    heat map with the outline of the ground truth where there is one. Colours are ranged per site by
    its normal images (`map_range`, `own_range`), so pass all test images. Raises StorageError,
    DataError for a map that is not finite.
    """
    target = folder / GALLERY_FOLDER
    ranges = display_ranges(panels)
    pictures: list[Picture] = []
    unreadable = 0
    chosen = choose(panels, limit=limit) if panels else []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.webp"):
            old.unlink()
        for panel in chosen:
            try:
                photo = _thumbnail(read_rgb(panel.path, max_pixels=ANY_SIZE))
            except ImageError:  # it was read when it was scored: gone since then
                unreadable += 1
                continue
            heat, outlined = _heat(panel, photo, ranges[panel.site])
            names = [f"{len(pictures):04d}-{kind}.webp" for kind in ("photo", "heat")]
            for name, image in zip(names, (photo, heat), strict=True):
                # no fsync per file: they count only once gallery.json, written last, names them
                (target / name).write_bytes(_webp(image))
            pictures.append(
                Picture(
                    site=printable(panel.site),
                    file=printable(panel.file),
                    defect=printable(panel.defect),
                    label=panel.label,
                    score=panel.score,
                    threshold=_finite(panel.threshold),
                    outlined=outlined,
                    photo=names[0],
                    heat=names[1],
                    width=photo.shape[1],
                    height=photo.shape[0],
                )
            )
    except OSError as error:
        raise StorageError(
            f"cannot write pictures to {target}: {error.strerror or error}; free some space, then "
            "`fedvad evaluate --heatmaps` draws them anew"
        ) from error
    gallery = Gallery(tested=len(panels), unreadable=unreadable, pictures=pictures)
    gallery.write(folder)
    return gallery


def _thumbnail(image: Pixels) -> Pixels:
    from PIL import Image

    picture = Image.fromarray(image)
    # enlarged never: a small image is shown as it is
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _heat(panel: Panel, photo: Pixels, limits: tuple[float, float]) -> tuple[Pixels, bool]:
    """The photograph under its map, and whether the ground truth is drawn on it."""
    low, high = own_range(panel.map, *limits)
    heat = heatmap_overlay(photo, panel.map, low=low, high=high)
    mask = drawn_mask(panel, photo.shape[1], photo.shape[0])
    if mask is None or not mask.any():
        return heat, False
    return draw_outline(heat, mask), True


def _webp(image: Pixels) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
