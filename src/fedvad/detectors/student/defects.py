"""Synthetic anomalies of a site's normal images, with what the frozen teacher makes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedvad.data.synthesis import SynthesisConfig, TextureFolder, synthesise
from fedvad.detectors.student.pixels import pixels_again
from fedvad.detectors.student.targets import Batch, TrainingSet

log = logging.getLogger(__name__)
_Indices = npt.NDArray[np.int64]
_Cells = npt.NDArray[np.bool_]
_Marked = Callable[[npt.NDArray[np.uint8], _Cells], list[_Cells]]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Defects of one drawing, and per level their anomalous cells (n, h, w)."""

    defects: TrainingSet
    masks: list[_Cells]

    def cells(self, defective: _Indices, sound: _Indices) -> list[_Cells]:
        """Anomalous cells (b, h, w) per level of what `DefectPool.images` gives for these."""
        both = np.concatenate([defective, sound])
        levels = [level[both] for level in self.masks]
        for level in levels:
            level[len(defective) :] = False
        return levels


class DefectPool:
    """A number of synthetic anomalies of a site's normal images, next to these.

    normals: the site's set, without any change of its teacher. own: the positions in it that may
    be used, whose image files are `paths`. marked: from the pixels (S, S, 3) that each defect was
    drawn on and its mask (S, S), in order, to its anomalous cells (h, w) per level. count: of
    defects, which depend on it, `seed` and the images alone. fresh: whether each pass in random
    order sees defects of its own, drawn on the same images; what the teacher makes of them costs a
    forward pass each. What is kept of them stays within the bounds of `normals`. A level without an
    anomalous cell is logged, with the `consequence`. Raises `DataError` when a file cannot be read
    any more.
    """

    consequence: ClassVar[str]

    def __init__(
        self,
        normals: TrainingSet,
        own: _Indices,
        paths: Sequence[Path],
        marked: _Marked,
        *,
        count: int,
        fresh: bool,
        synthesis: SynthesisConfig,
        textures: Path | None,
        seed: int,
    ) -> None:
        self._normals, self._fresh = normals, fresh
        self._synthesis, self._marked = synthesis, marked
        # every image in turn, so that none is left out while another comes twice
        order = np.random.default_rng(seed).permutation(len(own))
        picked = order[np.arange(count) % len(own)]
        self._sources = own[picked]
        self._paths = [paths[i] for i in picked]
        size = normals.image_size
        self._textures = None if textures is None else TextureFolder(textures, size=size)
        self._first = self._draw(seed)
        for level, cells in enumerate(self.masked()):
            if not cells:
                log.warning(
                    "no synthetic defect covers a cell of level %d: %s", level, self.consequence
                )

    def __len__(self) -> int:
        return len(self._sources)

    def masked(self) -> list[int]:
        """Per level the number of anomalous cells in the whole pool, as it was first drawn."""
        return [int(level.sum()) for level in self._first.masks]

    def images(self, drawn: Drawn, defective: _Indices, sound: _Indices) -> Batch:
        """The defects at the first positions, then the sources of the others without theirs."""
        sets = ((drawn.defects, defective), (self._normals, self._sources[sound]))
        parts = [of.batch(rows) for of, rows in sets if len(rows)]
        return parts[0] if len(parts) == 1 else parts[0].joined(parts[1])

    def chosen(
        self, size: int, share: float, rng: np.random.Generator | None
    ) -> Iterator[tuple[Drawn, _Indices, _Indices]]:
        """One pass in equal batches of at most `size`: the drawing, positions of images with their
        defect, by the chance `share`, and of those without. Without a generator in order, all with
        theirs, as they were first drawn.
        """
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        with self._of_a_pass(rng) as drawn:
            for part in np.array_split(order, max(1, -(-len(order) // size))):
                defective = np.ones(len(part), np.bool_)
                if rng is not None:
                    defective = rng.random(len(part)) < share
                yield drawn, part[defective], part[~defective]

    def close(self) -> None:
        """Give memory and disk back."""
        self._first.defects.close()

    @contextmanager
    def _of_a_pass(self, rng: np.random.Generator | None) -> Iterator[Drawn]:
        if rng is None or not self._fresh:
            yield self._first
            return
        drawn = self._draw(int(rng.spawn(1)[0].integers(2**31)))
        try:
            yield drawn
        finally:
            drawn.defects.close()

    def _draw(self, seed: int) -> Drawn:
        masks: list[list[_Cells]] = []

        def images() -> Iterator[npt.NDArray[np.uint8]]:
            for index, pixels in enumerate(pixels_again(self._paths, self._normals.image_size)):
                defect = synthesise(
                    pixels, self._synthesis, seed=(seed, index), textures=self._textures
                )
                masks.append(self._marked(pixels, defect.mask))
                yield defect.image

        defects = self._normals.empty_like(len(self))
        try:
            defects.extend(images())
        except BaseException:
            defects.close()
            raise
        return Drawn(defects, [np.stack(level) for level in zip(*masks, strict=True)])
