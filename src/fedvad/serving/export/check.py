"""Does an exported model score like the detector it was made of?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.images import read_rgb, resize_rgb
from fedvad.data.inputs import read_images
from fedvad.data.views import View
from fedvad.detectors.base import Detector
from fedvad.errors import DataError, ImageError
from fedvad.features.extractor import check_bad_share
from fedvad.runs.config import TrainConfig
from fedvad.runs.data import load_sites
from fedvad.runs.progress import Progress, Stage

_Images = npt.NDArray[np.uint8]
Model = Callable[[_Images], list[npt.NDArray[Any]]]
_BATCH = 8


@dataclass(frozen=True)
class Difference:
    """Largest relative differences over some images, and how many decisions differ.

    A map's difference is relative to its highest cell.
    """

    score: float
    map: float
    decisions: int
    images: int

    def within(self, tolerance: Mapping[str, float]) -> bool:
        """Whether score and map differ by no more than their tolerances."""
        return self.score <= tolerance["score"] and self.map <= tolerance["map"]


@contextmanager
def opened(
    load: Callable[[Path], Model], contents: Mapping[str, bytes], model_file: str
) -> Iterator[Model]:
    """A model of several files by name, as a function of images."""
    with tempfile.TemporaryDirectory(prefix="fedvad-export-") as folder:
        for file, content in contents.items():
            (Path(folder) / file).write_bytes(content)
        yield load(Path(folder) / model_file)


def compare(
    model: Model, detector: Detector, threshold: float | None, batches: Iterable[_Images]
) -> Difference:
    """How far the model's outputs are from the detector's, on batches of (b, H, W, 3) images."""
    worst = {"score": 0.0, "map": 0.0}
    decisions = count = 0
    for images in batches:
        scores, maps, *anomalous = model(images)
        for i, (score, map_) in enumerate(detector.score_pixels(images)):
            for name, made, wanted in (("score", scores[i], score), ("map", maps[i], map_)):
                gap = np.abs(np.asarray(made, np.float64) - wanted).max() / np.abs(wanted).max()
                worst[name] = float(np.fmax(worst[name], gap)) if np.isfinite(gap) else np.inf
            if anomalous and threshold is not None:
                decisions += bool(anomalous[0][i]) != (score > threshold)
        count += len(images)
    return Difference(worst["score"], worst["map"], decisions, count)


def drawn_images(size: tuple[int, int]) -> _Images:
    """(3, *size, 3) coarse noise: nothing of anybody's data, and no cell like another."""
    rng = np.random.default_rng(0)
    return np.stack(
        [resize_rgb(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), size) for _ in range(3)]
    )


def images_of(
    data: Path, config: TrainConfig, site: str | None, progress: Progress
) -> Iterator[_Images]:
    """Batches (b, H, W, 3) of the images that an export is verified on.

    The test images of a site (None: of all) in a folder of sites, or else every image in the
    folder. Raises `DataError` for none, or when too many cannot be read or are of another shape.
    """
    view = config.features().view
    paths = _paths(data, config, site)
    stage = Stage(progress, "verifying", len(paths))
    batch, bad = [], []
    for path in paths:
        try:
            batch.append(whole_view(read_rgb(path, max_pixels=config.max_pixels), view, path))
        except ImageError as error:
            bad.append(str(error))
        stage()
        if len(batch) == _BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
    check_bad_share(bad, len(paths), config.max_bad, str(data))
    if len(bad) == len(paths):
        raise DataError(f"{data}: no readable image to verify the export on")


def whole_view(image: npt.NDArray[np.uint8], view: View, path: Path) -> npt.NDArray[np.uint8]:
    """The (H, W, 3) pixels that an exported model takes of an image.

    Raises `ImageError` where they are not all of the view: a model is made for one size.
    """
    scaled = view.scaled(image)
    if scaled.shape[:2] != (view.height, view.width):
        raise ImageError(
            f"{path}: becomes {scaled.shape[0]} x {scaled.shape[1]} pixels, an exported model "
            f"takes {view.height} x {view.width} only"
        )
    return scaled


def _paths(data: Path, config: TrainConfig, site: str | None) -> list[Path]:
    try:
        sites = load_sites(data, None, config.seed, config.label_names(), allow_empty_train=True)
    except DataError:
        return read_images([data])
    tested = [item.path for s in sites if site in (None, s.name) for item in s.test]
    if not tested:
        where = "" if site is None else f" of site {site!r}"
        raise DataError(f"{data} has no test images{where} to verify the export on")
    return tested
