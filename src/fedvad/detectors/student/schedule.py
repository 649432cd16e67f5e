"""How long a student trains, at which rate, and how often it is measured; no torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fedvad.errors import ConfigError, check_choice, check_ranges

Optimiser = Literal["sgd", "adam"]
Decay = Literal["cosine", "none"]
_DROPS = (0.8, 0.9)
_VALIDATIONS, _SHORT = 4, 25  # of a round, and no more often than that many steps
_LEAST = 0.01  # share of the learning rate that a cosine ends at: control variates divide by rates


@dataclass(frozen=True)
class TrainConfig:
    """Options of the optimiser and of when to stop.

    epochs: passes over the batches; steps: if given, the number of optimiser steps instead,
    in as many passes as they take. batch: images per step, for those who make the batches.
    warmup: steps over which the learning rate rises linearly to its value. clip: largest norm
    of the whole gradient (None: no limit). validate_every: steps between validations (None: one
    after each pass). patience: validations without a better value after which training stops
    (None: never).
    optimiser: `sgd`, or `adam`, where momentum is the first of its two decay rates and the other
    one is 0.999. drop: factor of the learning rate after 80 % of the steps, and again after 90 %.
    decay: `cosine` lets the rate fall to a hundredth along half a cosine. whole: steps over which
    it falls, of which `begun` are over, for a training that is one of several in a row (None: those
    of this training). A training that begins after them has a half cosine of its own.
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
    decay: Decay = "none"
    begun: int = 0
    whole: int | None = None
    validate_every: int | None = None
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "[1, inf)": "epochs steps batch patience whole validate_every",
            "[0, inf)": "weight_decay warmup begun",
            "(0, inf)": "learning_rate clip",
            "[0, 1)": "momentum",
            "(0, 1]": "drop",
        }
        check_ranges(self, ranges)
        check_choice("optimiser", self.optimiser, Optimiser)
        check_choice("decay", self.decay, Decay)
        if self.drop < 1 and self.steps is None:
            raise ConfigError(f"drop below 1 needs a number of steps, got {self.drop} and none")

    def rate(self, step: int) -> float:
        """Learning rate of the step-th step of a training, from 1."""
        rate = self.learning_rate * min(1.0, step / (self.warmup + 1))
        if self.steps is not None:
            rate *= self.drop ** sum(step > share * self.steps for share in _DROPS)
        whole = self.whole or self.steps
        if self.decay == "cosine" and whole is not None:
            begun = self.begun
            if self.steps is not None and begun >= whole:  # a round more than were planned
                begun, whole = 0, self.steps
            share = min(1.0, (begun + step - 1) / whole)
            rate *= _LEAST + (1 - _LEAST) * 0.5 * (1 + math.cos(math.pi * share))
        return rate

    def in_rounds(self, rounds: int, images: int, steps: int | None = None) -> TrainConfig:
        """The training of one of several rounds.

        images: that pass in all rounds together, unless a number of steps of each round is given.
        """
        steps = steps or math.ceil(images / (self.batch * rounds))
        often = max(steps // _VALIDATIONS, min(steps, _SHORT))
        return replace(self, steps=steps, whole=steps * rounds, validate_every=often)
