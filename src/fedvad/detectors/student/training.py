"""The one loop that trains students: any loss, any batches, alone or as a site of several."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from fedvad.detectors.student.parameters import (
    buffers_of,
    load_buffers,
    load_parameters,
    parameters_of,
)
from fedvad.errors import ConfigError, DataError, MismatchError, check_choice

if TYPE_CHECKING:
    import torch

__all__ = [
    "Optimiser",
    "TrainConfig",
    "TrainLog",
    "Trainer",
    "buffers_of",
    "load_buffers",
    "load_parameters",
    "make_optimiser",
    "parameters_of",
    "train_student",
]

log = logging.getLogger(__name__)
B = TypeVar("B")
Optimiser = Literal["sgd", "adam"]
_DROPS = (0.8, 0.9)
_SECOND = 0.999  # Adam's decay rate of squared gradients
_SHARE = "rate_share"  # key of an optimiser's group of parameters


@dataclass(frozen=True)
class TrainConfig:
    """Options of the optimiser and of when to stop.

    epochs: passes over the batches; steps: if given, the number of optimiser steps instead,
    in as many passes as they take. batch: images per step, for those who make the batches.
    warmup: steps over which the learning rate rises linearly to its value. clip: largest norm
    of the whole gradient (None: no limit). patience: passes without a better validation value
    after which training stops (None: never).
    optimiser: `sgd`, or `adam`, where momentum is the first of its two decay rates and the other
    one is 0.999. drop: factor of the learning rate after 80 % of the steps, and again after 90 %.
    mixed_precision: convolutions of the steps (not of the validation) in bfloat16, weights, norms
    and losses in float32; quicker where the processor multiplies bfloat16 in hardware.
    """

    epochs: int = 100
    steps: int | None = None
    batch: int = 8
    learning_rate: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 20
    clip: float | None = 1.0
    patience: int | None = 20
    optimiser: Optimiser = "sgd"
    drop: float = 1.0
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or (self.steps is not None and self.steps < 1):
            raise ConfigError("training needs epochs, steps and batch of at least 1")
        if not self.learning_rate > 0 or not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ConfigError("training needs learning_rate > 0, momentum in [0, 1), decay >= 0")
        if self.warmup < 0 or (self.clip is not None and not self.clip > 0):
            raise ConfigError("training needs warmup >= 0, and clip > 0 or none at all")
        if self.patience is not None and self.patience < 1:
            raise ConfigError("patience must be at least 1 epoch, or none at all")
        check_choice("optimiser", self.optimiser, Optimiser)
        if not 0 < self.drop <= 1 or (self.drop < 1 and self.steps is None):
            raise ConfigError(
                f"drop must lie in (0, 1], got {self.drop}; below 1 it needs a number of steps"
            )

    def rate(self, step: int) -> float:
        """Learning rate of the step-th step of a training, from 1."""
        rate = self.learning_rate * min(1.0, step / (self.warmup + 1))
        if self.steps is not None:
            rate *= self.drop ** sum(step > share * self.steps for share in _DROPS)
        return rate


@dataclass
class TrainLog:
    """What happened: per epoch the mean loss (with its penalty) and the validation value.

    best: the epoch, from 0, whose weights were kept (the last one without validation).
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    steps: int = 0
    best: int = -1
    stopped_early: bool = False


