"""The one loop that trains students: any loss, any batches, alone or as a site of several."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedvad.detectors.student.schedule import TrainConfig
from fedvad.errors import ConfigError, DataError, MismatchError

if TYPE_CHECKING:
    import torch

__all__ = ["TrainConfig", "TrainLog", "Trainer", "make_optimiser", "train_student"]

log = logging.getLogger(__name__)
B = TypeVar("B")
_SECOND = 0.999  # Adam's decay rate of squared gradients
_SHARE = "rate_share"  # key of an optimiser's group of parameters


@dataclass
class TrainLog:
    """What happened, by stretches of steps: the mean loss (with its penalty) of each, the value of
    the validation after it, if there is any, and the step that it ended with.

    best: the stretch, from 0, whose weights were kept (the last one without validation).
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    steps: int = 0
    best: int = -1
    stopped_early: bool = False
    at: list[int] = field(default_factory=list)

    def then(self, other: TrainLog, begun: int) -> TrainLog:
        """This and a later training, which came after `begun` steps; its last weights are kept."""
        return TrainLog(
            loss=self.loss + other.loss,
            validation=self.validation + other.validation,
            steps=self.steps + other.steps,
            best=len(self.loss) + other.best,
            at=self.at + [begun + step for step in other.at],
        )


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
    choose: bool = True,
    optimiser: torch.optim.Optimizer | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainLog:
    """Train `student` in place, on the device where it lies; it is left in eval mode.

    loss: of one batch, a scalar. batches: the batches of one pass, in an order drawn from the
    generator it is given, which depends on `seed` and the number of the pass alone. penalty:
    added to the loss of each step (a proximal term, for instance). correction: by parameter
    name, added to the clipped gradient before each step (SCAFFOLD's control variates).
    validate: a value of data not trained on, lower is better, measured after each pass or as
    `validate_every` says, with the student in eval mode. It must come from normal images: never
    from test labels. choose: whether the best weights and buffers are restored at the end, and
    training may stop early; else the value is only recorded. optimiser: one to carry on with,
    momentum included; None makes a new one. on_step: called with the number of the step and its
    loss.

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

    losses: list[float] = []

    def ended() -> bool:
        """Close a stretch of steps; whether training is to stop."""
        nonlocal lowest, best
        record.loss.append(float(np.mean(losses)))
        record.at.append(record.steps)
        losses.clear()
        record.best = len(record.loss) - 1
        if validate is None:
            return False
        student.eval()
        value = validate()
        student.train()
        record.validation.append(value)
        if not choose:
            return False
        # a value that is not finite compares as no improvement
        if value < lowest:
            lowest, best = value, _snapshot(student)
        since = record.best
        record.best = int(np.argmin(np.nan_to_num(record.validation, nan=math.inf)))
        record.stopped_early = config.patience is not None and (
            since - record.best >= config.patience
        )
        return record.stopped_early

    every = config.validate_every
    for epoch in range(config.epochs if config.steps is None else config.steps):
        student.train()
        begun, over = record.steps, False
        for batch in batches(np.random.default_rng([seed, epoch])):
            losses.append(one_step(batch))
            over = record.steps == config.steps
            if over or (every is not None and record.steps % every == 0):
                over = ended() or over
            if over:
                break
        if record.steps == begun:
            raise DataError("training got no batch: give it at least one normal image")
        if every is None and losses:
            over = ended() or over
        if over:
            break
    if losses:
        ended()
    if best is not None:
        student.load_state_dict(best)
    student.eval()
    return record


class Trainer(ABC):
    """A trainable part of a site, whose weights sites may average; settings: of its training."""

    settings: TrainConfig

    @cached_property
    def log(self) -> TrainLog:
        """Of all trainings in rounds so far, one after another."""
        return TrainLog()

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
        config: TrainConfig | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> TrainLog:
        """Train from where the student stands; see `train_student`. config: replaces `settings`."""
        return train_student(
            self.student, self.losses(seed), self.batches, config or self.settings,
            seed=seed, penalty=penalty, correction=correction, on_step=on_step,
        )  # fmt: skip

    def in_round(self, number: int) -> TrainConfig:
        """The settings of a round, from 0: as many steps are over as those before it have."""
        return replace(self.settings, begun=number * (self.settings.steps or 0))


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
