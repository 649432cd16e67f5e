"""A frozen teacher: its maps of pixels by an engine, kept where images come again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fedvad.detectors.student.pixels import ahead
from fedvad.detectors.student.store import RowStore
from fedvad.errors import ConfigError
from fedvad.features.config import Engine
from fedvad.features.engine import make_engine
from fedvad.half import to_half

if TYPE_CHECKING:
    from torch import Tensor

    from fedvad.features.backbones import Backbone

_Pixels = npt.NDArray[np.uint8]
# positions, pixels (b, S, S, 3) uint8, and the teacher's maps (b, c, h, w), one per tap
Pair = tuple[_Pixels, "list[Tensor]"]
_THREADS = 2


class Images(Protocol):
    """Images to train with, by number: the same number is always the same image.

    count: how many there are; None where every number is another image.
    """

    count: int | None

    def __call__(self, number: int) -> _Pixels:
        """uint8 (S, S, 3); called from several threads."""
        ...


class Teacher:
    """A tapped backbone that is asked for its maps and never changed.

    Raises `ConfigError` when the backbone refuses images of this
    size. Maps of images that repeat are kept in float16, within `budget` bytes of memory and in
    temporary files beyond.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_size: int,
        engine: Engine = "openvino",
        device: str = "cpu",
        budget: int = 256 << 20,
    ) -> None:
        import torch

        from fedvad.detectors.student.branches import STFPMNet
        from fedvad.detectors.student.graphs import TargetNet, normalise_of

        self.image_size = image_size
        self._device, self._budget = device, budget
        net = STFPMNet(copy.deepcopy(backbone.network), torch.nn.Identity())
        try:
            graph = TargetNet(net, normalise_of(backbone.mean, backbone.std), image_size)
        except (AssertionError, RuntimeError, ValueError) as error:  # as timm's models refuse
            raise ConfigError(
                f"the teacher cannot take images of {image_size} pixels: {error}"
            ) from error
        self._graph = graph
        self._engine = make_engine(graph, image_size=image_size, kind=engine, device=device)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(c, h, w) of its maps."""
        return [(c, h, w) for c, h, w in self._graph.shapes]

    def stream(self, images: Images, batches: Iterable[npt.NDArray[np.int64]]) -> Iterator[Pair]:
        """Pixels and maps of each batch of numbers, in order; reads and computes ahead."""
        for pixels, rows in self._engine.run(_read_ahead(images, batches)):
            yield pixels, self._split(rows)

    def kept(self, images: Images, batches: Iterable[npt.NDArray[np.int64]]) -> Iterator[Pair]:
        """As `stream`, for images that repeat: each passes the teacher once, before all batches.

        Maps are rounded to float16. The passes are the same wherever the batches begin, so that a
        continued training sees the same values.
        """
        count = images.count
        assert count is not None  # the caller's choice
        side = (self.image_size, self.image_size, 3)
        kept = RowStore(count, side, np.uint8, budget=self._budget)
        maps = RowStore(count, (self._graph.length,), np.float16, budget=self._budget)
        try:
            step = self._engine.batch_size
            numbers = np.arange(count)
            groups = (numbers[i : i + step] for i in range(0, count, step))
            for pixels, rows in self._engine.run(_read_ahead(images, groups)):
                kept.append(pixels)
                maps.append(to_half(np.ascontiguousarray(rows)))
            for batch in batches:
                rows = maps.take(batch).astype(np.float32)
                yield kept.take(batch), self._split(rows)
        finally:
            kept.close()
            maps.close()

    def _split(self, rows: npt.NDArray[np.float32]) -> list[Tensor]:
        import torch

        return self._graph.split(torch.from_numpy(rows).to(self._device))[1]


def _read_ahead(
    images: Images, batches: Iterable[npt.NDArray[np.int64]]
) -> Iterator[tuple[_Pixels, _Pixels]]:
    """Each batch as (tag, images), both its pixels; the next ones are being read meanwhile."""

    def together(batch: npt.NDArray[np.int64]) -> tuple[_Pixels, _Pixels]:
        pixels = np.stack([images(int(number)) for number in batch])
        return pixels, pixels

    return ahead(together, batches, workers=_THREADS, most=_THREADS)
