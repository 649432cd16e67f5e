"""Losses of stage I: is the gate open on defects alone, and are amplified anomalies far off?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedvad.detectors.student.aand.options import AmplifyConfig, Margin
from fedvad.detectors.student.loss import EPS, added

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedvad.detectors.student.aand.pairs import PairBatch

_CLAMP = 1e-6  # of the gate, whose logarithm is taken


def amplify_loss(blocks: nn.ModuleList, batch: PairBatch, config: AmplifyConfig) -> Tensor:
    """The weighted sum over all levels of the focal, amplification and keep-normal losses.

    keep-normal: the mean absolute change of normal cells, by the predicted gate (with the mask
    in its place they do not change). Source: arXiv 2405.02068, stage I.
    """
    terms = []
    for index, block in enumerate(blocks):
        x, mask = batch.teacher[index], batch.masks[index]
        amplified, gate, residual = block(x, mask if config.gate_forcing else None)
        if config.focal_weight:
            focal = focal_loss(gate, mask, alpha=config.focal_alpha, gamma=config.focal_gamma)
            terms.append(config.focal_weight * focal)
        if config.amplify_weight:
            amplification = amplification_loss(
                _cells(x, batch.normal[index]),
                _cells(x, batch.anomalous[index]),
                _cells(amplified, batch.anomalous[index]),
                alpha=config.alpha,
                margin=config.margin,
            )
            terms.append(config.amplify_weight * amplification)
        if config.keep_weight:
            change = _cells(gate * residual, batch.normal[index]).abs()
            # of no cell the mean is not a number
            terms.append(config.keep_weight * change.sum() / max(1, change.numel()))
    return added(terms)


def focal_loss(
    gate: Tensor, mask: Tensor, *, alpha: float | None = 0.8, gamma: float = 2.0
) -> Tensor:
    """Mean of -a (1 - p)^gamma log p over all cells; gate and mask are of one shape, in [0, 1].

    p and a are gate and alpha where the mask is 1, and 1 - gate and 1 - alpha where it is 0; a is
    1 everywhere without an alpha. The gate is clamped to [1e-6, 1 - 1e-6]. Source: Lin et al.
    2017, eq. 5.
    """
    inside = gate.clamp(_CLAMP, 1 - _CLAMP)
    p = mask * inside + (1 - mask) * (1 - inside)
    weight = 1.0 if alpha is None else mask * alpha + (1 - mask) * (1 - alpha)
    return -(weight * (1 - p) ** gamma * p.log()).mean()


def amplification_loss(
    normal: Tensor, before: Tensor, after: Tensor, *, alpha: float = 0.3, margin: Margin = "sub"
) -> Tensor:
    """Mean over all pairs of relu(cos(n, after) - limit), a scalar; 0 if there is no pair.

    normal: (n, c) features; before, after: (m, c), the same anomalous cells without and with
    residual. limit: cos(n, before) - alpha (`sub`), as in the public code, or alpha *
    cos(n, before) (`mul`). Source: arXiv 2405.02068, amplification loss.
    """
    import torch
    from torch.nn.functional import normalize

    if not len(normal) or not len(before):
        return after.float().sum() * 0.0
    with torch.autocast(normal.device.type, enabled=False):
        unit, was, now = (
            normalize(cells.float(), dim=1, eps=EPS) for cells in (normal, before, after)
        )
        was, now = unit @ was.T, unit @ now.T
    limit = was - alpha if margin == "sub" else alpha * was
    return (now - limit).relu().mean()


def _cells(maps: Tensor, chosen: Tensor) -> Tensor:
    """(k, c) features of maps (b, c, h, w) where bool (b, h, w) says so."""
    return maps.movedim(1, 3)[chosen]
