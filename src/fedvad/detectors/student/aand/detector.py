"""AAND as a detector: a student of a teacher whose response to anomalies was amplified first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fedvad.data.folders import ImageSet
from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.base import Arrays, Values
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.aand.site import AANDSite
from fedvad.detectors.student.drawing import DEFECTS, check_drawing
from fedvad.detectors.student.rd.detector import ReverseDetector, adam
from fedvad.detectors.student.rd.loss import ReverseLoss
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.training import TrainConfig, TrainLog
from fedvad.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.aand.amplify import AdvancedNet

_AMPLIFY, _STAGE1 = AmplifyConfig(), adam(2000)


@dataclass(kw_only=True, eq=False, repr=False)
class AAND(ReverseDetector):
    """Reverse distillation from an advanced teacher, in two stages (arXiv 2405.02068).

    amplify, stage1: what stage I learns, and its training, on normal images with defects drawn by
    `synthesis`. textures: folder of pictures that fill such defects. Both stages train for a fixed
    number of steps and keep the last weights; no image labelled as anomalous is ever read. train:
    options of stage II. loss, hard: see `reverse_loss`. The rest is as for `ReverseDetector`.

    amplified_: how stage I went (None where the blocks came from elsewhere).
    """

    name: ClassVar[str] = "aand"
    own_options: ClassVar[tuple[str, ...]] = ("amplify_rounds",)
    parts: ClassVar[tuple[str, ...]] = ("amplifier", "student")
    recipe: ClassVar[Mapping[str, int]] = {"amplifier": 32_000, "student": 38_400}
    site: ClassVar[type[StudentSite]] = AANDSite

    loss: ReverseLoss = "hard+global"
    amplify: AmplifyConfig = _AMPLIFY
    stage1: TrainConfig = _STAGE1
    synthesis: SynthesisConfig = DEFECTS
    textures: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
    def round_options(
        cls, table: Mapping[str, Any], train: TrainConfig, steps: int | None
    ) -> dict[str, Any]:
        """See `StudentDetector.round_options`."""
        table = dict(table)
        stage1 = train.in_rounds(table.pop("amplify_rounds"), cls.recipe["amplifier"], steps)
        return super().round_options(table, train, steps) | {"stage1": stage1}

    def fit(self, images: ImageSet) -> Self:
        """See `Detector.fit`."""
        with closing(self.prepare(images)) as site:
            log = site.train()
        assert isinstance(site, AANDSite)
        self.amplified_ = site.amplified
        return self.with_net(site.net, site.unseen, log)

    def state(self) -> tuple[Arrays, Values]:
        """See `Detector.state`."""
        arrays, values = super().state()
        log = None if self.amplified_ is None else asdict(self.amplified_)
        return arrays, values | {"amplified": log}

    @classmethod
    def from_state(cls, arrays: Arrays, values: Values, *, extractor: FeatureExtractor) -> Self:
        """See `Detector.from_state`."""
        detector = super().from_state(arrays, values, extractor=extractor)
        log = values["amplified"]
        detector.amplified_ = None if log is None else TrainLog(**log)
        return detector

    @staticmethod
    def _parts(net: Any) -> dict[str, torch.nn.Module]:
        return {"amplifier": net.blocks, "student": net.student}

    def _check(self) -> None:
        super()._check()
        check_drawing(self.synthesis, self.textures)
