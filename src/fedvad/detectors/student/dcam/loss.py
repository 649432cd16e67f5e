"""How far a student's maps are from its teacher's, as distributions and as directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedvad.detectors.student.dcam.options import Cosine, ImitationConfig, Reduce, Standardise
from fedvad.detectors.student.loss import EPS, added

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["channel_cosine", "imitation_loss", "spatial_kl"]

# A teacher's channel that is flat in an image counts as one with this share of the deviation of
# its level, or dividing by it would make the student's noise there the largest term of all.
_FLAT = 0.1


def imitation_loss(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    config: ImitationConfig,
    *,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """Sum over the levels of the weighted cosine and KL losses; a scalar, 0 for equal maps.

    teacher, student: maps (b, c, h, w), one pair per level. weights: positive, one per level that
    broadcasts to its maps; how much each value counts in its image, see the two losses.
    Raises `ConfigError` without a level. Source: arXiv 2405.06467, section 3 of its specification.
    """
    terms = []
    given: Sequence[Tensor | None] = [None] * len(teacher) if weights is None else weights
    for t, s, weight in zip(teacher, student, given, strict=True):
        t, s = t.float(), s.float()
        if config.cosine_weight:
            distance = channel_cosine(t, s, over=config.cosine, weight=weight)
            terms.append(config.cosine_weight * distance)
        if config.kl_weight:
            divergence = spatial_kl(
                t,
                s,
                tau=config.tau,
                tau_squared=config.tau_squared,
                reduce=config.reduce,
                standardise=config.standardise,
                weight=weight,
            )
            terms.append(config.kl_weight * divergence)
    return added(terms)


def channel_cosine(
    teacher: Tensor,
    student: Tensor,
    *,
    over: Cosine,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean of 1/2 ||t^ - s^||^2 with v^ = v / max(||v||, 1e-4), which is 1 - cosine above that.

    teacher, student: (b, c, h, w). over: what is one vector. `per_channel`: the h * w values of a
    channel, the mean is over channels; a positive gain of a channel changes nothing.
    `per_location`: the c values at a location, the mean is over locations; a positive gain of a
    location changes nothing. Both readings of "channel cosine" exist in public code.
    weight: the mean weight of a vector's values is its part in the mean of the image, and within
    the vector the weights are those of the scalar product (ours).
    """
    from torch.nn.functional import normalize

    dim = 2 if over == "per_channel" else 1
    t, s = teacher.flatten(2), student.flatten(2)
    part = None
    if weight is not None:
        relative = _relative(weight, student).flatten(2)
        part = relative.mean(dim, keepdim=True)
        root = (relative / part).sqrt()
        t, s = t * root, s * root
    gap = normalize(t, dim=dim, eps=EPS) - normalize(s, dim=dim, eps=EPS)
    distance = 0.5 * gap.square().sum(dim)
    return distance.mean() if part is None else (distance * part.squeeze(dim)).mean()


def spatial_kl(
    teacher: Tensor,
    student: Tensor,
    *,
    tau: float = 1.0,
    tau_squared: bool = True,
    reduce: Reduce = "mean",
    standardise: Standardise = "teacher",
    weight: Tensor | None = None,
) -> Tensor:
    """KL(P, Q) in nats of each channel's softmax over the positions of map / tau; a scalar.

    teacher, student: (b, c, h, w), the mean is over b and the sum or mean (`reduce`) over c.
    standardise: see `ImitationConfig`; without it a softmax over many positions is close to one
    position alone. weight: multiplies P log(P / Q) - P + Q at each position, which is never
    negative and adds up to the KL (ours). Source: arXiv 2405.06467; form of its unused code.
    """
    from torch.nn.functional import log_softmax

    t, s = _standardised(teacher.flatten(2), student.flatten(2), standardise)
    log_p, log_q = log_softmax(t / tau, 2), log_softmax(s / tau, 2)
    p = log_p.exp()
    terms = p * (log_p - log_q)
    if weight is not None:
        terms = (terms - p + log_q.exp()) * _relative(weight, student).flatten(2)
    per_channel = terms.sum(2)
    over_channels = per_channel.mean(1) if reduce == "mean" else per_channel.sum(1)
    return over_channels.mean() * (tau**2 if tau_squared else 1.0)


def _relative(weight: Tensor, like: Tensor) -> Tensor:
    """Weights in the shape of `like` (b, c, h, w), with a mean of 1 in each image."""
    full = weight.expand_as(like).clamp_min(EPS)
    return full / full.mean((1, 2, 3), keepdim=True)


def _standardised(t: Tensor, s: Tensor, how: Standardise) -> tuple[Tensor, Tensor]:
    # means are left in: a softmax does not see them
    if how == "none":
        return t, s
    if how == "own":
        return t / _deviation(t, 0.0), s / _deviation(s, 0.0)
    deviation = _deviation(t, _FLAT)
    return t / deviation, s / deviation


def _deviation(x: Tensor, flat: float) -> Tensor:
    """(b, c, 1) standard deviation over the positions of (b, c, p), never 0."""
    variance = x.var(2, correction=0, keepdim=True)
    # added under the root, not clamped outside: the gradient stays finite at zero
    return (variance + flat**2 * variance.mean(1, keepdim=True) + EPS**2).sqrt()
