"""AAND as a detector: a student of a teacher whose response to anomalies was amplified first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy.typing as npt

from fedvad.data.bounds import MAX_BAD
from fedvad.data.folders import ImageSet
from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.aand.site import AANDSite
from fedvad.detectors.student.drawing import (
    DEFECTS,
    check_drawing,
    given_drawing,
    kept_drawing,
    restored_drawing,
)
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.detectors.student.rd.detector import ReverseDetector, adam
from fedvad.detectors.student.rd.loss import ReverseLoss
from fedvad.detectors.student.training import TrainConfig, TrainLog
from fedvad.errors import MismatchError
from fedvad.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.aand.amplify import AdvancedNet
    from fedvad.detectors.student.branches import PaSTeNet

__all__ = ["AAND"]


class AAND(ReverseDetector):
    """Reverse distillation from an advanced teacher, in two stages (arXiv 2405.02068).

    amplify, stage1: what stage I is and how it trains, on defects drawn by `synthesis` on the
    normal images; textures: a folder of pictures that they may be filled with. Both stages train
    for fixed numbers of steps and keep the last; no image with a label of anomaly is ever read.
    train: of stage II. loss, hard: see `reverse_loss`. The rest is as for `ReverseDetector`.

    amplified_: how stage I went (None where the blocks came from elsewhere).
    """

    name: ClassVar[str] = "aand"
    own_options: ClassVar[tuple[str, ...]] = ("amplify_rounds",)
    parts: ClassVar[tuple[str, ...]] = ("amplifier", "student")
    net_: AdvancedNet | None

    def __init__(
        self,
        *,
        extractor: FeatureExtractor,
        amplify: AmplifyConfig | None = None,
        stage1: TrainConfig | None = None,
        synthesis: SynthesisConfig | None = None,
        textures: Path | None = None,
        width: float = 1.0,
        loss: ReverseLoss = "hard+global",
        hard: int = 10,
        layers: tuple[int, ...] | None = None,
        combine: Combine = "sum",
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
            width=width,
            loss=loss,
            hard=hard,
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
        self.amplify = amplify or AmplifyConfig()
        self.stage1 = stage1 or adam(300)
        self.synthesis = synthesis or DEFECTS
        self.textures = textures
        self.amplified_: TrainLog | None = None

    def network(self) -> AdvancedNet:
        """See `StudentDetector.network`."""
        from fedvad.detectors.student.aand.amplify import AdvancedNet, amplifier
        from fedvad.detectors.student.rd.net import tap_shapes

        net = super().network()
        shapes = tap_shapes(net.teacher, self.extractor.config.side)
        blocks = amplifier(shapes, self.amplify, seed=self.seed)
        advanced = AdvancedNet(net.teacher, net.student, blocks)
        return advanced.to(self.extractor.config.device)

    @classmethod
    def round_options(cls, table: Mapping[str, Any], train: TrainConfig) -> dict[str, Any]:
        """See `StudentDetector.round_options`."""
        amplify = AmplifyConfig(**table.get("amplify", {}))
        table = {key: value for key, value in table.items() if key != "amplify_rounds"}
        found = super().round_options(table, train) | {"stage1": train, "amplify": amplify}
        return found | given_drawing(table)

    def starts(self) -> dict[str, torch.nn.Module]:
        """See `StudentDetector.starts`: stage I comes first."""
        net = self.network()
        return {"amplifier": net.blocks, "student": net.student}

    def prepare(self, images: ImageSet, net: PaSTeNet | None = None) -> AANDSite:
        """See `StudentDetector.prepare`."""
        site = super().prepare(images, net)
        assert isinstance(site, AANDSite)
        return site

    def fit(self, images: ImageSet) -> Self:
        """See `Detector.fit`."""
        site = self.prepare(images)
        try:
            log = site.train()
        finally:
            site.close()
        self.with_net(site.net, site.unseen, log)
        self.amplified_ = site.amplified
        return self

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """See `Detector.state`."""
        arrays, values = super().state()
        assert self.net_ is not None  # or there was no state
        arrays |= {f"amplifier/{n}": a for n, a in parameters_of(self.net_.blocks).items()}
        kept_drawing(values["options"])
        values["amplified"] = None if self.amplified_ is None else asdict(self.amplified_)
        return arrays, values

    @classmethod
    def from_state(
        cls,
        arrays: dict[str, npt.NDArray[Any]],
        values: dict[str, Any],
        *,
        extractor: FeatureExtractor,
    ) -> Self:
        """See `Detector.from_state`."""
        detector = super().from_state(arrays, values, extractor=extractor)
        assert detector.net_ is not None
        try:
            load_parameters(detector.net_.blocks, under("amplifier/", arrays))
        except MismatchError as error:  # to a reader of files it is damage
            raise TypeError(str(error)) from error
        log = values["amplified"]
        detector.amplified_ = None if log is None else TrainLog(**log)
        return detector

    def _site(self, net: PaSTeNet, *given: Any, **options: Any) -> AANDSite:
        advanced: Any = net  # as `network` makes it
        return AANDSite(
            advanced,
            *given,
            kind=self.loss,
            hard=self.hard,
            amplify=self.amplify,
            stage1=self.stage1,
            synthesis=self.synthesis,
            textures=self.textures,
            **options,
        )

    def _check(self) -> None:
        super()._check()
        check_drawing(self.synthesis, self.textures)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "amplify": self.amplify,
            "stage1": self.stage1,
            "synthesis": self.synthesis,
            "textures": self.textures,
        }

    @classmethod
    def _restored(cls, options: dict[str, Any]) -> dict[str, Any]:
        return (
            super()._restored(options)
            | restored_drawing(options)
            | {
                "amplify": AmplifyConfig(**options["amplify"]),
                "stage1": TrainConfig(**options["stage1"]),
            }
        )
