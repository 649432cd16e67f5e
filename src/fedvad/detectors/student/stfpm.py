"""STFPM and PaSTe as detectors."""

from __future__ import annotations

from typing import Any, ClassVar

from fedvad.data.bounds import MAX_BAD
from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.training import TrainConfig
from fedvad.features.extractor import FeatureExtractor

__all__ = ["STFPM", "PaSTe"]


class STFPM(StudentDetector):
    """Student-teacher feature pyramid matching (Wang et al., BMVC 2021)."""

    name: ClassVar[str] = "stfpm"


class PaSTe(StudentDetector):
    """STFPM whose student shares the teacher's first layers (arXiv 2410.11591).

    bootstrap: the last shared layer, by the backbone's count; None takes the one before the first
    tap, -1 shares nothing.
    """

    name: ClassVar[str] = "paste"
    own_options: ClassVar[tuple[str, ...]] = ("bootstrap",)

    def __init__(
        self,
        *,
        extractor: FeatureExtractor,
        bootstrap: int | None = None,
        layers: tuple[int, ...] | None = None,
        combine: Combine = "product",
        train: TrainConfig | None = None,
        held_out: float = 0.2,
        smooth: int = ScoringConfig.smooth,
        top: float = ScoringConfig.top,
        cache_bytes: int = 256 << 20,
        seed: int = 0,
        max_bad: float = MAX_BAD,
    ) -> None:
        super().__init__(
            extractor=extractor,
            layers=layers,
            combine=combine,
            train=train,
            held_out=held_out,
            smooth=smooth,
            top=top,
            cache_bytes=cache_bytes,
            seed=seed,
            max_bad=max_bad,
        )
        self.bootstrap = bootstrap

    def _bootstrap(self) -> int | None:
        return self.bootstrap

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"bootstrap": self.bootstrap}
