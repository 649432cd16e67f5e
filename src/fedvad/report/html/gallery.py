"""The pictures of a page, each as two small files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.sealed import finite
from fedvad.errors import ImageError, StorageError
from fedvad.report.choice import choose
from fedvad.report.html.record import Gallery, Picture, printable
from fedvad.report.overlay import draw_outline, heatmap_overlay, own_range
from fedvad.report.panels import Panel, display_ranges, drawn_mask

GALLERY_FOLDER = "gallery"
_SIDE = 224  # pixels: twice what a phone shows in two columns
_QUALITY = 70
# Of each site and label, as many images of at most this many pixels are kept as they are, too.
_SAMPLES, _EXACT = 6, 256 * 256

Pixels = NDArray[np.uint8]


def write_gallery(panels: Sequence[Panel], folder: Path, *, limit: int = 200) -> Gallery:
    """Draw the chosen images into `folder`/gallery and list them in `folder`/gallery.json.

    Each becomes two WebP files of at most 224 pixels a side: the photograph, and the same under its
    heat map with the outline of the ground truth where there is one. The first images of each site,
    if they are small, are also kept to the last bit (`sample_name`). Colours are ranged per site by
    its normal images (`map_range`, `own_range`), so pass all test images. Raises StorageError,
    DataError for a map that is not finite.
    """
    target = folder / GALLERY_FOLDER
    ranges = display_ranges(panels)
    pictures: list[Picture] = []
    kept: Counter[tuple[str, int]] = Counter()
    unreadable = 0
    chosen = choose(panels, limit=limit) if panels else []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.webp"):
            old.unlink()
        for panel in chosen:
            try:
                image = read_picture(panel.path, max_pixels=ANY_SIZE)
            except ImageError:  # it was read when it was scored: gone since then
                unreadable += 1
                continue
            photo = _thumbnail(image)
            heat, outlined = _heat(panel, photo, ranges[panel.site])
            names = [f"{len(pictures):04d}-{kind}.webp" for kind in ("photo", "heat")]
            for name, picture in zip(names, (photo, heat), strict=True):
                # no fsync per file: they count only once gallery.json, written last, names them
                (target / name).write_bytes(_webp(picture))
            group = panel.site, panel.label
            if kept[group] < _SAMPLES and image.shape[0] * image.shape[1] <= _EXACT:
                kept[group] += 1
                (target / sample_name(names[0])).write_bytes(_webp(image, lossless=True))
            pictures.append(
                Picture(
                    site=printable(panel.site),
                    file=printable(panel.file),
                    defect=printable(panel.defect),
                    label=panel.label,
                    score=panel.score,
                    threshold=finite(panel.threshold),
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
            "`fedvad evaluate --heatmaps` draws them again"
        ) from error
    gallery = Gallery(tested=len(panels), unreadable=unreadable, pictures=pictures)
    gallery.write(folder)
    return gallery


def sample_name(photo: str) -> str:
    """File name of the exact copy of an image by that of its `photo`, whether there is one or not.

    A photo is smaller or lossy, so that a detector scores it otherwise than the image.
    """
    return photo.replace("photo", "sample")


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


def _webp(image: Pixels, *, lossless: bool = False) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=_QUALITY, method=4, lossless=lossless)
    return buffer.getvalue()
