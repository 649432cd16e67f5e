"""What every detector is: fit on normal images, score images, save, load."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import ImageSet
from fedvad.detectors.artefact import write_arrays
from fedvad.detectors.registry import load_detector
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.features.extractor import FeatureExtractor, check_bad_share
from fedvad.features.near_copies import Sketches, confirmed
from fedvad.half import HalfArray, to_float
from fedvad.memory.bank import FloatArray

if TYPE_CHECKING:
    import torch

__all__ = [
    "Arrays",
    "Detector",
    "NormalFeatures",
    "Pictures",
    "Scorer",
    "Scores",
    "Values",
    "check_score",
    "collected",
    "score_stream",
]

Arrays = dict[str, npt.NDArray[Any]]
Values = dict[str, Any]
# one uint8 (n, H, W, 3), or (H, W, 3) each
Pictures = npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the readable images of a set; higher is more anomalous.

    image: (n,) float64. maps: float32 on the patch grid, (n, h, w), or n of (h, w) where the sizes
    of images differ; 0 outside the region of interest.
    kept: (n,) positions in the set that was scored. bad: one reason per unreadable image.
    """

    image: npt.NDArray[np.float64]
    maps: FloatArray | list[FloatArray]
    kept: npt.NDArray[np.int64]
    bad: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False, repr=False)
class Detector(ABC):
    """Base class of all detectors.

    The constructor only stores the options, which are the fields of the class. `fit` stores what it
    learns in attributes that end in `_`.
    """

    name: ClassVar[str]
    # of the table `[student]`, those that mean something to this detector alone
    own_options: ClassVar[tuple[str, ...]] = ()
    # whether another seed learns something else
    random: ClassVar[bool] = True

    extractor: FeatureExtractor
    seed: int = 0

    @property
    def memory_rows(self) -> int:
        """Rows of memory that every patch is compared with; 0 without a memory."""
        return 0

    @abstractmethod
    def fit(self, images: ImageSet) -> Self:
        """Learn from normal images; raises `DataError` when none can be read."""

    @abstractmethod
    def score(self, images: Sequence[Path], on_image: Callable[[], None] | None = None) -> Scores:
        """Score image files; raises `ConfigError` before `fit`."""

    @abstractmethod
    def ready(self) -> None:
        """Make what scoring needs besides the backbone; raises `ConfigError` before `fit`."""

    @abstractmethod
    def score_pixels(self, images: Pictures) -> Iterator[tuple[float, FloatArray]]:
        """Score and (h, w) map of each of uint8 (H, W, 3) images; nothing is cached."""

    def share_engine(self, other: Detector) -> None:
        """Use the backbone of another detector of the same features, in place of a second copy."""
        self.extractor = other.extractor

    def map_net(self) -> torch.nn.Module:
        """From uint8 (b, S, S, 3) images to the (b, h, w) maps of `score`, as exports hold it.

        Raises `ConfigError` where there is none.
        """
        raise ConfigError(f"{self.name} cannot be expressed as one graph")

    def facts(self) -> dict[str, Any]:
        """What the manifest of an export says of the detector."""
        return {}

    def top_count(self, cells: int) -> int:
        """Number of the highest cells, of a map of `cells`, whose mean is the image score."""
        return 1

    @abstractmethod
    def state(self) -> tuple[Arrays, Values]:
        """Everything learned, as named arrays and JSON values."""

    @classmethod
    @abstractmethod
    def from_state(cls, arrays: Arrays, values: Values, *, extractor: FeatureExtractor) -> Self:
        """The detector whose `state` this was; scores are reproduced exactly."""

    def save(self, path: Path) -> None:
        """Write one safetensors file; raises `StorageError` when the disk refuses."""
        arrays, values = self.state()
        described = {
            "kind": "detector",
            "detector": self.name,
            "features": self.extractor.config.identity(),
            "values": values,
        }
        write_arrays(path, arrays, described)

    @classmethod
    def load(cls, path: Path, *, extractor: FeatureExtractor) -> Self:
        """Read what `save` wrote; raises `ArtefactError` or `MismatchError`."""
        detector = load_detector(path, extractor=extractor)
        if not isinstance(detector, cls):
            raise ConfigError(f"{path} holds a {detector.name} detector, not {cls.name}")
        return detector


