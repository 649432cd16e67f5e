"""`predict`: score, decision and heat-map of single images with a trained run."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, cast

from fedvad.data.arrays import ImageLike, is_image
from fedvad.data.arrays import as_path as image_path
from fedvad.data.inputs import Listing, list_images
from fedvad.detectors.base import Detector
from fedvad.errors import ConfigError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import Engine
from fedvad.memory.bank import FloatArray
from fedvad.runs.arguments import AnyPath, listed, maybe
from fedvad.runs.config import Reference, as_path, check_reference
from fedvad.runs.decision import choose_threshold, warn_of_threshold, why_no_threshold
from fedvad.runs.guards import check_order, guard_run_folder
from fedvad.runs.opening import known_site, open_run
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.verbs.predict_files import NEED_THRESHOLD, SavedFiles, check_kinds

__all__ = ["predict"]

log = logging.getLogger(__name__)

_CHUNK = 16  # images scored before the first of their results is given


def predict(
    run: AnyPath,
    images: ImageLike | Iterable[ImageLike],
    *,
    site: str | None = None,
    reference: Reference | None = None,
    threshold: float | None = None,
    target_fpr: float | None = None,
    out: AnyPath | None = None,
    save: str | Iterable[str] | None = None,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Score images with a trained run: score, decision and heat-map of each. Nothing is cached.

    The call itself checks everything. Each image is scored when you ask for its result.

    Parameters
    ----------
    run : path
        Run folder.
    images : path, bytes, array, PIL image or torch tensor, or several of them
        Paths of files or folders; the bytes of an image file; RGB arrays, uint8 (H, W, 3) (see
        `fedvad.data.arrays.to_rgb`). Images without a path are called images[0], images[1], ...
    site : str, optional
        Site whose memory and threshold are used. None uses what all sites share, and the median of
        their thresholds.
    reference : {"global", "local", "union"}, optional
        Memory to compare with: that of all sites, the site's own, or both. None takes the run's.
    threshold : float, optional
        Threshold to use instead of the run's, in the unit of the score.
    target_fpr : float in [1e-6, 0.5], optional
        Find the threshold for this false-alarm rate, from scores that the run keeps. Not with
        `threshold`.
    out : path, optional
        Folder for the files that `save` names. It must not be a run folder or hold the images.
    save : str or list of str, optional
        Some of "overlays", "maps", "maps16", "masks", "boxes" and "csv"; None saves overlays.
    weights : path, optional
        File of the backbone's weights, if it was moved since the training.
    engine : {"openvino", "openvino-bf16", "torch"}, optional
        What computes the backbone; None takes that of the training.
    device : {"cpu", "cuda", "mps"}, optional
        None takes that of the training.
    max_pixels : int, optional
        An image of more pixels counts as unreadable; None takes the limit of the training.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Yields
    ------
    dict
        path, site, score, threshold, anomalous (None without a threshold), overlay, error (None, or
        why there is no score), reason (None, or why there is no decision) and files.

    Raises
    ------
    ConfigError, DataError, ArtefactError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> rows = list(fedvad.predict("run", "plants/alder/test/good", site="alder"))
    >>> len(rows), [row["score"] > row["threshold"] for row in rows]
    (3, [False, False, False])
    """
    progress = progress or no_progress
    check_reference(reference)
    if save is not None and not isinstance(save, str):
        save = [str(kind) for kind in listed(save, "save")]
    run_folder, out = as_path(run, "run"), maybe(out, "out")
    kinds = check_kinds(save, out)
    one = is_image(images) or not isinstance(images, Iterable)
    several: list[Any] = [images] if one else [*cast(Iterable[Any], images)]
    named = [Path(each) for each in several if isinstance(each, str | PathLike)]
    check_order(run_folder, named, "predict RUN IMAGES")
    guard_run_folder(out, "--out")
    trained, _, extractor = open_run(
        run_folder, weights=maybe(weights, "weights"), engine=engine, device=device,
        max_pixels=max_pixels,
    )  # fmt: skip
    most = extractor.config.max_pixels
    paths = [image_path(each, f"images[{i}]", max_pixels=most) for i, each in enumerate(several)]
    site = known_site(trained, site)
    detector = trained.detector(site, extractor, reference)
    limit = choose_threshold(trained, site, reference, threshold=threshold, target_fpr=target_fpr)
    reason = why_no_threshold(trained, site) if limit is None else None
    if reason and (wanted := kinds & NEED_THRESHOLD):
        raise ConfigError(f"{' and '.join(sorted(wanted))} cannot be saved: {reason}")
    listing = list_images(paths, cubes=extractor.bands > 0)
    if left_out := listing.left_out_words():
        log.warning("not scored: %s", left_out)
    files = None
    warn_of_threshold(trained, site, limit, target_fpr)
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
