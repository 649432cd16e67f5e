"""Synthetic anomalies for stage I: drawn once, seen by the frozen teacher once, then kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedvad.data.synthesis import SynthesisConfig, TextureFolder, find_foreground, synthesise
from fedvad.distill.amplify_options import AmplifyConfig
from fedvad.distill.pixels import read_pixels
from fedvad.distill.targets import TrainingSet
from fedvad.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["PairBatch", "PairPool", "covered"]

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


class PairPool:
    """A fixed number of synthetic anomalies of a site's normal images, with masks of cells.

    normals: the site's set, without any change of its teacher. own: the positions in it that may
    be used, whose image files are `paths`. grids: (h, w) of each level. Defects depend on `seed`,
    their number and the images alone. Raises `DataError` when a file cannot be read any more.
    """

    def __init__(
        self,
        normals: TrainingSet,
        own: npt.NDArray[np.int64],
        paths: Sequence[Path],
        config: AmplifyConfig,
        *,
        synthesis: SynthesisConfig,
        textures: Path | None,
        image_size: int,
        grids: Sequence[tuple[int, int]],
        seed: int,
    ) -> None:
        self.config = config
        self._normals = normals
        # every image in turn, so that none is left out while another comes twice
        order = np.random.default_rng(seed).permutation(len(own))
        picked = order[np.arange(config.pairs) % len(own)]
        self._sources = own[picked]
        folder = None if textures is None else TextureFolder(textures, size=image_size)
        masks: list[list[_Cells]] = []
        objects: list[list[_Cells]] = []

        def drawn() -> Iterator[npt.NDArray[np.uint8]]:
            for item in read_pixels([paths[i] for i in picked], image_size):
                if item.pixels is None:
                    raise DataError(f"an image vanished meanwhile: {item.error}")
                defect = synthesise(
                    item.pixels, synthesis, seed=(seed, item.index), textures=folder
                )
                found = find_foreground(item.pixels, synthesis)
                masks.append([covered(defect.mask, g) > config.mask_share for g in grids])
                objects.append([covered(found, g) >= _OBJECT_SHARE for g in grids])
                yield defect.image

        self._defects = normals.beside(config.pairs)
        try:
            self._defects.extend(drawn())
        except BaseException:
            self.close()
            raise
        self._masks = [np.stack(level) for level in zip(*masks, strict=True)]
        self._objects = [np.stack(level) for level in zip(*objects, strict=True)]

    def __len__(self) -> int:
        return len(self._defects)

    def masked(self) -> list[int]:
        """Per level the number of anomalous cells in the whole pool."""
        return [int(level.sum()) for level in self._masks]

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[PairBatch]:
        """One pass over the pool in random order; each image without its defect by chance."""
        order = rng.permutation(len(self))
        for part in np.array_split(order, max(1, -(-len(order) // size))):
            defective = rng.random(len(part)) < self.config.anomaly_prob
            yield self._batch(part[defective], part[~defective], rng)

    def close(self) -> None:
        """Give memory and disk back."""
        self._defects.close()

    def _batch(
        self,
        defective: npt.NDArray[np.int64],
        sound: npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> PairBatch:
        import torch

        sets = ((self._defects, defective), (self._normals, self._sources[sound]))
        parts = [of.batch(rows).teacher for of, rows in sets if len(rows)]
        teacher = [torch.cat(levels) for levels in zip(*parts, strict=True)]
        both = np.concatenate([defective, sound])
        masks, normal, anomalous = [], [], []
        for mask, found in zip(self._masks, self._objects, strict=True):
            inside = mask[both]
            inside[len(defective) :] = False
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
