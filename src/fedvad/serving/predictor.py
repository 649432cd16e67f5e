"""A trained run at work: images in, score, decision and map out, from any number of threads."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fedvad.data.arrays import ImageLike, is_image, to_rgb
from fedvad.data.bounds import MAX_PIXELS, check_limit
from fedvad.data.views import Size
from fedvad.detectors.base import Detector
from fedvad.errors import ArtefactError, ConfigError, ImageError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import Engine
from fedvad.memory.bank import FloatArray
from fedvad.runs.config import Reference, as_path, check_reference
from fedvad.runs.decision import check_threshold_options, choose_threshold
from fedvad.runs.opening import check_pictures, known_site, open_run

__all__ = ["ImageLike", "Prediction", "Predictor"]

Pixels = npt.NDArray[np.uint8]
_NOT_FINITE = (
    "the score is no finite number, so nothing can be decided: the run or its weights are damaged"
)
_CHUNK = 32  # images of which the pixels are held at a time


@dataclass(frozen=True, eq=False)
class Prediction:
    """Score, decision and heat-map of one image.

    score: higher is more anomalous; None if the image cannot be read. threshold: what the score is
    compared with; None if the run has none. anomalous: score > threshold; None if one of the two is
    missing. map: (h, w) float32 on the patch grid, smoothed. size: (height, width) of the given
    image in pixels. error: why the image cannot be read.
    """

    score: float | None
    threshold: float | None
    anomalous: bool | None
    map: FloatArray | None
    size: tuple[int, int] | None
    error: str | None = None


class Predictor:
    """Scores images in memory, one call after another: writes no files and uses no cache.

    Results are those of `fedvad predict`. Methods may be called from several threads: files are
    decoded in parallel, and the detector works on one call at a time, since it uses all cores. Use
    it as a context manager, or call `close`.
    """

    def __init__(
        self,
        detector: Detector,
        threshold: Threshold | None,
        *,
        site: str | None = None,
        max_pixels: int = MAX_PIXELS,
        max_expansion: int | None = None,
    ) -> None:
        """Prefer `load`.

        Raises `ConfigError` for a detector before `fit`, `ArtefactError` for a threshold that is
        not finite.
        """
        detector.ready()
        check_limit(max_pixels, "max_pixels")
        if max_expansion is not None:
            check_limit(max_expansion, "max_expansion")
        self.site = site
        self.threshold = threshold
        self.max_pixels = max_pixels
        self.max_expansion = max_expansion
        self._detector = detector
        self._lock = threading.Lock()
        self._closed, self._calls = False, 0
        if threshold is not None and not math.isfinite(threshold.value):
            raise ArtefactError(
                f"the threshold of this run is {threshold.value}, so nothing can be decided: "
                "restore the run from a copy, or train again"
            )
        self._idle = threading.Condition()
        # also bounds how many whole images are in memory at a time
        self._readers = ThreadPoolExecutor(
            min(4, max(2, os.cpu_count() or 1)), thread_name_prefix="fedvad-decode"
        )

    @classmethod
    def load(
        cls,
        run: Path | str,
        *,
        site: str | None = None,
        reference: Reference | None = None,
        threshold: float | None = None,
        target_fpr: float | None = None,
        weights: Path | str | None = None,
        engine: Engine | None = None,
        device: str | None = None,
        max_pixels: int | None = None,
        max_expansion: int | None = None,
    ) -> Self:
        """Make the predictor of a run folder.

        Parameters
        ----------
        run : path
            Run folder.
        site : str, optional
            Site whose memory and threshold are used. None uses what all sites share, and the median
            of their thresholds; in a run of one site it means that site.
        reference : {"global", "local", "union"}, optional
            As that of `fedvad.predict`.
        threshold, target_fpr : float, optional
            Replace the run's threshold, see `runs.decision.choose_threshold`.
        weights, engine, device : optional
            As those of `fedvad.predict`. If the machine lacks the device of the training, the CPU
            is used, with a warning.
        max_pixels : int, optional
            An image of more pixels counts as unreadable, and is not decoded. None takes the limit
            of the training.
        max_expansion : int, optional
            An image of more than a megapixel with more pixels than this for each byte of its file
            counts as unreadable. None sets no limit.

        Raises
        ------
        ConfigError
            If the run does not know the site, or an option cannot be met.
        ArtefactError, WeightsError, MismatchError
            See `fedvad.errors`; `MismatchError` if the backbone's values differ.
        """
        check_reference(reference)
        check_threshold_options(threshold, target_fpr)
        trained, config, extractor = open_run(
            as_path(run, "run"), weights=weights, engine=engine, device=device
        )
        check_pictures(extractor, "the service")
        site = known_site(trained, site)
        return cls(
            trained.detector(site, extractor, reference),
            choose_threshold(trained, site, reference, threshold=threshold, target_fpr=target_fpr),
            site=site,
            max_pixels=config.max_pixels if max_pixels is None else max_pixels,
            max_expansion=max_expansion,
        )

    @property
    def image_size(self) -> Size:
        """Pixels at which every image is read, as the option of that name says it."""
        return self._detector.extractor.config.image_size

    def warm_up(self) -> None:
        """Build the engine and run it once, so that the first image is not the slow one."""
        self.predict([np.full((*self._detector.extractor.config.view.input, 3), 128, np.uint8)])

    def share_engine(self, other: Predictor) -> None:
        """Use the backbone of another predictor of the same run, instead of a second copy."""
        self._detector.share_engine(other._detector)
        self._lock = other._lock

    def follow(self, other: Predictor) -> None:
        """Score as another predictor of the same run does from the next image on; closes that."""
        other.share_engine(self)
        with self._lock:
            self._detector, self.threshold = other._detector, other.threshold
        other.close()

    def predict(
        self, images: Iterable[ImageLike], *, names: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Score images, one result for each, in the same order.

        images: paths, bytes of image files, arrays, PIL images or tensors, see
        `data.arrays.to_rgb`. Arrays are RGB, not BGR as OpenCV gives them. An image that cannot be
        decoded gives a result with `error`; the others continue. names: what messages call the
        images. Raises `DataError` for an array of another shape or something that is no image;
        `ConfigError` for a single image instead of a list, or after `close`.
        """
        if is_image(images) or not isinstance(images, Iterable):
            raise ConfigError(
                "predict takes a list of images; for one give [image], for a stack list(images)"
            )
        images = list(images)
        if names is None:
            names = [
                str(image) if isinstance(image, str | Path) else f"images[{i}]"
                for i, image in enumerate(images)
            ]
        elif len(names) != len(images):
            raise ConfigError(f"{len(names)} names for {len(images)} images; give one for each")
        with self._idle:
            if self._closed:
                raise ConfigError("this predictor is closed; load the run again")
            self._calls += 1
        try:
            results: list[Prediction] = []
            step = min(_CHUNK, self._detector.extractor.chunk)
            for start in range(0, len(images), step):
                several = images[start : start + step], names[start : start + step]
                results += self._chunk(list(self._readers.map(self._read, *several)))
            return results
        finally:
            with self._idle:
                self._calls -= 1
                self._idle.notify_all()

    def close(self) -> None:
        """Let go of the threads; calls that are under way end first."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._calls)
        self._readers.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chunk(self, read: list[_Read | str]) -> list[Prediction]:
        limit = None if self.threshold is None else self.threshold.value
        good = [item.pixels for item in read if not isinstance(item, str)]
        results = []
        with self._lock:
            made = iter(self._detector.score_pixels(good) if good else ())
            for item in read:
                if isinstance(item, str):
                    results.append(Prediction(None, limit, None, None, None, item))
                    continue
                score, map_ = next(made)
                if not (math.isfinite(score) and np.isfinite(map_).all()):
                    results.append(Prediction(None, limit, None, None, None, _NOT_FINITE))
                    continue
                judged = None if limit is None else score > limit
                results.append(Prediction(score, limit, judged, map_, item.size))
        return results

    def _read(self, image: ImageLike, name: str) -> _Read | str:
        """Scaled pixels and original size, or the reason why there are none."""
        try:
            pixels = to_rgb(
                image, name, max_pixels=self.max_pixels, max_expansion=self.max_expansion
            )
        except ImageError as error:
            return str(error)
        scaled = self._detector.extractor.config.view.scaled(pixels)
        return _Read(scaled, (int(pixels.shape[0]), int(pixels.shape[1])), name)


class _Read(NamedTuple):
    pixels: Pixels
    size: tuple[int, int]
    name: str
