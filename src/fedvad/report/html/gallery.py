"""The pictures of a page: which images are shown, and each as two small files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.images import read_rgb
from fedvad.data.masks import read_masks
from fedvad.errors import ConfigError, ImageError, StorageError
from fedvad.report.html.record import Gallery, Picture, outcome, printable
from fedvad.report.overlay import draw_outline, heatmap_overlay, map_range
from fedvad.report.panels import Panel

__all__ = ["GALLERY_FOLDER", "RULE", "choose", "write_gallery"]

GALLERY_FOLDER = "gallery"
RULE = (
    "Chosen by rule, not by looks: first what the detector got wrong, worst first, missed defects "
    "and false alarms in turn; then what it got right, closest to the threshold first, so the "
    "clearest catches come last. Sites take turns. Mistakes fill at most three quarters of the "
    "room while there is something right to show."
)
_SIDE = 224  # pixels: twice what a phone shows in two columns
_QUALITY = 70
_MISTAKES = 0.75

Pixels = NDArray[np.uint8]


def choose(panels: Sequence[Panel], *, limit: int) -> list[Panel]:
    """At most `limit` images in the order of `RULE`; the order of `panels` does not matter.

    Images without a threshold follow the judged ones: defects with the lowest scores and normals
    with the highest in turn. Raises ConfigError for limit < 1.
    """
    if limit < 1:
        raise ConfigError(f"a gallery of {limit} images: ask for at least 1, or leave pictures out")
    groups: dict[str, list[Panel]] = {}
    for panel in sorted(panels, key=lambda p: (p.site, p.defect, str(p.path))):
        groups.setdefault(outcome(panel.label, panel.score, panel.threshold), []).append(panel)
    missed = _by_turns(groups.get("missed", []), lambda p: -_distance(p))
    alarms = _by_turns(groups.get("false alarm", []), lambda p: -_distance(p))
    wrong = _alternate(missed, alarms)
    right = _by_turns(groups.get("caught", []) + groups.get("passed", []), _distance)
    open_ = groups.get("not judged", [])
    doubtful = _alternate(
        _by_turns([p for p in open_ if p.label], lambda p: p.score),
        _by_turns([p for p in open_ if not p.label], lambda p: -p.score),
    )
    rest = right + doubtful
    room = max(limit - len(rest), math.ceil(_MISTAKES * limit))
    return (wrong[:room] + rest)[:limit]


def write_gallery(panels: Sequence[Panel], folder: Path, *, limit: int = 200) -> Gallery:
    """Draw the chosen images into `folder`/gallery and list them in `folder`/gallery.json.

    Each becomes two WebP files of at most 224 pixels a side: the photograph, and the same under its
    heat map with the outline of the ground truth where there is one. Colours are ranged per site by
    its normal images (`map_range`), so pass all test images. Raises StorageError, DataError for a
    map that is not finite.
    """
    target = folder / GALLERY_FOLDER
    ranges = _ranges(panels)
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
                    file=printable(f"{panel.path.parent.name}/{panel.path.name}"),
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


def _distance(panel: Panel) -> float:
    """How far a score lies from its threshold, in thresholds."""
    assert panel.threshold is not None
    return abs(panel.score - panel.threshold) / max(abs(panel.threshold), 1e-12)


def _by_turns(panels: Sequence[Panel], order: Callable[[Panel], float]) -> list[Panel]:
    """Sorted by `order`, smallest first, with each site's first before any site's second."""
    seen: dict[str, int] = {}
    ranked = []
    for panel in sorted(panels, key=order):
        turn = seen[panel.site] = seen.get(panel.site, 0) + 1
        ranked.append((turn, order(panel), panel))
    return [panel for _, _, panel in sorted(ranked, key=lambda item: item[:2])]


def _alternate(first: Sequence[Panel], second: Sequence[Panel]) -> list[Panel]:
    return [p for p in chain.from_iterable(zip_longest(first, second)) if p is not None]


def _ranges(panels: Sequence[Panel]) -> dict[str, tuple[float, float]]:
    """The display range of each site's maps, as on the contact sheet."""
    normal = [panel.map for panel in panels if not panel.label]

    def ranges() -> Iterator[tuple[str, tuple[float, float]]]:
        for site in {panel.site for panel in panels}:
            own = [panel for panel in panels if panel.site == site]
            maps = [panel.map for panel in own if not panel.label] or normal
            yield site, map_range(maps or [panel.map for panel in own])

    return dict(ranges())


def _thumbnail(image: Pixels) -> Pixels:
    from PIL import Image

    picture = Image.fromarray(image)
    # enlarged never: a small image is shown as it is
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _heat(panel: Panel, photo: Pixels, limits: tuple[float, float]) -> tuple[Pixels, bool]:
    """The photograph under its map, and whether the ground truth is drawn on it."""
    heat = heatmap_overlay(photo, panel.map, low=limits[0], high=limits[1])
    mask = _mask(panel, photo.shape[1], photo.shape[0])
    if mask is None or not mask.any():
        return heat, False
    return draw_outline(heat, mask), True


def _mask(panel: Panel, width: int, height: int) -> NDArray[np.bool_] | None:
    from PIL import Image

    if not panel.masks:
        return None
    try:
        grey = Image.fromarray(read_masks(panel.masks, None).astype(np.uint8) * 255)
    except ImageError:
        return None
    # averaged, and any trace counts: by nearest neighbour a thin crack would fall apart
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 0


def _webp(image: Pixels) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
