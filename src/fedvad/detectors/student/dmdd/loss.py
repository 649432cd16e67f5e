"""Losses of dual modelling: what is normal, what is not, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedvad.detectors.student.aand.loss import focal_loss
from fedvad.detectors.student.dmdd.options import Aim, DualConfig
from fedvad.detectors.student.loss import added, cosine_loss, level_maps
from fedvad.detectors.student.rd.loss import global_loss

if TYPE_CHECKING:
    from torch import Tensor

    from fedvad.detectors.student.dmdd.decouple import DualNet
    from fedvad.detectors.student.dmdd.pairs import DualBatch


def dual_loss(net: DualNet, batch: DualBatch, config: DualConfig, *, head: bool = True) -> Tensor:
    """The weighted sum of guidance, mimicking and segmentation losses of one batch; a scalar.

    head: whether the fusion head is trained yet. Source: arXiv 2408.03888; the weights are ours.
    """
    import torch

    normal = batch.normal
    n = len(batch)
    # the pair goes through the student together, so that its norms see both kinds of image
    trains_head = head and config.head_weight > 0
    paired = config.self_weight > 0 or (trains_head and config.head_sees == "pairs")
    both = batch.joined(normal) if paired else batch
    normality, abnormality = net.branches(both.teacher, both.inputs)
    total = guidance_loss(normal.teacher, _first(normality, n), flatten=config.flatten)
    if config.self_weight:
        own = guidance_loss(normal.teacher, _rest(normality, n), flatten=config.flatten)
        total = total + config.self_weight * own
    if config.aim_weight:
        reference = batch.teacher if config.aim_reference == "self" else normal.teacher
        away = away_loss(
            reference, _first(abnormality, n), batch.masks, config.aim, margin=config.margin
        )
        total = total + config.aim_weight * away
    if trains_head:
        count = len(both) if config.head_sees == "pairs" else n
        maps = [_first(m, count) for m in (both.teacher, normality, abnormality)]
        if not config.joint:
            maps = [[m.detach() for m in levels] for levels in maps]
        found = net.student.head(*maps)
        mask = _finest(batch.masks)
        mask = torch.cat([mask, mask.new_zeros(count - n, *mask.shape[1:])])
        segmented = segmentation_loss(found, mask[:, 0], gamma=config.focal_gamma)
        total = total + config.head_weight * segmented
    return total


def guidance_loss(
    normal: Sequence[Tensor], normality: Sequence[Tensor], *, flatten: bool = False
) -> Tensor:
    """Sum over the levels of 1 - cos of the teacher's maps of the normal image and the normality
    features of its defective twin: mean over positions, or of whole maps (`flatten`).

    Source: arXiv 2408.03888, normality guidance modelling; `flatten` as in the code of relatives.
    """
    return global_loss(normal, normality) if flatten else cosine_loss(normal, normality)


def away_loss(
    reference: Sequence[Tensor],
    abnormality: Sequence[Tensor],
    masks: Sequence[Tensor],
    form: Aim,
    *,
    margin: float = 1.0,
) -> Tensor:
    """Sum over the levels of a loss that is low where features (b, c, h, w) are near the reference
    off the mask (b, 1, h, w) of 0 and 1, and far from it on the mask.

    d is 1 - cos of a position. `l1mask`: mean |d - mask|. `margin`: mean of d off the mask, plus
    mean of relu(margin - d) on it. `cos`: the same with relu(cos). `away_only`: the latter's
    second term alone. A mean over no cell is 0. Source: arXiv 2408.03888, abnormality inverse
    mimicking; the forms are inferred.
    """
    levels = []
    for distance, mask in zip(level_maps(reference, abnormality), masks, strict=True):
        on = mask[:, 0]
        if form == "l1mask":
            level = (distance - on).abs().mean()
        else:
            limit = margin if form == "margin" else 1.0  # 1 - d is the cosine
            level = _mean((limit - distance).relu(), on)
            if form != "away_only":
                level = level + _mean(distance, 1 - on)
        levels.append(level)
    return added(levels)


def segmentation_loss(found: Tensor, mask: Tensor, *, gamma: float = 4.0) -> Tensor:
    """Focal loss without alpha plus mean absolute error of probabilities (b, h, w) for a mask.

    Source: the loss of DeSTSeg (Zhang et al., CVPR 2023), a relative.
    """
    return focal_loss(found, mask, alpha=None, gamma=gamma) + (found - mask).abs().mean()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def _first(levels: Sequence[Tensor], count: int) -> list[Tensor]:
    return [m[:count] for m in levels]


def _rest(levels: Sequence[Tensor], count: int) -> list[Tensor]:
    return [m[count:] for m in levels]


def _finest(masks: Sequence[Tensor]) -> Tensor:
    return max(masks, key=lambda m: m.shape[2] * m.shape[3])
