"""What a detector achieves at each site, and over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import ImageSet
from fedvad.data.views import Size, View
from fedvad.detectors.base import Scores
from fedvad.evaluation.aupro import aupro
from fedvad.evaluation.bootstrap import mean_paired_gain, paired_gain
from fedvad.evaluation.metrics import (
    Floats,
    average_precision,
    f1_max_oracle,
    image_auroc,
    pixel_auroc,
)
from fedvad.evaluation.results import (
    Counts,
    Gain,
    Gains,
    MaskCount,
    MethodResults,
    Metric,
    Promised,
    SiteThreshold,
    Thresholds,
)
from fedvad.evaluation.thresholds import (
    MIN_SCORES,
    Threshold,
    achieved,
    conformal_threshold,
)
from fedvad.evaluation.truth import GroundTruth, Pair, read_truth
from fedvad.memory.bank import FloatArray

__all__ = [
    "MIN_HELD_OUT",
    "SiteResult",
    "counted",
    "evaluate_site",
    "figures_of",
    "gains",
    "site_threshold",
    "summarise",
]

MIN_HELD_OUT = MIN_SCORES
_PER_SITE = ("image_auroc", "average_precision", "oracle_f1", "pixel_auroc", "aupro")


@dataclass(frozen=True, eq=False)
class SiteResult:
    """Scores and metrics of one site's readable test images; None where the data gives none.

    test: the images that were scored. scores: (n,); maps: n of (h, w) on the patch grid.
    fpr, recall: achieved by the threshold on the test images. truth: the masks that the pixel
    metrics rest on.
    """

    name: str
    test: ImageSet
    scores: npt.NDArray[np.float64]
    maps: FloatArray | Sequence[FloatArray]
    threshold: Threshold | None
    image_auroc: float | None
    average_precision: float | None
    oracle_f1: float | None
    pixel_auroc: float | None
    aupro: float | None
    fpr: float | None
    recall: float | None
    bad: tuple[str, ...] = ()
    truth: GroundTruth | None = None


def site_threshold(normal_scores: Sequence[float], target_fpr: float) -> Threshold | None:
    """Threshold from held-out normal scores; None when there are fewer than three."""
    if len(normal_scores) < MIN_HELD_OUT:
        return None
    return conformal_threshold(np.asarray(normal_scores), target_fpr)


def evaluate_site(
    name: str,
    test: ImageSet,
    scores: Scores,
    threshold: Threshold | None,
    *,
    image_size: Size | View,
    pixel_metrics: bool = True,
) -> SiteResult:
    """Metrics of one site. Pixel metrics are taken at the size at which images are read.

    They rest on the images whose masks can be believed (`read_truth`); a normal image's is empty.
    """
    kept = test.subset(scores.kept.tolist())
    labels = kept.labels
    pixel = pro = None
    truth = read_truth(kept, image_size) if pixel_metrics else None
    if truth is not None and truth.usable:
        pixel = pixel_auroc(truth.pairs(scores.maps))
        pro = aupro(truth.pairs(scores.maps))
    f1 = f1_max_oracle(scores.image, labels)
    fpr, recall = (None, None)
    if threshold is not None and len(kept):
        fpr, recall = achieved(scores.image, labels, threshold)
    return SiteResult(
        name=name,
        test=kept,
        scores=scores.image,
        maps=scores.maps,
        threshold=threshold,
        image_auroc=image_auroc(scores.image, labels),
        average_precision=average_precision(scores.image, labels),
        oracle_f1=None if f1 is None else f1[0],
        pixel_auroc=pixel,
        aupro=pro,
        fpr=fpr,
        recall=recall,
        bad=scores.bad,
        truth=truth,
    )


def summarise(
    results: Sequence[SiteResult], *, target_fpr: float, pixel_metrics: bool = True
) -> MethodResults:
    """A method's results: each metric by site, mean, worst and pooled; thresholds and rates.

    `pooled` ranks the test images (or pixels) of all sites together, by raw score. `pixel_images`
    says by site how many defective images the pixel metrics rest on, and why not on all.
    """
    pooled = _pooled(results, pixel_metrics)

    def metric(name: str) -> Metric:
        values: dict[str, float | None] = {r.name: getattr(r, name) for r in results}
        known = [v for v in values.values() if v is not None]
        return Metric(
            mean=float(np.mean(known)) if known else None,
            worst=min(known) if known else None,
            pooled=pooled.get(name),
            sites=values,
        )

    rates = [r.fpr for r in results if r.fpr is not None]
    recalls = [r.recall for r in results if r.recall is not None]
    return MethodResults(
        **{name: metric(name) for name in _PER_SITE},
        pixel_images={
            r.name: MaskCount(**r.truth.to_json()) for r in results if r.truth is not None
        },
        threshold=Thresholds(
            target_fpr=target_fpr,
            mean_fpr=float(np.mean(rates)) if rates else None,
            mean_recall=float(np.mean(recalls)) if recalls else None,
            sites={r.name: figures_of(r.threshold, r) for r in results},
        ),
    )


def _pooled(results: Sequence[SiteResult], pixel_metrics: bool) -> dict[str, float | None]:
    """Each metric over the images or pixels of all sites together; none that is not there."""
    found: dict[str, float | None] = {}
    scores = np.concatenate([r.scores for r in results]) if results else np.empty(0)
    if len(scores):
        labels = np.concatenate([r.test.labels for r in results])
        f1 = f1_max_oracle(scores, labels)
        found["image_auroc"] = image_auroc(scores, labels)
        found["average_precision"] = average_precision(scores, labels)
        found["oracle_f1"] = None if f1 is None else f1[0]
    masked = [r for r in results if r.truth is not None and r.truth.usable]
    if pixel_metrics and masked:
        found["pixel_auroc"] = pixel_auroc(_all_pairs(masked))
        found["aupro"] = aupro(_all_pairs(masked))
    return found


def figures_of(threshold: Threshold | None, result: SiteResult | None = None) -> SiteThreshold:
    """A site's threshold as results hold it, with what it achieved on test images, if any."""
    promised = None if threshold is None else threshold.promise
    return SiteThreshold(
        threshold=None if threshold is None else threshold.value,
        n=0 if threshold is None else threshold.n,
        method=None if threshold is None else threshold.method,
        promise=None if promised is None else Promised(**asdict(promised)),
        fpr=None if result is None else result.fpr,
        recall=None if result is None else result.recall,
        counts=None if result is None else counted(result, result.threshold),
    )


