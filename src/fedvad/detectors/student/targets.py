"""The training set of a student: everything frozen is computed once per image and kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedvad.detectors.student.layout import memory_format
from fedvad.detectors.student.store import RowStore
from fedvad.features.config import Engine
from fedvad.features.engine import make_engine
from fedvad.half import to_half

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.graphs import Normalise


@dataclass(frozen=True, eq=False)
class Batch:
    """What the student is given, and the teacher's maps (b, c, h, w) per level.

    inputs: (b, c, h, w); the list `teacher` itself where the student reads the teacher's maps.
    """

    inputs: torch.Tensor | list[torch.Tensor]
    teacher: list[torch.Tensor]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.teacher[0])

    def joined(self, other: Batch) -> Batch:
        """The images of both."""
        import torch

        pairs = zip(self.teacher, other.teacher, strict=True)
        teacher = [torch.cat([a, b]) for a, b in pairs]
        if isinstance(self.inputs, list) or isinstance(other.inputs, list):
            return Batch(teacher, teacher)
        return Batch(torch.cat([self.inputs, other.inputs]), teacher)


class TrainingSet:
    """Inputs and targets of a student for a set of images, computed once by an engine.

    With a trunk the inputs are its features and no pixels are kept; without, they are the pixels.
    A student that reads the teacher's maps needs neither. Features are kept in float16. Targets and
    inputs each stay within `budget` bytes of memory and lie in temporary files beyond.
    """

    def __init__(
        self,
        net: PaSTeNet,
        normalise: Normalise,
        *,
        image_size: int,
        capacity: int,
        engine: Engine = "torch",
        device: str = "cpu",
        budget: int = 256 << 20,
    ) -> None:
        from fedvad.detectors.student.graphs import TargetNet

        self.device = device
        self.image_size, self._budget = image_size, budget
        self._target = TargetNet(net, normalise, image_size)
        self._normalise = normalise
        self._reads_maps = net.reads_maps
        self._form = memory_format(net.student)
        self._engine = make_engine(self._target, image_size=image_size, kind=engine, device=device)
        self._open(capacity)

    def _open(self, capacity: int) -> None:
        self._rows = RowStore(capacity, (self._target.length,), np.float16, budget=self._budget)
        self._pixels: RowStore | None = None
        if not self._target.has_trunk and not self._reads_maps:
            side = (self.image_size, self.image_size, 3)
            self._pixels = RowStore(capacity, side, np.uint8, budget=self._budget)

    def empty_like(self, capacity: int) -> TrainingSet:
        """An empty set for `capacity` other images, with the same frozen parts and engine."""
        other = copy.copy(self)
        other._open(capacity)
        return other

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def on_disk(self) -> bool:
        """Whether any of it did not fit into the budget."""
        return self._rows.on_disk or (self._pixels is not None and self._pixels.on_disk)

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) of the teacher's maps."""
        shapes = self._target.shapes[1:] if self._target.has_trunk else self._target.shapes
        return [(shape[1], shape[2]) for shape in shapes]

    def extend(self, images: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Add uint8 (S, S, 3) images, in order; raises `DataError` for features beyond float16."""
        for pixels, rows in self._engine.run(self._grouped(images)):
            self._rows.append(to_half(np.ascontiguousarray(rows)))
            if self._pixels is not None:
                self._pixels.append(pixels)

    def extend_shared(self, features: Iterable[npt.NDArray[np.float32]]) -> None:
        """Add images by their shared features (c, h, w), in order; there must be a trunk."""
        import torch

        for group in _groups(features, self._engine.batch_size):
            with torch.inference_mode():
                rows = self._target.continued(torch.from_numpy(group).to(self.device))
            self._rows.append(to_half(rows.cpu().numpy()))

    def shared(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.float32]]:
        """The shared feature (c, h, w) of uint8 (S, S, 3) images, in order; nothing is added."""
        import torch

        for _, rows in self._engine.run(self._grouped(images)):
            features, _ = self._target.split(torch.from_numpy(rows))
            assert features is not None  # callers have a trunk
            yield from features.numpy().copy()

    def change_teacher(self, change: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> None:
        """Put `change` of the teacher's maps, of the same shapes, in their place for every image.

        Raises `DataError` for values beyond float16.
        """
        import torch

        changed = RowStore(len(self), self._rows.shape, np.float16, budget=self._budget)
        size = self._engine.batch_size
        try:
            for start in range(0, len(self), size):
                taken = self._rows.take(range(start, min(start + size, len(self))))
                rows = torch.from_numpy(taken).to(self.device).float()
                shared, teacher = self._target.split(rows)
                with torch.no_grad():
                    maps = change(teacher) if shared is None else [shared, *change(teacher)]
                joined = torch.cat([m.flatten(1) for m in maps], 1)
                changed.append(to_half(np.ascontiguousarray(joined.cpu().numpy())))
        except BaseException:
            changed.close()
            raise
        self._rows.close()
        self._rows = changed

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """The images at `indices`, float32, on the device."""
        import torch

        rows = torch.from_numpy(self._rows.take(indices)).to(self.device).float()
        shared, maps = self._target.split(rows)
        form = self._form
        teacher = [m.contiguous(memory_format=form) for m in maps]
        if self._reads_maps:
            return Batch(teacher, teacher)
        if self._pixels is not None:
            pixels = torch.from_numpy(self._pixels.take(indices)).to(self.device)
            shared = self._normalise(pixels)
        assert shared is not None  # one of the two, by construction
        return Batch(shared.contiguous(memory_format=form), teacher)

    def batches(
        self,
        indices: npt.NDArray[np.int64],
        size: int,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        """All of `indices` in batches of at most `size`, shuffled when there is a generator."""
        order = indices if rng is None else rng.permutation(indices)
        # equal parts: a left-over batch of one image would have batch statistics of its own
        for part in np.array_split(order, max(1, -(-len(order) // size))):
            if len(part):
                yield self.batch(part)

    def close(self) -> None:
        """Give memory and disk back."""
        self._rows.close()
        if self._pixels is not None:
            self._pixels.close()

    def _grouped(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[tuple[Any, Any]]:
        return ((group, group) for group in _groups(images, self._engine.batch_size))


def _groups(arrays: Iterable[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    waiting = iter(arrays)
    while group := list(islice(waiting, size)):
        yield np.stack(group)
