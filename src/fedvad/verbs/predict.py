"""`predict`: score, decision and heat-map of single images with a trained run."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedvad.data.inputs import Listing, list_images
from fedvad.detectors.base import Detector
from fedvad.errors import ConfigError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import Engine
from fedvad.memory.bank import FloatArray
from fedvad.runs.config import Reference, check_reference
from fedvad.runs.decision import choose_threshold, warn_of_threshold, why_no_threshold
from fedvad.runs.guards import check_order, guard_run_folder
from fedvad.runs.opening import known_site, open_run
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.verbs.predict_files import NEED_THRESHOLD, SavedFiles, check_kinds

__all__ = ["predict"]

log = logging.getLogger(__name__)

_CHUNK = 16  # images scored before the first of their results is given


def predict(
    run_folder: Path,
    paths: Sequence[Path],
    *,
    site: str | None = None,
    reference: Reference | None = None,
    threshold: float | None = None,
    target_fpr: float | None = None,
    out: Path | None = None,
    save: str | Sequence[str] | None = None,
    weights: Path | str | None = None,
    max_pixels: int | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: DescriptorCache | None = None,
    progress: Progress = no_progress,
) -> Iterator[dict[str, Any]]:
    """One result per image file below `paths` (see `list_images`), in order.

    Keys: path, site, score, threshold, anomalous (None without a threshold), overlay (file written
    below `out`), error (None, or why the image has no score; the others have one), reason (None, or
    why there is a score and no decision), files (by kind, what was written of this image).

    threshold, target_fpr: in place of the run's threshold, see `choose_threshold`; without `site`
    the global memory and the median threshold of the sites decide. save: what to write into `out`,
    of `predict_files.KINDS`; None means overlays. weights, engine, device, max_pixels: in place of
    those of the training, see `open_run`.

    Everything is checked before the first image is scored. Raises `ConfigError` for a site that
    the run does not know, an option that cannot be met, or an `out` that is a run folder or in
    which outputs would lie among the images; `DataError` when there is no image; `StorageError`;
    and as `open_run`.
    """
    check_reference(reference)
    kinds = check_kinds(save, out)
    check_order(run_folder, paths, "predict RUN IMAGES")
    guard_run_folder(out, "--out")
    run, _, extractor = open_run(
        run_folder, weights=weights, engine=engine, device=device, cache=cache,
        max_pixels=max_pixels,
    )  # fmt: skip
    site = known_site(run, site)
    detector = run.detector(site, extractor, reference)
    limit = choose_threshold(run, site, reference, threshold=threshold, target_fpr=target_fpr)
    reason = why_no_threshold(run, site) if limit is None else None
    if reason and (wanted := kinds & NEED_THRESHOLD):
        raise ConfigError(f"{' and '.join(sorted(wanted))} cannot be saved: {reason}")
    listing = list_images(paths, cubes=extractor.bands > 0)
    if left_out := listing.left_out_words():
        log.warning("not scored: %s", left_out)
    files = None
    warn_of_threshold(run, site, limit, target_fpr)
    if out is not None:
        files = SavedFiles(out, kinds, listing, paths, limit)
    return _results(detector, listing, site, limit, reason, files, progress)


def _results(
    detector: Detector,
    listing: Listing,
    site: str | None,
    limit: Threshold | None,
    reason: str | None,
    files: SavedFiles | None,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    images = listing.images
    stage = Stage(progress, "scoring", len(images))
    try:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            scores = detector.score([image.path for image in chunk], stage)
            place = {int(index): at for at, index in enumerate(scores.kept)}
            reasons = iter(scores.bad)
            for index, image in enumerate(chunk):
                row: dict[str, Any] = {
                    "path": str(image.path),
                    "site": site,
                    "score": None,
                    "threshold": None if limit is None else limit.value,
                    "anomalous": None,
                    "overlay": None,
                    "error": None,
                    "reason": None,
                    "files": {},
                }
                if index in place:
                    at = place[index]
                    _judge(row, float(scores.image[at]), scores.maps[at], limit, reason)
                else:
                    row["error"] = next(reasons)
                if files is not None:
                    files.write(image, row, None if row["error"] else scores.maps[place[index]])
                yield row
    finally:  # also when the caller stops early
        if files is not None:
            files.close()


def _judge(
    row: dict[str, Any],
    score: float,
    map_: FloatArray,
    limit: Threshold | None,
    reason: str | None,
) -> None:
    """Fill in score and decision; no decision ever from a number that is not finite."""
    if not (math.isfinite(score) and math.isfinite(float(map_.sum()))):
        row["error"] = (
            f"{row['path']}: its score is no finite number ({score}), so nothing can be decided: "
            "the run or its weights are damaged; train again"
        )
        return
    row["score"] = score
    row["anomalous"] = None if limit is None else score > limit.value
    row["reason"] = reason