def counted(result: SiteResult, threshold: Threshold | None) -> Counts | None:
    """Test images at a threshold; None without it, or without test images."""
    if threshold is None or not len(result.test):
        return None
    defective = result.test.labels == 1
    flagged = result.scores > threshold.value
    return Counts(
        good=int((~defective).sum()),
        stopped=int((flagged & ~defective).sum()),
        defects=int(defective.sum()),
        caught=int((flagged & defective).sum()),
    )


def gains(
    results: Sequence[SiteResult], baseline: Sequence[SiteResult], *, seed: int
) -> Gains | None:
    """Paired bootstrap of the image AUROC gained over a baseline, on average and by site.

    Images that only one of the two could read, and sites without both classes, are left out;
    None when no site is left.
    """
    others = {r.name: r for r in baseline}
    pairs = {
        r.name: _paired(r, others[r.name])
        for r in results
        if r.image_auroc is not None and r.name in others
    }
    pairs = {name: pair for name, pair in pairs.items() if len(np.unique(pair[2])) == 2}
    if not pairs:
        return None
    mean = mean_paired_gain(list(pairs.values()), seed=seed)
    sites = {name: paired_gain(*pair, seed=seed) for name, pair in pairs.items()}
    return Gains(
        mean=Gain(**vars(mean)),
        sites={name: Gain(**vars(interval)) for name, interval in sites.items()},
    )


def _paired(result: SiteResult, other: SiteResult) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Scores (n,) of both and labels (n,) of the images that both could read."""
    there = dict(zip(other.test.paths, other.scores, strict=True))
    both = [i for i, path in enumerate(result.test.paths) if path in there]
    theirs = np.array([there[result.test.paths[i]] for i in both])
    return result.scores[both], theirs, result.test.labels[both]


def _all_pairs(results: Sequence[SiteResult]) -> Iterator[Pair]:
    for result in results:
        if result.truth is not None:
            yield from result.truth.pairs(result.maps)
