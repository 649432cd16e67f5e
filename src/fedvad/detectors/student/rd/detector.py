"""Reverse distillation as a detector: what the student cannot rebuild from a summary is odd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.rd.loss import ReverseLoss, reverse_loss
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.targets import Batch
from fedvad.detectors.student.training import TrainConfig
from fedvad.errors import ConfigError, check_choice

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.rd.net import ReverseNet


def adam(steps: int) -> TrainConfig:
    """The optimiser of the papers' public code, for this many steps; the last one is kept."""
    return TrainConfig(
        steps=steps, batch=16, learning_rate=0.005, optimiser="adam", momentum=0.5,
        weight_decay=0.0, drop=0.2, patience=None, validate_every=max(1, steps // 20),
    )  # fmt: skip


_TRAIN = adam(2400)


class ReverseSite(StudentSite):
    """A site whose student is given the teacher's maps: no pixels are kept."""

    options: ClassVar[tuple[str, ...]] = ("loss", "hard")
    always_chooses: ClassVar[bool] = False

    def __init__(
        self, net: PaSTeNet, *given: Any, loss: ReverseLoss, hard: int, **options: Any
    ) -> None:
        self.kind, self.hard = loss, hard
        super().__init__(net, *given, **options)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The configured loss of one batch."""
        return reverse_loss(
            *self.net.compared(batch.teacher, batch.inputs), self.kind, hard=self.hard
        )


@dataclass(kw_only=True, eq=False, repr=False)
class ReverseDetector(StudentDetector):
    """A student that rebuilds the teacher's maps from their bottleneck; see `ReverseStudent`.

    Any backbone with (b, c, h, w) maps will do. width: channels of the student as a share of the
    backbone's. loss, hard: see `reverse_loss`. train: a fixed number of steps, of which the last
    weights are kept; with a patience the held-out images choose the weights, as for STFPM. The rest
    is as for `StudentDetector`; maps are added (`combine` is `sum`).
    """

    site: ClassVar[type[StudentSite]] = ReverseSite
    recipe: ClassVar[Mapping[str, int]] = {"student": 38_400}

    width: float = 1.0
    loss: ReverseLoss = "global"
    hard: int = 10
    combine: Combine = "sum"
    train: TrainConfig = _TRAIN

    @classmethod
    def round_training(cls) -> TrainConfig:
        """See `StudentDetector.round_training`."""
        return replace(adam(1), warmup=5, drop=1.0)

    def network(self) -> ReverseNet:
        """See `StudentDetector.network`."""
        from fedvad.detectors.student.rd.net import build_reverse

        self._check()
        side = self.extractor.config.side
        net = build_reverse(*self._taps(), image_size=side, width=self.width, seed=self.seed)
        return net.to(self.extractor.config.device)

    def _check(self) -> None:
        super()._check()
        check_choice("loss", self.loss, ReverseLoss)
        if self.hard < 1:
            raise ConfigError(f"hard counts positions, 1 at least, not {self.hard}")


class RD(ReverseDetector):
    """Reverse distillation (Deng and Li, CVPR 2022), in the form of its public code, lighter."""

    name: ClassVar[str] = "rd"
