"""AMSL as a detector of images: views of a backbone's maps, rebuilt with the help of memories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedvad.detectors.student.amsl.options import MemoriesConfig
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.loss import Combine, cosine_loss
from fedvad.detectors.student.rd.detector import ReverseDetector, adam
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.targets import Batch
from fedvad.detectors.student.training import TrainConfig

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.amsl.net import ViewNet
    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.graphs import MapNet

_MEMORIES, _TRAIN = MemoriesConfig(), adam(600)


class ViewSite(StudentSite):
    """A site whose memories learn views of its normal images."""

    options: ClassVar[tuple[str, ...]] = ("memories",)
    always_chooses: ClassVar[bool] = False
    net: ViewNet

    def __init__(self, net: ViewNet, *given: Any, memories: MemoriesConfig, **options: Any) -> None:
        self.memories = memories
        super().__init__(net, *given, **options)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Error of all views, telling them apart, and the entropy of the items' weights."""
        student = self.net.student
        answer = student.answer(student.joined(batch.teacher))
        error = cosine_loss(answer.views, answer.rebuilt)
        return error + answer.regulariser(self.memories)


@dataclass(kw_only=True, eq=False, repr=False)
class AMSL(StudentDetector):
    """Adaptive memories with self-supervised views (Zhang et al., TKDE 2022, arXiv 2201.00464).

    The paper treats signals (`fedvad signals`). Here the input is the maps of a backbone, whose
    rows take the place of time. memories: see `MemoriesConfig`. The map of an image is the distance
    of what was rebuilt, summed over the views. train: a fixed number of steps, of which the last
    weights are kept. The rest is as for `StudentDetector`.
    """

    name: ClassVar[str] = "amsl"
    site: ClassVar[type[StudentSite]] = ViewSite

    memories: MemoriesConfig = _MEMORIES
    combine: Combine = "sum"
    train: TrainConfig = _TRAIN

    @classmethod
    def round_training(cls) -> TrainConfig:
        """See `StudentDetector.round_training`."""
        return ReverseDetector.round_training()

    def network(self) -> ViewNet:
        """See `StudentDetector.network`."""
        from fedvad.detectors.student.amsl.net import MapMemories, ViewNet
        from fedvad.detectors.student.rd.net import tap_shapes, tapped

        self._check()
        teacher = tapped(*self._taps())
        shapes = tap_shapes(teacher, self.extractor.config.side)
        student = MapMemories(shapes, self.memories, seed=self.seed)
        return ViewNet(teacher, student).to(self.extractor.config.device)

    def _map_net(self, net: PaSTeNet) -> MapNet:
        made = super()._map_net(net)
        made.grid = self.extractor.grid[0], self.extractor.grid[1]  # maps are on the coarsest
        return made
