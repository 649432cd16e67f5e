"""One site of dual modelling: it draws defects on its normal images and trains on the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.student.dmdd.loss import dual_loss
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.dmdd.pairs import DualBatch, DualPool
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.targets import Batch, TrainingSet
from fedvad.detectors.student.training import TrainConfig, TrainLog, make_optimiser
from fedvad.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.dmdd.decouple import DualNet


class DMDDSite(StudentSite):
    """A site that trains on pairs of its normal images and their synthetic defects.

    The defects are made when it is first trained, by the seed that the site then has. steps: that
    its student has been trained for here, in all; they decide when the fusion head begins.
    """

    options: ClassVar[tuple[str, ...]] = ("dual", "synthesis", "textures")
    always_chooses: ClassVar[bool] = False
    net: DualNet

    def __init__(
        self,
        net: DualNet,
        *given: Any,
        dual: DualConfig,
        synthesis: SynthesisConfig,
        textures: Path | None,
        **options: Any,
    ) -> None:
        self.dual, self.steps = dual, 0
        self._drawing: dict[str, Any] = {"synthesis": synthesis, "textures": textures}
        super().__init__(net, *given, **options)
        self._head_start = dual.head_start(self.config.steps)

    @cached_property
    def pool(self) -> DualPool:
        """The synthetic defects."""
        images = self._set, self._own, self.paths
        return DualPool(*images, self.dual, seed=self.seed, **self._drawing)

    def train(
        self,
        *,
        config: TrainConfig | None = None,
        optimiser: torch.optim.Optimizer | None = None,
        on_step: Callable[[int, float], None] | None = None,
        **options: Any,
    ) -> TrainLog:
        """See `StudentSite.train`."""
        settings = config or self.config
        self._head_start = self.dual.head_start(settings.steps)

        def counted(step: int, loss: float) -> None:
            self.steps += 1
            if on_step is not None:
                on_step(step, loss)

        return super().train(
            config=settings,
            optimiser=optimiser or self.optimiser(settings),
            on_step=counted,
            **options,
        )

    def optimiser(self, config: TrainConfig) -> torch.optim.Optimizer:
        """A new one, with a learning rate of its own for the fusion head."""
        rate = self.dual.head_rate
        shares = None if rate is None else {"head.": rate / config.learning_rate}
        return make_optimiser(self.student, config, shares)

    def loss(self, batch: Batch) -> torch.Tensor:
        """All losses of one batch of pairs."""
        assert isinstance(batch, DualBatch)  # as `_batches` makes them
        return dual_loss(self.net, batch, self.dual, head=self.steps >= self._head_start)

    def represent(self, student: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """(b, 2c) means over the positions of the last level of both branches, of any student."""
        import torch

        last = [features[-1].mean((2, 3)) for features in student(batch.inputs)]
        return torch.cat(last, 1)

    def empty_like(self, capacity: int) -> TrainingSet:
        """Refused: images of elsewhere would come without their defects."""
        raise ConfigError("dual modelling has no replay of other images: use rd or paste")

    def close(self) -> None:
        """See `StudentSite.close`."""
        super().close()
        if "pool" in self.__dict__:
            self.pool.close()
            del self.pool

    def _batches(self, size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        return self.pool.batches(size, rng)

    def _run(self, batch: Batch) -> None:
        assert isinstance(batch, DualBatch)
        both = batch.joined(batch.normal)
        self.net.student.head(both.teacher, *self.net.branches(both.teacher, both.inputs))
