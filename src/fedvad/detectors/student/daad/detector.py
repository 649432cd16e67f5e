"""DAAD as a detector: maps rebuilt from block-wise memories, far from what they were if odd."""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)
_BLOCKS = BlockConfig()
_FEW = 2.0  # items in use, below which a memory rebuilds a mean


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

    def usage(self) -> list[float]:
        """By level, how many items are in use: the perplexity of their mean weight over all blocks
        of the images trained on.
        """
        import torch

        from fedvad.detectors.student.daad.blocks import perplexity

        total = [torch.zeros(0)] * self.levels
        with torch.inference_mode():
            for batch in self._batches(self.config.batch):
                sums = [
                    level.sum((0, 1)).cpu() for level in self.net.student.weights(batch.teacher)
                ]
                total = [t + s if len(t) else s for t, s in zip(total, sums, strict=True)]
        return [perplexity(level) for level in total]

    def end(self, name: str) -> None:
        """Also says how many items of each memory are in use."""
        super().end(name)
        used = self.usage()
        log.info("items in use by level: %s", ", ".join(f"{count:.1f}" for count in used))
        if min(used) < _FEW:
            log.warning(
                "a memory answers with %.1f of its %d items: every block becomes their mean. Train "
                "longer, or lower blocks.temperature", min(used), self.blocks.items,
            )  # fmt: skip

    def _run(self, batch: Batch) -> None:
        self.net.compared(batch.teacher, batch.inputs)


@dataclass(kw_only=True, eq=False, repr=False)
class DAAD(ReverseDetector):
    """Divide and assemble (Hou et al., ICCV 2021, arXiv 2107.13118) on the maps of a backbone.

    The backbone is the encoder. Each of its layers in use is a skip connection with a block-wise
    memory, so the maps are rebuilt from blocks of normal images. blocks: see
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
