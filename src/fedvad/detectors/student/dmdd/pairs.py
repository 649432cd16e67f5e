"""Pairs of a normal image and its synthetic defect, with masks of cells for every level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedvad.detectors.student.defects import DefectPool
from fedvad.detectors.student.dmdd.options import DualConfig, MaskCells
from fedvad.detectors.student.targets import Batch, TrainingSet

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class DualBatch(Batch):
    """Defective images as `Batch` has them, and of each its normal twin, in the same order.

    masks: (b, 1, h, w) per level, 1 on anomalous cells, else 0; all 0 for an image that is its
    own twin.
    """

    normal: Batch
    masks: list[torch.Tensor]


class DualPool(DefectPool):
    """Synthetic anomalies with the images that they were drawn on; see `DefectPool`."""

    consequence: ClassVar[str] = (
        "its abnormality branch learns normals alone; draw larger defects, take finer layers, or "
        "masks by the maximum"
    )

    def __init__(
        self,
        normals: TrainingSet,
        own: npt.NDArray[np.int64],
        paths: Sequence[Path],
        config: DualConfig,
        **options: Any,
    ) -> None:
        self.config = config

        def marked(
            _: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]
        ) -> list[npt.NDArray[np.bool_]]:
            return [cells_of(mask, grid, config.mask) for grid in normals.grids]

        # the student sees images by their pairs alone: none may be left out
        count = max(config.pairs, len(own))
        super().__init__(normals, own, paths, marked, count=count, fresh=config.fresh, **options)

    def batches(self, size: int, rng: np.random.Generator | None = None) -> Iterator[DualBatch]:
        """One pass over the pool, see `DefectPool.chosen`."""
        import torch

        for drawn, defective, sound in self.chosen(size, self.config.anomaly_prob, rng):
            images = self.images(drawn, defective, sound)
            masks = [
                torch.from_numpy(level[:, None].astype(np.float32)).to(images.teacher[0].device)
                for level in drawn.cells(defective, sound)
            ]
            normal = self._normals.batch(self._sources[np.concatenate([defective, sound])])
            yield DualBatch(images.inputs, images.teacher, normal, masks)


def cells_of(
    mask: npt.NDArray[np.bool_], grid: tuple[int, int], kind: MaskCells
) -> npt.NDArray[np.bool_]:
    """Anomalous cells (h, w) of a mask (H, W): resized bilinearly to at least a half, or `max`.

    The bilinear value of a cell is that of the pixels around its centre, so small defects may
    leave no cell of a coarse grid; with `max` one pixel is enough.
    """
    import torch
    from torch.nn import functional

    pixels = torch.from_numpy(mask.astype(np.float32))[None, None]
    if kind == "max":
        resized = functional.adaptive_max_pool2d(pixels, grid)
    else:
        resized = functional.interpolate(pixels, grid, mode="bilinear", align_corners=False)
    cells: npt.NDArray[np.bool_] = (resized[0, 0] >= 0.5).numpy()
    return cells
