"""Synthetic anomalies for stage I of AAND: maps of the teacher, and the cells to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedvad.data.synthesis import SynthesisConfig, find_foreground
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.defects import DefectPool, Drawn
from fedvad.detectors.student.targets import TrainingSet

if TYPE_CHECKING:
    import torch

_Cells = npt.NDArray[np.bool_]
_OBJECT_SHARE = 0.5  # a cell belongs to the object if it covers at least half of it; ours


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Maps of images with and without defects, one entry per level in each list.

    teacher: the teacher's own maps (b, c, h, w). masks: (b, 1, h, w), 1 on anomalous cells, else
    0. normal, anomalous: bool (b, h, w), the cells that the amplification loss compares.
    """

    teacher: list[torch.Tensor]
    masks: list[torch.Tensor]
    normal: list[torch.Tensor]
    anomalous: list[torch.Tensor]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.teacher[0])


class PairPool(DefectPool):
    """Synthetic anomalies with the cells that stage I compares; see `DefectPool`."""

    consequence: ClassVar[str] = (
        "its gate learns normals alone; draw larger defects, or choose finer layers"
    )

    def __init__(
        self,
        normals: TrainingSet,
        own: npt.NDArray[np.int64],
        paths: Sequence[Path],
        config: AmplifyConfig,
        *,
        synthesis: SynthesisConfig,
        **options: Any,
    ) -> None:
        self.config = config
        objects: list[list[_Cells]] = []

        def marked(pixels: npt.NDArray[np.uint8], mask: _Cells) -> list[_Cells]:
            if len(objects) < config.pairs:  # the objects of a later drawing are the same
                found = find_foreground(pixels, synthesis)
                objects.append([covered(found, grid) >= _OBJECT_SHARE for grid in normals.grids])
            return [covered(mask, grid) > config.mask_share for grid in normals.grids]

        super().__init__(
            normals, own, paths, marked, count=config.pairs, fresh=config.fresh,
            synthesis=synthesis, **options,
        )  # fmt: skip
        self._objects = [np.stack(level) for level in zip(*objects, strict=True)]

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[PairBatch]:
        """One pass over the pool in random order; each image without its defect by chance."""
        for drawn, defective, sound in self.chosen(size, self.config.anomaly_prob, rng):
            yield self._batch(drawn, defective, sound, rng)

    def _batch(
        self,
        drawn: Drawn,
        defective: npt.NDArray[np.int64],
        sound: npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> PairBatch:
        import torch

        teacher = self.images(drawn, defective, sound).teacher
        both = np.concatenate([defective, sound])
        masks, normal, anomalous = [], [], []
        for inside, found in zip(drawn.cells(defective, sound), self._objects, strict=True):
            masks.append(inside[:, None].astype(np.float32))
            normal.append(_some(found[both] & ~inside, self.config.normals, rng))
            anomalous.append(_some(inside, self.config.anomalies, rng))

        def moved(arrays: list[Any]) -> list[torch.Tensor]:
            return [torch.from_numpy(a).to(teacher[0].device) for a in arrays]

        return PairBatch(teacher, moved(masks), moved(normal), moved(anomalous))


def covered(mask: _Cells, grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(h, w) share of each cell of a grid that a mask (H, W) covers."""
    import torch

    pooled = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(mask.astype(np.float32))[None], grid
    )
    share: npt.NDArray[np.float32] = pooled[0].numpy()
    return share


def _some(cells: _Cells, limit: int, rng: np.random.Generator) -> _Cells:
    """The cells (b, h, w), or `limit` of them at random if there are more."""
    places = np.flatnonzero(cells)
    if len(places) <= limit:
        return cells
    kept = np.zeros(cells.size, dtype=np.bool_)
    kept[rng.choice(places, limit, replace=False)] = True
    return kept.reshape(cells.shape)
