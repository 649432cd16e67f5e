"""What training lowers besides the error of what is rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedvad.detectors.student.daad.net import Critic


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * given[0], None


def reversed_gradient(x: Tensor, strength: float) -> Tensor:
    """x itself, whose gradient arrives negative and times `strength` (Ganin and Lempitsky 2015)."""
    found: Tensor = _Reversed.apply(x, strength)  # type: ignore[no-untyped-call]
    return found


def adversarial_loss(
    critic: Critic,
    teacher: Sequence[Tensor],
    rebuilt: Sequence[Tensor],
    *,
    adversary: float,
    match: float,
) -> Tensor:
    """The critic's error in telling maps (b, c, h, w) from rebuilt ones, which the student raises
    with the strength `adversary`, and `match` times the mean squared distance of its
    representations, which moves the student alone. A scalar.

    One reversed gradient trains both opponents in the same step, so that sites average one set of
    weights; ours, where the paper alternates.
    """
    turned = [reversed_gradient(m, adversary) for m in rebuilt]
    # together, for the batch statistics that both have when images are scored
    _, logits = critic(_both(teacher, turned))
    count = len(teacher[0])
    truth = torch.ones_like(logits)
    truth[count:] = 0
    error = functional.binary_cross_entropy_with_logits(logits, truth)
    if not match:
        return error
    found = critic.frozen(_both(teacher, rebuilt))
    distance = (found[:count].detach() - found[count:]).square().mean()
    return error + match * distance


def _both(teacher: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(pair) for pair in zip(teacher, rebuilt, strict=True)]
