"""Ranking metrics of image scores and pixel maps; higher scores mean more anomalous.

Every metric is exact: no threshold grid, no binning, ties counted as ties. A metric that the data
cannot answer (only one class present) is None, never 0.5 or NaN, so that a mean over sites cannot
swallow it unseen. `pixel_pairs`, `gather`, `flag_counts` and the checks serve the other files here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvad.errors import DataError

__all__ = [
    "FlagCounts",
    "average_precision",
    "check_labelled",
    "check_scores",
    "f1_max_oracle",
    "flag_counts",
    "gather",
    "image_auroc",
    "pixel_auroc",
    "pixel_pairs",
]

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Pairs = Iterable[tuple[ArrayLike, ArrayLike]]


class FlagCounts(NamedTuple):
    """What every threshold flags.

    Attributes
    ----------
    values : (k,) float array
        Distinct scores, falling.
    hits, flagged : (k,) int64 arrays
        Anomalies, and all, that score at least each of them.
    """

    values: Floats
    hits: NDArray[np.int64]
    flagged: NDArray[np.int64]

    def average_precision(self) -> float:
        """See `average_precision`."""
        gain = np.diff(self.hits, prepend=0)
        return float(np.sum(gain * (self.hits / self.flagged)) / self.hits[-1])

    def f1_max(self) -> tuple[float, float]:
        """See `f1_max_oracle`."""
        f1 = 2 * self.hits / (self.flagged + self.hits[-1])
        best, values = int(np.argmax(f1)), self.values
        # In the scores' own precision: a float64 step below a float32 score rounds back onto it.
        lowest = np.nextafter(values[-1], values.dtype.type(-np.inf))
        return float(f1[best]), float(values[best + 1] if best + 1 < values.size else lowest)


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the ROC curve of image scores.

    It is the share of (normal, anomalous) pairs in the right order, a tied pair counting one half.

    Parameters
    ----------
    scores : (n,) float array
        Higher is more anomalous.
    labels : (n,) array of 0 and 1
        1 for anomalous images.

    Returns
    -------
    float or None
        In [0, 1]; None when only one class is present.

    Raises
    ------
    DataError
        For NaN or infinite scores, unequal lengths, or labels other than 0 and 1.

    Examples
    --------
    >>> from fedvad.evaluation.metrics import image_auroc
    >>> image_auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75

    Source: Mann-Whitney U; Hanley and McNeil 1982.
    """
    scores, anomalous = check_labelled(scores, labels)
    return _auroc(np.sort(scores[~anomalous]), np.sort(scores[anomalous]))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Average precision of image scores.

    The sum over distinct thresholds of precision times the gain in recall, without interpolation.

    Parameters
    ----------
    scores, labels
        As for `image_auroc`.

    Returns
    -------
    float or None
        In [0, 1]; None when only one class is present.

    Raises
    ------
    DataError
        As `image_auroc`.

    Examples
    --------
    >>> from fedvad.evaluation.metrics import average_precision
    >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 3)
    0.833

    Source: scikit-learn's definition.
    """
    counted = flag_counts(*check_labelled(scores, labels))
    return None if counted is None else counted.average_precision()


def f1_max_oracle(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float] | None:
    """Best F1 of image scores over all thresholds, and the threshold that reaches it.

    An "oracle" because it reads the test labels: for tables, never for operation.

    Parameters
    ----------
    scores, labels
        As for `image_auroc`.

    Returns
    -------
    (float, float) or None
        F1 in [0, 1] and the threshold. An image is flagged when score > threshold, as everywhere in
        fedvad; the threshold is the highest score that is not flagged (just below the lowest score
        when all are). Of equal F1 values the one that flags fewest wins. None when only one class
        is present.

    Raises
    ------
    DataError
        As `image_auroc`.

    Examples
    --------
    >>> from fedvad.evaluation.metrics import f1_max_oracle
    >>> f1_max_oracle([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    (0.8, 0.1)
    """
    counted = flag_counts(*check_labelled(scores, labels))
    return None if counted is None else counted.f1_max()


def pixel_auroc(maps: ArrayLike | Pairs, masks: ArrayLike | None = None) -> float | None:
    """Area under the ROC curve over all pixels of all images.

    Parameters
    ----------
    maps : (n, H, W) float array, or iterable of (map, mask) pairs
        Anomaly maps. Pairs are read once, their sizes may differ, and a streamed map is not kept.
    masks : (n, H, W) bool array, default=None
        Anomalous pixels; None where `maps` holds pairs.

    Returns
    -------
    float or None
        In [0, 1], exact with ties; None when all pixels are of one class. Peak memory in addition
        to the input: 8 bytes per pixel (16 for float64 maps), 300 MB for 38 million.

    Raises
    ------
    DataError
        For NaN or infinite maps, masks that do not fit, or masks that are not boolean.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.metrics import pixel_auroc
    >>> mask = np.array([[[False, True], [False, False]]])
    >>> pixel_auroc(np.array([[[0.1, 0.9], [0.2, 0.3]]]), mask)
    1.0
    """
    normal: list[Floats] = []
    anomalous: list[Floats] = []
    for values, mask in pixel_pairs(maps, masks):
        normal.append(values[~mask])
        anomalous.append(values[mask])
    # Two sorts of bare values: many times quicker than one argsort of scores with their labels.
    low, high = gather(normal), gather(anomalous)
    low.sort()
    high.sort()
    return _auroc(low, high)


def check_scores(scores: ArrayLike) -> Floats:
    """Scores as a finite floating array (n,), in their own precision.

    Raises DataError for another shape, NaN or infinity.
    """
    array = np.asarray(scores)
    if array.dtype.kind not in "fiub":
        raise DataError(f"scores must be real numbers, not {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim != 1:
        raise DataError(f"scores must have shape (n,), one per image, not {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise DataError(
            f"{bad.size} of {array.size} scores are NaN or infinite (first at index {bad[0]}): "
            "fix the detector or leave these images out"
        )
    return array


def check_labelled(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    """Scores (n,) finite, and labels (n,) as booleans (True is anomalous).

    Raises DataError for NaN or infinite scores, unequal lengths, labels other than 0 and 1.
    """
    values, marks = check_scores(scores), np.asarray(labels)
    if marks.shape != values.shape:
        raise DataError(f"{values.shape} scores but {marks.shape} labels: give one label per score")
    if marks.dtype != np.bool_ and not np.isin(marks, (0, 1)).all():
        raise DataError("labels must be 0 (normal) or 1 (anomalous)")
    return values, marks.astype(np.bool_)


def pixel_pairs(
    maps: ArrayLike | Pairs, masks: ArrayLike | None = None
) -> Iterator[tuple[Floats, Bools]]:
    """Yield (map (H, W) float32 or float64, mask (H, W) bool) for each image, checked.

    Takes what `pixel_auroc` takes. A mask may hold integers: any non-zero pixel is anomalous.
    Raises DataError for NaN or infinite maps, masks that do not fit, masks that are not boolean.
    """
    for index, (pixels, marks) in enumerate(_zipped(maps, masks)):
        values, mask = np.asarray(pixels), np.asarray(marks)
        if values.ndim != 2 or values.shape != mask.shape:
            raise DataError(
                f"image {index}: map {values.shape} and mask {mask.shape} must share one (H, W)"
            )
        if mask.dtype.kind not in "biu":
            raise DataError(
                f"image {index}: mask is {mask.dtype}, not boolean; pass mask > 0.5 to say "
                "which pixels are anomalous"
            )
        if values.dtype.kind not in "fiub":
            raise DataError(f"image {index}: map must hold real numbers, not {values.dtype}")
        values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
        if not np.isfinite(values).all():
            raise DataError(f"image {index}: map holds NaN or infinity; fix the detector")
        yield values, mask != 0


def gather(chunks: list[Floats]) -> Floats:
    """Join arrays (k_i,) into one (sum of k_i,), and empty the list.

    Emptied so that the chunks' memory is free for the sorts that follow.
    """
    joined = np.concatenate(chunks or [np.empty(0, dtype=np.float32)])
    chunks.clear()
    return joined


def _zipped(maps: ArrayLike | Pairs, masks: ArrayLike | None) -> Pairs:
    if masks is None:
        if isinstance(maps, np.ndarray) or not isinstance(maps, Iterable):
            raise DataError("masks are missing: pass maps and masks, or (map, mask) pairs")
        return maps  # type: ignore[return-value]  # each pair is checked as it is read
    if not isinstance(maps, np.ndarray | Sequence) or not isinstance(masks, np.ndarray | Sequence):
        raise DataError("maps and masks must be arrays or lists; a stream goes in as pairs")
    if len(maps) != len(masks):
        raise DataError(f"{len(maps)} maps but {len(masks)} masks: give one mask per map")
    return zip(maps, masks, strict=True)


def _auroc(normal: Floats, anomalous: Floats) -> float | None:
    """AUROC from the sorted scores of both classes."""
    if not (normal.size and anomalous.size):
        return None
    # Binary search of the smaller class in the larger; sorted needles walk memory in order.
    flip = anomalous.size > normal.size
    few, many = (normal, anomalous) if flip else (anomalous, normal)
    below = np.searchsorted(many, few, side="left").sum(dtype=np.int64)
    upto = np.searchsorted(many, few, side="right").sum(dtype=np.int64)
    pairs = 2 * few.size * many.size
    twice = int(below) + int(upto)  # integers until the end: exact for any number of pixels
    return (pairs - twice if flip else twice) / pairs


def flag_counts(scores: Floats, anomalous: Bools) -> FlagCounts | None:
    """Distinct scores, falling, with the anomalies and all that are at or above each of them.

    scores (n,) finite, anomalous (n,) bool; None when only one class is present.
    """
    if not anomalous.any() or anomalous.all():
        return None
    # Sorts of bare values and one search: several times quicker than an argsort.
    ranked, high = np.sort(scores), np.sort(scores[anomalous])
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    values = ranked[first]
    hits = high.size - np.searchsorted(high, values, side="left")
    return FlagCounts(values[::-1], hits[::-1], (ranked.size - first)[::-1])
