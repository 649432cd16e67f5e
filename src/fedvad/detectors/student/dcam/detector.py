"""DCAM as a detector: STFPM for many classes in one model, trained through attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedvad.data.bounds import MAX_BAD
from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.student.dcam.loss import imitation_loss
from fedvad.detectors.student.dcam.options import AttentionConfig, ImitationConfig, check_pair
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.targets import Batch
from fedvad.detectors.student.training import TrainConfig
from fedvad.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.dcam.attention import AttendedStudent

__all__ = ["DCAM", "AttendedSite"]


class AttendedSite(StudentSite):
    """A site whose student is trained through its attention; the attention's weights are part of
    `student`, so that they are averaged with the others. `net` has what scores, and the attention
    only if it is kept at test.
    """

    def __init__(
        self,
        net: PaSTeNet,
        *given: Any,
        attended: AttendedStudent,
        imitation: ImitationConfig,
        **options: Any,
    ) -> None:
        self.attended = attended
        self.imitation = imitation
        super().__init__(net, *given, **options)

    @property
    def student(self) -> torch.nn.Module:
        """Student and attention, which are trained together."""
        return self.attended

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cosine and KL losses of one batch, through the attention."""
        assert not isinstance(batch.inputs, list)  # the student reads pixels or a trunk
        plain = self.attended.plain(batch.inputs)
        return imitation_loss(
            self.attended.target(batch.teacher),
            self.attended.attended(plain),
            self.imitation,
            weights=self.attended.weights(plain),
        )


class DCAM(StudentDetector):
    """STFPM trained with attention and two losses (Jena et al., arXiv 2405.06467).

    attention, loss: see `AttentionConfig` and `ImitationConfig`. By default the attention serves
    training alone: what is kept, saved and run at test is a plain STFPM. train: by default the
    rate, batch and epochs of the public code; the rest is as for STFPM. combine: `sum`, as there.
    """

    name: ClassVar[str] = "dcam"

    def __init__(
        self,
        *,
        extractor: FeatureExtractor,
        attention: AttentionConfig | None = None,
        loss: ImitationConfig | None = None,
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
            layers=layers,
            combine=combine,
            train=train or TrainConfig(epochs=400, batch=32, learning_rate=0.1),
            held_out=held_out,
            smooth=smooth,
            top=top,
            cache_bytes=cache_bytes,
            seed=seed,
            max_bad=max_bad,
        )
        self.attention = attention or AttentionConfig()
        self.loss = loss or ImitationConfig()

    @classmethod
    def round_options(cls, table: Mapping[str, Any], train: TrainConfig) -> dict[str, Any]:
        """See `StudentDetector.round_options`."""
        made = {"attention": AttentionConfig, "loss": ImitationConfig}
        return {n: made[n](**value) if n in made else value for n, value in table.items()}

    def network(self) -> PaSTeNet:
        """The net that scores, before training; without any attention unless it is kept."""
        net = super().network()
        if not self.attention.keep_at_test:
            return net
        from fedvad.detectors.student.dcam.attention import AttendedNet

        return AttendedNet(net.teacher, self._attended(net))

    def starts(self) -> dict[str, torch.nn.Module]:
        """See `StudentDetector.starts`: student and attention in one."""
        net = self.network()
        return {"student": net.student if self.attention.keep_at_test else self._attended(net)}

    def _site(self, net: PaSTeNet, *given: Any, **options: Any) -> StudentSite:
        kept: Any = net.student
        attended = kept if self.attention.keep_at_test else self._attended(net)
        return AttendedSite(net, *given, attended=attended, imitation=self.loss, **options)

    def _attended(self, net: PaSTeNet) -> AttendedStudent:
        from fedvad.detectors.student.dcam.attention import attend

        side = self.extractor.config.side
        return attend(net, self.attention, image_size=side, seed=self.seed)

    def _check(self) -> None:
        super()._check()
        check_pair(self.attention, self.loss)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"attention": self.attention, "loss": self.loss}

    @classmethod
    def _restored(cls, options: dict[str, Any]) -> dict[str, Any]:
        return super()._restored(options) | {
            "attention": AttentionConfig(**options["attention"]),
            "loss": ImitationConfig(**options["loss"]),
        }
