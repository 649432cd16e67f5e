"""The memory generator as a trainable part whose weights are averaged, the memories staying home.

The mirror image of FedDyMem: there memories travel and generators stay. For comparison only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.metric_loss import (
    MetricLossConfig,
    metric_loss,
    usual_distance,
)
from fedvad.detectors.memory.site import FedDyMemConfig, MemorySite
from fedvad.detectors.student.training import TrainConfig, Trainer
from fedvad.memory.bank import MemoryBank

if TYPE_CHECKING:
    import torch


def _training() -> TrainConfig:
    return TrainConfig(
        steps=100, batch=1024, learning_rate=1e-3, momentum=0.0, weight_decay=0.0, warmup=20
    )


@dataclass(frozen=True)
class GeneratorConfig:
    """memory: how each site fills its own bank, in `rounds` passes. loss: see `metric_loss`."""

    memory: FedDyMemConfig
    rounds: int = 2
    loss: MetricLossConfig = field(default_factory=MetricLossConfig)
    train: TrainConfig = field(default_factory=_training)


class GeneratorSite(Trainer):
    """One site's own memory and the generator that it trains against it."""

    def __init__(self, features: NormalFeatures, config: GeneratorConfig, *, seed: int) -> None:
        self.config, self.settings = config, config.train
        self.seed = seed
        site = MemorySite(features, config.memory, seed=seed, rounds=config.rounds)
        for round_ in range(1, config.rounds + 1):
            site.update(round_, site.bank if len(site.bank) else None)
        self._raw = site.bank
        self._student = _module(site.dim)

    @property
    def student(self) -> torch.nn.Module:
        """See `Trainer.student`: the generator as a module."""
        return self._student

    @property
    def generator(self) -> Generator:
        """The generator as it stands."""
        arrays = {name: p.detach().numpy().copy() for name, p in self.student.named_parameters()}
        return Generator(arrays["weight"], arrays["bias"])

    @property
    def bank(self) -> MemoryBank:
        """The site's memory in the generator's space."""
        return self.generator.embedded(self._raw)

    def losses(self, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """See `Trainer.losses`: it pulls the site's rows to their neighbours."""
        import torch

        anchors = torch.from_numpy(self.bank.vectors)
        unit = usual_distance(anchors, anchors, self.config.loss)
        rho = self.student.get_parameter("rho")

        def loss(batch: torch.Tensor) -> torch.Tensor:
            return metric_loss(self.student(batch), batch, anchors, unit * rho, self.config.loss)

        return loss

    def represent(self, student: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """(n, d) embedded patches."""
        embedded: torch.Tensor = student(batch)
        return embedded

    def batches(self, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        """See `Trainer.batches`."""
        import torch

        order = rng.permutation(len(self._raw))
        size = self.settings.batch
        for start in range(0, len(order), size):
            yield torch.from_numpy(self._raw.vectors[order[start : start + size]])


def _module(dim: int) -> torch.nn.Module:
    """x + x W^T + b with W, b of zeros: the identity, as every generator begins.

    rho: the radius of the metric loss, learned and averaged with them.
    """
    import torch

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(dim, dim))
            self.bias = torch.nn.Parameter(torch.zeros(dim))
            self.rho = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x @ self.weight.T + self.bias

    return Residual()