class NormalFeatures:
    """A site's readable normal images as a stream of descriptors that can be run repeatedly.

    Nothing is held in memory: every pass reads the extractor's cache. The first pass finds the
    unreadable images, the `digests` of the others, and near copies. Raises `DataError` when none
    is left, or too many are bad.

    copies: by path of an image, those of its near copies, which say nothing that it does not.
    """

    def __init__(
        self, extractor: FeatureExtractor, paths: Sequence[Path], *, max_bad: float, where: str
    ) -> None:
        self.extractor = extractor
        self.paths = list(paths)
        self.max_bad = max_bad
        self.where = where
        self.bad: tuple[str, ...] = ()
        self.digests = [""] * len(self.paths)
        self.copies: dict[Path, list[Path]] = {}

    def warm_up(
        self,
        on_image: Callable[[], None] | None = None,
        on_descriptors: Callable[[HalfArray], None] | None = None,
    ) -> None:
        """One pass that fills the cache and drops unreadable images.

        `on_descriptors` gets the (h, w, d) descriptors of each readable one, in order.
        """
        kept, bad, digests, sketches = [], [], [], Sketches()
        for item in self.extractor.stream(self.paths, on_image):
            if item.descriptors is None:
                bad.append(item.error or "unknown error")
            else:
                kept.append(self.paths[item.index])
                digests.append(item.digest)
                sketches.add(item.descriptors)
                if on_descriptors is not None:
                    on_descriptors(item.descriptors)
        check_bad_share(bad, len(self.paths), self.max_bad, self.where)
        if not kept:
            raise DataError(f"{self.where}: no readable normal image to train on")
        self.paths, self.bad, self.digests = kept, tuple(bad), digests
        suspects = [[kept[i] for i in group] for group in sketches.copies()]
        self.copies = confirmed(suspects, max_pixels=self.extractor.config.max_pixels)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[HalfArray]:
        return self._stream(self.paths)

    def _stream(self, paths: Sequence[Path]) -> Iterator[HalfArray]:
        for item in self.extractor.stream(paths):
            if item.descriptors is None:
                raise DataError(f"{self.where}: an image vanished during the run: {item.error}")
            yield item.descriptors

    def subset(self, indices: Sequence[int]) -> NormalFeatures:
        """The images at `indices`, with nothing read again."""
        chosen = NormalFeatures(
            self.extractor,
            [self.paths[i] for i in indices],
            max_bad=self.max_bad,
            where=self.where,
        )
        chosen.digests = [self.digests[i] for i in indices]
        chosen.copies = self.copies
        return chosen

    def witnesses(self) -> list[int]:
        """Positions of the images that count: of near copies, the first."""
        again = {path for copies in self.copies.values() for path in copies}
        return [i for i, path in enumerate(self.paths) if path not in again]

    def with_copies(self) -> Iterator[tuple[HalfArray, list[HalfArray]]]:
        """Descriptors of each image, and of its near copies, whether or not they are among these.

        Every image is read as often as it is named.
        """
        of_copies = self._stream([path for own in self.paths for path in self.copies.get(own, [])])
        for path, descriptors in zip(self.paths, self, strict=True):
            yield descriptors, list(islice(of_copies, len(self.copies.get(path, []))))


class Scorer(Protocol):
    """What scores one image's descriptors."""

    def score(self, descriptors: FloatArray) -> tuple[float, FloatArray]:
        """Image score and (h, w) map of (h, w, d) descriptors."""
        ...


def check_score(score: float, where: str) -> float:
    """The score itself; raises `ArtefactError` naming the image for NaN or infinity.

    Any comparison with NaN is false: a defect would pass as normal.
    """
    if not math.isfinite(score):
        raise ArtefactError(
            f"{where}: its score is {score}, so nothing can be decided: the detector or the "
            "backbone's weights are damaged; restore them, or train again"
        )
    return score


def score_stream(
    extractor: FeatureExtractor,
    scorer: Scorer,
    embed: Callable[[FloatArray], FloatArray],
    paths: Sequence[Path],
    on_image: Callable[[], None] | None = None,
) -> Scores:
    """Score image files one by one through `embed` and `scorer`.

    Raises `ArtefactError` for a score that is not finite, see `check_score`.
    """
    outcomes = (
        (item.index, item.error or "unknown error")
        if item.descriptors is None
        else (item.index, scorer.score(embed(to_float(item.descriptors))))
        for item in extractor.stream(paths, on_image)
    )
    return collected(outcomes, paths, extractor.grid[:2])


def collected(
    outcomes: Iterable[tuple[int, tuple[float, FloatArray] | str]],
    paths: Sequence[Path],
    grid: tuple[int, int],
) -> Scores:
    """Scores of the images of `paths`, in order: of each its score and map, or why it has none.

    grid: (h, w) of the maps, for none at all. Raises `ArtefactError` as `check_score` does.
    """
    images, maps, kept, bad = [], [], [], []
    for index, found in outcomes:
        if isinstance(found, str):
            bad.append(found)
            continue
        images.append(check_score(found[0], str(paths[index])))
        maps.append(found[1])
        kept.append(index)
    stacked: FloatArray | list[FloatArray] = maps
    if len({map_.shape for map_ in maps}) < 2:
        stacked = np.stack(maps) if maps else np.zeros((0, *grid), np.float32)
    return Scores(np.array(images, np.float64), stacked, np.array(kept, np.int64), tuple(bad))
