"""DCAM as a detector: STFPM for many classes in one model, trained through attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedvad.detectors.student.dcam.loss import imitation_loss
from fedvad.detectors.student.dcam.options import AttentionConfig, ImitationConfig, check_pair
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.targets import Batch
from fedvad.detectors.student.training import TrainConfig

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.dcam.attention import AttendedStudent


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


_ATTENTION, _LOSS = AttentionConfig(), ImitationConfig()
_RATE = 0.1
_TRAIN = TrainConfig(
    epochs=400, batch=32, learning_rate=_RATE, decay="cosine", patience=None, validate_every=50
)


@dataclass(kw_only=True, eq=False, repr=False)
class DCAM(StudentDetector):
    """STFPM trained with attention and two losses (Jena et al., arXiv 2405.06467).

    attention, loss: see `AttentionConfig` and `ImitationConfig`. By default the attention serves
    training alone: what is kept, saved and run at test is a plain STFPM. train: by default the
    rate, batch and epochs of the public code; the rest is as for STFPM. combine: `sum`, as there.
    """

    name: ClassVar[str] = "dcam"

    site: ClassVar[type[StudentSite]] = AttendedSite
    recipe: ClassVar[Mapping[str, int]] = {"student": 102_400}

    attention: AttentionConfig = _ATTENTION
    loss: ImitationConfig = _LOSS
    combine: Combine = "sum"
    train: TrainConfig = _TRAIN

    @classmethod
    def round_training(cls) -> TrainConfig:
        """See `StudentDetector.round_training`."""
        return replace(super().round_training(), learning_rate=_RATE)

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

    def _site_options(self, net: PaSTeNet) -> dict[str, Any]:
        kept = self.attention.keep_at_test
        return {"attended": net.student if kept else self._attended(net), "imitation": self.loss}

    def _attended(self, net: PaSTeNet) -> AttendedStudent:
        from fedvad.detectors.student.dcam.attention import attend

        side = self.extractor.config.side
        return attend(net, self.attention, image_size=side, seed=self.seed)

    def _check(self) -> None:
        super()._check()
        check_pair(self.attention, self.loss)
