"""Which positions and channels of a feature map are hidden: attention of a teacher, exact masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedvad.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MaskMode = Literal["attention", "random", "weighted"]
_TINY = 1e-12


def spatial_attention(features: Tensor, temperature: float = 0.5) -> Tensor:
    """h w softmax(mean over channels of |F| / temperature): (b, 1, h, w), each image sums to h w.

    Source: DFMSD (arXiv 2407.13147), section 2 of its specification; the formula is that of
    attention-guided distillation (Zhang and Ma, ICLR 2021).
    """
    b, _, h, w = features.shape
    logits = features.abs().mean(1).flatten(1) / temperature
    return (h * w * logits.softmax(1)).reshape(b, 1, h, w)


def channel_attention(features: Tensor, temperature: float = 0.5) -> Tensor:
    """C softmax(mean over positions of |F| / temperature): (b, C, 1, 1), each image sums to C.

    Source: as `spatial_attention`.
    """
    b, c = features.shape[:2]
    logits = features.abs().mean((2, 3)) / temperature
    return (c * logits.softmax(1)).reshape(b, c, 1, 1)


def enhanced(attention: Tensor, error: Tensor, strength: float) -> Tensor:
    """Attention (b, ...) sharpened, and raised where the student still errs: G^(1 + s) E^s.

    error: of the attention's shape, not negative, in any unit; it is taken relative to its mean per
    image. strength: s; 0 gives the attention as it is. Each image keeps its sum. Source: DFMSD
    names masks that are enhanced adaptively, stage by stage; the sharpening by stages is that of
    its specification (inferred), the student's error ours.
    """
    if strength == 0:
        return attention
    rows, errors = attention.flatten(1), error.detach().flatten(1)
    errors = errors / errors.mean(1, keepdim=True).clamp_min(_TINY)
    raised = (rows / rows.mean(1, keepdim=True).clamp_min(_TINY)) ** (1 + strength)
    raised = raised * errors**strength + _TINY
    shares = raised / raised.sum(1, keepdim=True)
    return (shares * rows.sum(1, keepdim=True)).reshape(attention.shape)


def hide(scores: Tensor, count: int) -> Tensor:
    """(b, n) scores to masks (b, n): 0 at the `count` highest of each row, 1 elsewhere.

    Of equal scores some are chosen, so that it is always exactly `count`.
    """
    import torch

    masks = torch.ones_like(scores)
    if count:
        masks.scatter_(1, scores.topk(count, dim=1).indices, 0.0)
    return masks


def mask(
    attention: Tensor, ratio: float, mode: MaskMode, generator: torch.Generator | None = None
) -> Tensor:
    """A mask of the attention's shape (b, ...): 0 for round(ratio * n) entries per image, else 1.

    attention: positive, n entries per image. mode: `attention` hides the highest; `random` any, as
    MGD does; `weighted` draws without replacement, each entry in proportion to its attention
    (top k of log attention + Gumbel noise; Kool et al. 2019). generator: of a CPU; needed where
    something is drawn. Raises `ConfigError` for a ratio outside [0, 1) or a missing generator.
    """
    import torch

    if not 0 <= ratio < 1:
        raise ConfigError(f"a mask hides a share in [0, 1), not {ratio}")
    rows = attention.detach().flatten(1)
    count = round(ratio * rows.shape[1])
    if count and mode != "attention":
        if generator is None:
            raise ConfigError(f"masks of mode {mode} are drawn: give a generator")
        uniform = torch.rand(rows.shape, generator=generator).to(rows.device)
        noise = -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))
        # the softmax may underflow to 0; it is never to be chosen before anything else
        rows = noise if mode == "random" else rows.clamp_min(1e-30).log() + noise
    return hide(rows, count).reshape(attention.shape)
