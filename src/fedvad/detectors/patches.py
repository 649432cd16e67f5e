"""What detectors have in common that score the patches of an image by their descriptors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvad.data.bounds import MAX_BAD
from fedvad.data.folders import ImageSet
from fedvad.detectors.base import Detector, NormalFeatures, Pictures, Scorer, Scores, score_stream
from fedvad.detectors.scoring import ScoringConfig
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray

SCORING = ScoringConfig()


@dataclass(kw_only=True, eq=False, repr=False)
class PatchDetector(Detector):
    """Scores images by their patches; max_bad: share of training images that may be unreadable."""

    scoring: ScoringConfig = SCORING
    max_bad: float = MAX_BAD

    @property
    @abstractmethod
    def scorer(self) -> Scorer:
        """What scores descriptors; raises `ConfigError` before anything was learned."""

    def embedded(self, descriptors: FloatArray) -> FloatArray:
        """Descriptors (h, w, d) as the scorer takes them."""
        return descriptors

    def score(self, images: Sequence[Path], on_image: Callable[[], None] | None = None) -> Scores:
        """See `Detector.score`."""
        return score_stream(self.extractor, self.scorer, self.embedded, images, on_image)

    def ready(self) -> None:
        """See `Detector.ready`."""
        _ = self.scorer

    def score_pixels(self, images: Pictures) -> Iterator[tuple[float, FloatArray]]:
        """See `Detector.score_pixels`."""
        scorer = self.scorer
        for descriptors in self.extractor.describe(images):
            yield scorer.score(self.embedded(to_float(descriptors)))

    def top_count(self, cells: int) -> int:
        """See `Detector.top_count`."""
        return self.scoring.count(cells)

    def _features(self, images: ImageSet) -> NormalFeatures:
        paths = [item.path for item in images if item.label == 0]
        features = NormalFeatures(
            self.extractor, paths, max_bad=self.max_bad, where=f"{self.name} training set"
        )
        features.warm_up()
        return features
