"""`predict`: score, decision and heat-map of single images with a trained run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.folders import read_images
from fedvad.data.images import read_rgb
from fedvad.errors import ConfigError
from fedvad.features.cache import DescriptorCache
from fedvad.memory.bank import FloatArray
from fedvad.pipeline.config import Reference
from fedvad.pipeline.progress import Progress, Stage, silent
from fedvad.pipeline.runs import open_run
from fedvad.report.overlay import heatmap_overlay, save_png

__all__ = ["predict"]

_CHUNK = 16  # images scored before the first of them is told


def predict(
    run_folder: Path,
    paths: Sequence[Path],
    *,
    site: str | None = None,
    reference: Reference | None = None,
    out: Path | None = None,
    weights: Path | None = None,
    max_pixels: int | None = None,
    cache: DescriptorCache | None = None,
    progress: Progress = silent,
) -> Iterator[dict[str, Any]]:
    """Yield one result per image file below `paths`, in order.

    Keys: path, site, score, threshold, anomalous (None without a threshold), overlay (file
    written below `out`), error (None, or why the image could not be read; the others go on).
    `max_pixels` replaces the run's limit on the size of images. Without `site` the global memory
    and the median threshold of the sites decide. Raises `ConfigError` for a site that the run does
    not know, `DataError` when there is no image.
    """
    files = read_images(paths)
    run, _, extractor = open_run(run_folder, weights=weights, cache=cache, max_pixels=max_pixels)
    if site is not None and site not in run.sites:
        raise ConfigError(f"the run has no site {site!r}; known sites: {sorted(run.sites)}")
    if site is None and len(run.sites) == 1:
        site = next(iter(run.sites))
    detector = run.detector(site, extractor, reference)
    threshold = run.threshold(site, reference)
    limit = None if threshold is None else threshold.value
    names = _overlay_names(files)
    stage = Stage(progress, "scoring", len(files))
    for start in range(0, len(files), _CHUNK):
        chunk = files[start : start + _CHUNK]
        scores = detector.score(chunk, stage)
        place = {int(index): at for at, index in enumerate(scores.kept)}
        reasons = iter(scores.bad)
        for index, path in enumerate(chunk):
            row: dict[str, Any] = {
                "path": str(path),
                "site": site,
                "score": None,
                "threshold": limit,
                "anomalous": None,
                "overlay": None,
                "error": None,
            }
            if index not in place:
                row["error"] = next(reasons)
                yield row
                continue
            row["score"] = score = float(scores.image[place[index]])
            row["anomalous"] = None if limit is None else score > limit
            if out is not None:
                target = out / names[start + index]
                _save_overlay(path, scores.maps[place[index]], limit, target)
                row["overlay"] = str(target)
            yield row


def _save_overlay(path: Path, map_: FloatArray, limit: float | None, target: Path) -> None:
    # a cell as bad as a whole image at the threshold is shown in full colour
    high = float(map_.max()) if limit is None else limit
    low = float(np.median(map_))
    overlay = heatmap_overlay(
        read_rgb(path, max_pixels=ANY_SIZE), map_, low=low, high=max(high, low * 1.01 + 1e-6)
    )
    save_png(target, overlay)


def _overlay_names(files: Sequence[Path]) -> list[str]:
    """One distinct file name per image, also when folders repeat names."""
    names: dict[str, None] = {}
    for path in files:
        name, count = f"{path.stem}.png", 0
        while name in names:
            count += 1
            name = f"{path.stem}-{count}.png"
        names[name] = None
    return list(names)
