"""Attention and masks: sums and counts are exact, and what is hidden is what was meant."""

from __future__ import annotations

import pytest
import torch

from fedvad.distillation.masks import (
    MaskMode,
    channel_attention,
    enhanced,
    hide,
    mask,
    spatial_attention,
)
from fedvad.errors import ConfigError

FEATURES = torch.randn(3, 10, 5, 7, generator=torch.Generator().manual_seed(0))
MODES: tuple[MaskMode, ...] = ("attention", "random", "weighted")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_attention_sums_to_positions_and_channels() -> None:
    spatial, channel = spatial_attention(FEATURES), channel_attention(FEATURES)
    assert spatial.shape == (3, 1, 5, 7)
    assert channel.shape == (3, 10, 1, 1)
    torch.testing.assert_close(spatial.sum((1, 2, 3)), torch.full((3,), 35.0))
    torch.testing.assert_close(channel.sum((1, 2, 3)), torch.full((3,), 10.0))
    sharp = spatial_attention(FEATURES, 0.1)
    assert float(sharp.max()) > float(spatial.max())
    assert int(spatial[0].argmax()) == int(FEATURES[0].abs().mean(0).argmax())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.3, 0.5, 0.99])
def test_masks_hide_exactly_the_share(mode: MaskMode, ratio: float) -> None:
    for attention, n in ((spatial_attention(FEATURES), 35), (channel_attention(FEATURES), 10)):
        for given in (attention, torch.ones_like(attention)):  # ties, too
            made = mask(given, ratio, mode, _generator())
            assert made.shape == given.shape
            assert set(made.unique().tolist()) <= {0.0, 1.0}
            assert ((made == 0).sum((1, 2, 3)) == round(ratio * n)).all()


def test_attention_hides_the_highest_and_random_does_not_look() -> None:
    attention = spatial_attention(FEATURES)
    hidden = mask(attention, 0.2, "attention") == 0
    assert float(attention[hidden].min()) >= float(attention[~hidden].max()) or all(
        float(a[h].min()) >= float(a[~h].max()) for a, h in zip(attention, hidden, strict=True)
    )
    one, same, other = (mask(attention, 0.4, "random", _generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(one, mask(attention.flip(-1), 0.4, "random", _generator(1)))


def test_weighted_masks_prefer_high_attention_and_survive_an_underflow() -> None:
    attention = torch.tensor([[8.0, 1.0, 1.0, 0.0]]).repeat(4000, 1).reshape(4000, 1, 2, 2)
    rate = (mask(attention, 0.25, "weighted", _generator()) == 0).float().mean((0, 1)).flatten()
    torch.testing.assert_close(rate, torch.tensor([0.8, 0.1, 0.1, 0.0]), atol=0.03, rtol=0)


def test_enhanced_masks_go_where_the_teacher_looks_and_the_student_errs() -> None:
    attention = torch.tensor([[2.0, 2.0, 1.0, 1.0]]).reshape(1, 1, 2, 2)
    error = torch.tensor([[3.0, 1.0, 3.0, 1.0]]).reshape(1, 1, 2, 2)
    assert enhanced(attention, error, 0.0) is attention
    found = enhanced(attention, error, 1.0)
    # G^2 E: 12, 4, 3, 1 of 20, with the sum of before
    torch.testing.assert_close(found.flatten(), torch.tensor([12.0, 4.0, 3.0, 1.0]) * 6 / 20)
    hidden = mask(found, 0.25, "attention")
    assert hidden.flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    assert torch.isfinite(enhanced(attention, torch.zeros_like(error), 1.0)).all()
    for scale in (1e-3, 1e3):  # units do not matter
        torch.testing.assert_close(enhanced(attention, scale * error, 1.0), found)


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        mask(FEATURES, 1.0, "attention")
    with pytest.raises(ConfigError, match="generator"):
        mask(FEATURES, 0.5, "random")
    assert hide(torch.rand(2, 4), 0).min() == 1
