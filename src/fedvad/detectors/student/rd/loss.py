"""Losses of reverse distillation: of whole maps, and of the positions that are hardest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedvad.detectors.student.loss import EPS, added, cosine_loss, level_maps

if TYPE_CHECKING:
    from torch import Tensor

ReverseLoss = Literal["global", "hard+global", "mean"]


def reverse_loss(
    teacher: Sequence[Tensor], student: Sequence[Tensor], kind: ReverseLoss, *, hard: int = 10
) -> Tensor:
    """Sum over the levels of the chosen loss of maps (b, c, h, w); a scalar, 0 for equal maps.

    `global`: `global_loss`; `hard+global`: `hard_loss` of the `hard` worst positions is added;
    `mean`: `cosine_loss`, the mean over the positions.
    """
    if kind == "mean":
        return cosine_loss(teacher, student)
    whole = global_loss(teacher, student)
    return whole if kind == "global" else whole + hard_loss(teacher, student, hard)


def global_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Sum over the levels of the mean over images of 1 - cos of whole maps as one vector each.

    A vector that is all but zero counts as in `level_maps`. Source: the public code of RD4AD (Deng
    and Li 2022), whose text has a mean over positions instead.
    """
    from torch.nn.functional import normalize

    levels = []
    for t, s in zip(teacher, student, strict=True):
        t, s = t.float().flatten(1), s.float().flatten(1)
        gap = normalize(t, eps=EPS) - normalize(s, eps=EPS)
        levels.append(0.5 * gap.square().sum(1).mean())
    return added(levels)


def hard_loss(teacher: Sequence[Tensor], student: Sequence[Tensor], hard: int) -> Tensor:
    """Sum over the levels of the mean over images of the `hard` largest distances in each.

    Distances are 1 - cos over the channels of a position, see `level_maps`; a level with fewer
    positions takes them all. Source: AAND (arXiv 2405.02068), hard knowledge distillation.
    """
    flat = [distances.flatten(1) for distances in level_maps(teacher, student)]
    return added([m.topk(min(hard, m.shape[1]), dim=1).values.mean() for m in flat])
