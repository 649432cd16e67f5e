"""DAAD as a detector: maps rebuilt from block-wise memories, far from what they were if odd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedvad.detectors.student.daad.options import BlockConfig
from fedvad.detectors.student.loss import added
from fedvad.detectors.student.rd.detector import ReverseDetector, ReverseSite
from fedvad.detectors.student.rd.loss import ReverseLoss, reverse_loss
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.targets import Batch

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.daad.net import MemoryNet

_BLOCKS = BlockConfig()


class MemorySite(ReverseSite):
    """A site whose memories learn the blocks of its normal images."""

    options: ClassVar[tuple[str, ...]] = (*ReverseSite.options, "blocks")
    net: MemoryNet

    def __init__(self, net: MemoryNet, *given: Any, blocks: BlockConfig, **options: Any) -> None:
        self.blocks = blocks
        super().__init__(net, *given, **options)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Error of what is rebuilt, entropy of the weights, and the adversary if there is one."""
        from fedvad.detectors.student.daad.blocks import entropy
        from fedvad.detectors.student.daad.loss import adversarial_loss

        student = self.net.student
        weights = student.weights(batch.teacher)
        rebuilt = student.rebuilt(weights)
        parts = [
            reverse_loss(batch.teacher, rebuilt, self.kind, hard=self.hard),
            self.blocks.entropy * added([entropy(level) for level in weights]),
        ]
        if student.critic is not None:
            strengths = {"adversary": self.blocks.adversary, "match": self.blocks.match}
            parts.append(adversarial_loss(student.critic, batch.teacher, rebuilt, **strengths))
        return added(parts)

    def _run(self, batch: Batch) -> None:
        self.net.compared(batch.teacher, batch.inputs)


@dataclass(kw_only=True, eq=False, repr=False)
class DAAD(ReverseDetector):
    """Divide and assemble (Hou et al., ICCV 2021, arXiv 2107.13118) on the maps of a backbone.

    The backbone is the encoder, and each of its taps a skip connection with a block-wise memory:
    what is rebuilt of the maps is put together from blocks of normal images. blocks: see
    `BlockConfig`; an `adversary` makes it DAAD+. The rest is as for `ReverseDetector`; the loss is
    the mean over positions, as the paper's squared error is.
    """

    name: ClassVar[str] = "daad"
    site: ClassVar[type[StudentSite]] = MemorySite

    loss: ReverseLoss = "mean"
    blocks: BlockConfig = _BLOCKS

    def network(self) -> MemoryNet:
        """See `StudentDetector.network`."""
        from fedvad.detectors.student.daad.net import MemoryNet, MemoryStudent
        from fedvad.detectors.student.rd.net import tap_shapes, tapped

        self._check()
        teacher = tapped(*self._taps())
        shapes = tap_shapes(teacher, self.extractor.config.side)
        student = MemoryStudent(shapes, self.blocks, width=self.width, seed=self.seed)
        return MemoryNet(teacher, student).to(self.extractor.config.device)
