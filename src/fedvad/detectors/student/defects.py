"""Synthetic anomalies of a site: drawn once, seen by the frozen teacher once, then kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvad.data.synthesis import SynthesisConfig, TextureFolder, synthesise
from fedvad.detectors.student.pixels import read_pixels
from fedvad.detectors.student.targets import Batch, TrainingSet
from fedvad.errors import DataError

__all__ = ["DefectPool"]

log = logging.getLogger(__name__)
_Indices = npt.NDArray[np.int64]
_Cells = npt.NDArray[np.bool_]
_Marked = Callable[[npt.NDArray[np.uint8], _Cells], list[_Cells]]


class DefectPool:
    """A fixed number of synthetic anomalies of a site's normal images, next to these.

    normals: the site's set, without any change of its teacher. own: the positions in it that may
    be used, whose image files are `paths`. marked: from the pixels (S, S, 3) that each defect was
    drawn on and its mask (S, S), in order, to its anomalous cells (h, w) per level. count: of
    defects, which depend on it, `seed` and the images alone. What is kept of them stays within
    the bounds of `normals`. Raises `DataError` when a file cannot be read any more.
    """

    def __init__(
        self,
        normals: TrainingSet,
        own: _Indices,
        paths: Sequence[Path],
        marked: _Marked,
        *,
        count: int,
        synthesis: SynthesisConfig,
        textures: Path | None,
        seed: int,
    ) -> None:
        self._normals = normals
        # every image in turn, so that none is left out while another comes twice
        order = np.random.default_rng(seed).permutation(len(own))
        picked = order[np.arange(count) % len(own)]
        self._sources = own[picked]
        masks: list[list[_Cells]] = []
        size = normals.image_size
        folder = None if textures is None else TextureFolder(textures, size=size)

        def drawn() -> Iterator[npt.NDArray[np.uint8]]:
            for item in read_pixels([paths[i] for i in picked], size):
                if item.pixels is None:
                    raise DataError(f"an image vanished meanwhile: {item.error}")
                defect = synthesise(
                    item.pixels, synthesis, seed=(seed, item.index), textures=folder
                )
                masks.append(marked(item.pixels, defect.mask))
                yield defect.image

        self._defects = normals.empty_like(count)
        try:
            self._defects.extend(drawn())
        except BaseException:
            self.close()
            raise
        self._masks = [np.stack(level) for level in zip(*masks, strict=True)]

    def __len__(self) -> int:
        return len(self._defects)

    def masked(self) -> list[int]:
        """Per level the number of anomalous cells in the whole pool."""
        return [int(level.sum()) for level in self._masks]

    def warn_of_bare_levels(self, consequence: str) -> None:
        """Log each level without an anomalous cell, what that means, and the way out."""
        for level, cells in enumerate(self.masked()):
            if not cells:
                log.warning("no synthetic defect covers a cell of level %d: %s", level, consequence)

    def cells(self, defective: _Indices, sound: _Indices) -> list[_Cells]:
        """Anomalous cells (b, h, w) per level of what `images` gives for the same positions."""
        both = np.concatenate([defective, sound])
        levels = [level[both] for level in self._masks]
        for level in levels:
            level[len(defective) :] = False
        return levels

    def images(self, defective: _Indices, sound: _Indices) -> Batch:
        """The defects at the first positions, then the sources of the others without theirs."""
        sets = ((self._defects, defective), (self._normals, self._sources[sound]))
        parts = [of.batch(rows) for of, rows in sets if len(rows)]
        return parts[0] if len(parts) == 1 else parts[0].joined(parts[1])

    def chosen(
        self, size: int, share: float, rng: np.random.Generator | None
    ) -> Iterator[tuple[_Indices, _Indices]]:
        """One pass in equal batches of at most `size`: positions of images with their defect, by
        the chance `share`, and of those without. In order and all with theirs without a generator.
        """
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        for part in np.array_split(order, max(1, -(-len(order) // size))):
            defective = np.ones(len(part), np.bool_)
            if rng is not None:
                defective = rng.random(len(part)) < share
            yield part[defective], part[~defective]

    def close(self) -> None:
        """Give memory and disk back."""
        self._defects.close()
