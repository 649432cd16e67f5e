"""How far a student is from its teacher: as a loss to train with, and as anomaly maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedvad.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EPS", "Combine", "added", "combine_maps", "cosine_loss", "level_maps"]

Combine = Literal["product", "sum"]
# Large enough that a position where a ReLU left nothing but zeros, whose gradient is 1 / eps,
# does not drown all others; small against the norm of any feature that says something.
EPS = 1e-4


def level_maps(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    *,
    masks: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Per level the (b, h, w) map of 1/2 ||T^ - S^||^2, with F^ = F / max(||F||, 1e-4).

    teacher, student: maps (b, c, h, w), one pair per level. Norms are over the channels at each
    position; wherever both are above 1e-4 this is 1 - cosine. It is computed in float32, whatever
    the maps are in. masks: (c, h, w) per level, factors of the squared gaps. Source: STFPM, eq. 1.
    """
    from torch.nn.functional import normalize

    units = (
        (normalize(t.float(), dim=1, eps=EPS), normalize(s.float(), dim=1, eps=EPS))
        for t, s in zip(teacher, student, strict=True)
    )
    gaps = [(t - s).square() for t, s in units]
    if masks is not None:
        gaps = [gap * mask for gap, mask in zip(gaps, masks, strict=True)]
    return [0.5 * gap.sum(1) for gap in gaps]


def cosine_loss(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    *,
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """Sum over the levels of the mean of each level's map over positions and images; a scalar.

    Source: STFPM, eqs. 1-3. masks: by level (c, h, w), 0 for features that are left
    out and 1 / share for the others, which keeps the size of the loss (ours).
    """
    return added([level.mean() for level in level_maps(teacher, student, masks=masks)])


def added(levels: Sequence[Tensor]) -> Tensor:
    """Sum of the losses of all levels, in their order; raises `ConfigError` without any."""
    if not levels:
        raise ConfigError("a loss needs at least one level")
    return sum(levels[1:], levels[0])


def combine_maps(maps: Sequence[Tensor], size: tuple[int, int], combine: Combine) -> Tensor:
    """One (b, *size) map of the levels' (b, h, w) maps, each resized bilinearly first.

    `product`: the geometric mean, i.e. the L-th root of STFPM's product of L levels. It orders
    cells, and maxima of images, exactly as the product does, but stays in the range of a single
    level instead of about 1e-6. `sum`: the sum.
    """
    from torch.nn.functional import interpolate

    resized = [
        m if tuple(m.shape[1:]) == size
        else interpolate(m[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        for m in maps
    ]  # fmt: skip
    out = resized[0]
    for m in resized[1:]:
        out = out * m if combine == "product" else out + m
    return out ** (1 / len(maps)) if combine == "product" else out
