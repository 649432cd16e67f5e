"""One site's two stages: it amplifies its teacher, then distils a student from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.student.aand.loss import amplify_loss
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.aand.pairs import PairBatch, PairPool
from fedvad.detectors.student.rd.detector import ReverseSite
from fedvad.detectors.student.targets import TrainingSet
from fedvad.detectors.student.training import TrainConfig, Trainer, TrainLog
from fedvad.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.aand.amplify import AdvancedNet


class Amplifier(Trainer):
    """Stage I of a site, trained like a student: its blocks can be averaged over sites, too.

    The synthetic anomalies are made when it is first trained, by the seed the site then has.
    """

    def __init__(
        self,
        net: AdvancedNet,
        config: AmplifyConfig,
        train: TrainConfig,
        make: Callable[[], PairPool],
    ) -> None:
        self.net, self.config, self.settings = net, config, train
        self._make = make

    @property
    def student(self) -> torch.nn.Module:
        """The blocks of all levels."""
        return self.net.blocks

    @cached_property
    def pool(self) -> PairPool:
        """The synthetic anomalies."""
        return self._make()

    def losses(self, seed: int) -> Callable[[PairBatch], torch.Tensor]:
        """See `Trainer.losses`."""
        return lambda batch: amplify_loss(self.net.blocks, batch, self.config)

    def batches(self, rng: np.random.Generator) -> Iterator[PairBatch]:
        """See `Trainer.batches`."""
        return self.pool.batches(self.settings.batch, rng)

    def represent(self, student: torch.nn.Module, batch: PairBatch) -> torch.Tensor:
        """(b, c) mean over the positions of the last level's amplified maps, of any blocks."""
        blocks: Any = student
        amplified: torch.Tensor = blocks[-1](batch.teacher[-1])[0]
        return amplified.mean((2, 3))

    def close(self) -> None:
        """Give back the synthetic anomalies' features."""
        if "pool" in self.__dict__:
            self.pool.close()
            del self.pool


class AANDSite(ReverseSite):
    """A site that first amplifies its teacher, on synthetic anomalies of its own normal images.

    amplifier: stage I. Whoever averages it over sites trains it, hands the average to its
    `student` and calls `advance`; otherwise the first training of the student does stage I alone.
    amplified: how stage I went here; None if it has not been trained here alone.
    """

    options: ClassVar[tuple[str, ...]] = (
        *ReverseSite.options, "amplify", "stage1", "synthesis", "textures",
    )  # fmt: skip
    net: AdvancedNet

    def __init__(
        self,
        net: AdvancedNet,
        *given: Any,
        amplify: AmplifyConfig,
        stage1: TrainConfig,
        synthesis: SynthesisConfig,
        textures: Path | None,
        **options: Any,
    ) -> None:
        self.amplified: TrainLog | None = None
        self._advanced = False

        def pool() -> PairPool:
            given = self._set, self._own, self.paths, amplify
            return PairPool(*given, synthesis=synthesis, textures=textures, seed=self.seed)

        self.amplifier = Amplifier(net, amplify, stage1, pool)
        super().__init__(net, *given, **options)

    def amplify(self) -> None:
        """Stage I here alone, unless it is over; see `advance`."""
        if not self._advanced:
            self.amplified = self.amplifier.train(seed=self.seed)
            self.advance()

    def advance(self) -> None:
        """End stage I: from here on the blocks as they stand are part of the frozen teacher."""
        if not self._advanced:
            self.amplifier.close()  # first: what it kept may be as large as the set
            self._set.change_teacher(self.net.advanced)
            self._advanced = True

    def part(self, name: str) -> Any:
        """See `StudentSite.part`."""
        return self.amplifier if name == "amplifier" else self

    def end(self, name: str) -> None:
        """See `StudentSite.end`: stage I ends when its blocks are final."""
        if name == "amplifier":
            self.advance()
        else:
            super().end(name)

    def train(self, **options: Any) -> TrainLog:
        """Stage II; stage I goes before it if nobody has done it. See `StudentSite.train`."""
        self.amplify()
        return super().train(**options)

    def recalibrate_batch_norm(self, most: int | None = None) -> None:
        """See `StudentSite.recalibrate_batch_norm`."""
        self.amplify()
        super().recalibrate_batch_norm(most)

    def empty_like(self, capacity: int) -> TrainingSet:
        """Refused: the maps of another set would not be amplified as this site's are."""
        raise ConfigError("an amplified teacher has no replay of other images: use rd or paste")

    def close(self) -> None:
        """See `StudentSite.close`."""
        super().close()
        self.amplifier.close()