def make_optimiser(
    student: torch.nn.Module, config: TrainConfig, shares: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The configured optimiser over the trainable parameters.

    shares: of the learning rate, for parameters whose names begin so; others get all of it.
    """
    import torch

    groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in ("", *(shares or {}))}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            part = next((p for p in shares or {} if name.startswith(p)), "")
            groups[part].append(parameter)
    parameters = [
        {"params": found, _SHARE: (shares or {}).get(part, 1.0)}
        for part, found in groups.items()
        if found
    ]
    if config.optimiser == "adam":
        return torch.optim.Adam(
            parameters,
            lr=config.learning_rate,
            betas=(config.momentum, _SECOND),
            weight_decay=config.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def train_student(
    student: torch.nn.Module,
    loss: Callable[[B], torch.Tensor],
    batches: Callable[[np.random.Generator], Iterable[B]],
    config: TrainConfig,
    *,
    seed: int,
    penalty: Callable[[torch.nn.Module, B], torch.Tensor] | None = None,
    correction: Mapping[str, torch.Tensor] | None = None,
    validate: Callable[[], float] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainLog:
    """Train `student` in place, on the device where it lies; it is left in eval mode.

    loss: of one batch, a scalar. batches: the batches of one pass, in an order drawn from the
    generator it is given, which depends on `seed` and the number of the pass alone. penalty:
    added to the loss of each step (a proximal term, for instance). correction: by parameter
    name, added to the clipped gradient before each step (SCAFFOLD's control variates).
    validate: a value of data not trained on, lower is better, asked for after each pass with the
    student in eval mode; the best weights and buffers are restored at the end. It must come from
    normal images: never from test labels. optimiser: one to carry on with, momentum included;
    None makes a new one. on_step: called with the number of the step and its loss.

    Raises `ConfigError` when the loss is no longer finite, `DataError` when a pass has no batch,
    `MismatchError` for a correction that does not fit.
    """
    import torch

    parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
    _check_correction(correction, parameters)
    device = next(iter(parameters.values())).device.type
    optimiser = optimiser or make_optimiser(student, config)
    record = TrainLog()
    best: dict[str, torch.Tensor] | None = None
    lowest = math.inf

    def one_step(batch: B) -> float:
        for group in optimiser.param_groups:
            group["lr"] = config.rate(record.steps + 1) * group.get(_SHARE, 1.0)
        with torch.autocast(device, torch.bfloat16, enabled=config.mixed_precision):
            value = loss(batch)
        if penalty is not None:
            value = value + penalty(student, batch)
        number = float(value.detach())
        if not math.isfinite(number):
            raise ConfigError(
                f"the loss became {number} at step {record.steps}; lower the learning rate "
                f"(now {config.learning_rate}), lengthen the warm-up ({config.warmup} steps) or "
                f"set a smaller clip ({config.clip})"
            )
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        _clip_and_correct(parameters, config.clip, correction)
        optimiser.step()
        record.steps += 1
        if on_step is not None:
            on_step(record.steps, number)
        return number

    for epoch in range(config.epochs if config.steps is None else config.steps):
        student.train()
        losses = []
        for batch in batches(np.random.default_rng([seed, epoch])):
            losses.append(one_step(batch))
            if record.steps == config.steps:
                break
        if not losses:
            raise DataError("training got no batch: give it at least one normal image")
        record.loss.append(float(np.mean(losses)))
        record.best = epoch
        if validate is not None:
            student.eval()
            value = validate()
            record.validation.append(value)
            # a value that is not finite compares as no improvement
            if value < lowest:
                lowest, best = value, _snapshot(student)
            record.best = int(np.argmin(np.nan_to_num(record.validation, nan=math.inf)))
            if config.patience is not None and epoch - record.best >= config.patience:
                record.stopped_early = True
                break
        if record.steps == config.steps:
            break
    if best is not None:
        student.load_state_dict(best)
    student.eval()
    return record


class Trainer(ABC):
    """A trainable part of a site, whose weights sites may average; settings: of its training."""

    settings: TrainConfig

    @property
    @abstractmethod
    def student(self) -> torch.nn.Module:
        """The part that is trained, in place, and averaged."""

    @abstractmethod
    def losses(self, seed: int) -> Callable[[Any], torch.Tensor]:
        """The loss of a batch, in a training with this seed."""

    @abstractmethod
    def batches(self, rng: np.random.Generator) -> Iterable[Any]:
        """The batches of one pass."""

    @abstractmethod
    def represent(self, student: torch.nn.Module, batch: Any) -> torch.Tensor:
        """(b, k) representation of a batch by any student of the same shape (for MOON)."""

    def train(
        self,
        *,
        seed: int,
        penalty: Callable[[torch.nn.Module, Any], torch.Tensor] | None = None,
        correction: Mapping[str, torch.Tensor] | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> TrainLog:
        """Train from where the student stands; see `train_student`."""
        return train_student(
            self.student, self.losses(seed), self.batches, self.settings,
            seed=seed, penalty=penalty, correction=correction, on_step=on_step,
        )  # fmt: skip

    def rate(self, step: int) -> float:
        """Learning rate of the step-th step of a training, from 1."""
        return self.settings.rate(step)


def _check_correction(
    correction: Mapping[str, torch.Tensor] | None, parameters: Mapping[str, torch.Tensor]
) -> None:
    if not parameters:
        raise ConfigError("the student has no trainable parameter")
    if correction is not None and {n: tuple(c.shape) for n, c in correction.items()} != {
        n: tuple(p.shape) for n, p in parameters.items()
    }:
        raise MismatchError("the gradient correction does not fit the student's parameters")


def _clip_and_correct(
    parameters: Mapping[str, torch.Tensor],
    clip: float | None,
    correction: Mapping[str, torch.Tensor] | None,
) -> None:
    import torch

    if clip is not None:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), clip)
    if correction is not None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(correction[name].to(parameter.grad))


def _snapshot(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}
