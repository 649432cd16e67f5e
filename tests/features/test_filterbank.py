"""The weight-free backbone: shapes, tracing, orientation, and flat or extreme images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedvad.features.filterbank import FilterBank

ORIENTATIONS = 6


@pytest.fixture(scope="module")
def bank() -> FilterBank:
    return FilterBank().eval()


def _noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes(bank: FilterBank, size: int) -> None:
    maps = bank(_noise(2, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, size // s, size // s) for c, s in zip(bank.channels, bank.strides, strict=True)
    ]
    assert all(m.dtype == torch.float32 for m in maps)


def test_nothing_to_learn_or_store_and_deterministic(bank: FilterBank) -> None:
    assert not list(bank.parameters())
    assert not bank.state_dict()
    x = _noise(2, 3, 64, 64)
    for a, b in zip(bank(x), FilterBank()(x), strict=True):
        assert torch.equal(a, b)


def test_images_of_a_batch_do_not_meet(bank: FilterBank) -> None:
    x = _noise(3, 3, 64, 64)
    for whole, alone in zip(bank(x), bank(x[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-5)


def test_traced_equals_eager_for_any_batch(bank: FilterBank) -> None:
    traced = torch.jit.trace(bank, (_noise(1, 3, 64, 64),), strict=False)
    for batch in (1, 3):
        x = _noise(batch, 3, 64, 64)
        for a, b in zip(traced(x), bank(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("turn", range(ORIENTATIONS))
@pytest.mark.parametrize(("level", "wavelength"), [(0, 4.0), (1, 8.0), (2, 16.0)])
def test_a_turned_grating_moves_to_its_channel(
    bank: FilterBank, turn: int, level: int, wavelength: float
) -> None:
    angle = math.pi * turn / ORIENTATIONS
    line = torch.arange(128, dtype=torch.float32)
    wave = torch.cos(
        2 * math.pi / wavelength * (line[None] * math.cos(angle) + line[:, None] * math.sin(angle))
    )
    image = (0.5 + 0.1 * wave).expand(1, 3, 128, 128)
    inner = bank(image)[level][0, : 2 * ORIENTATIONS, 2:-2, 2:-2].mean((1, 2))
    assert int(inner.view(2, ORIENTATIONS).mean(0).argmax()) == turn


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_image_has_no_band_pass_energy(bank: FilterBank, value: float) -> None:
    for m in bank(torch.full((1, 3, 64, 64), value)):
        assert m[:, :18].abs().max() < 1e-2
        assert m[:, 21:].abs().max() < 1e-4


def test_light_strength_matters_little(bank: FilterBank) -> None:
    x = 0.2 + 0.6 * _noise(1, 3, 64, 64)
    for full, half in zip(bank(x), bank(0.7 * x), strict=True):
        change = (full - half)[:, :18].abs().mean()
        assert change < 0.1 * full[:, :18].mean()


def test_extreme_images_stay_finite(bank: FilterBank) -> None:
    extremes = [torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), _noise(1, 3, 64, 64)]
    extremes.append((_noise(1, 3, 64, 64) > 0.5).float())
    for image in extremes:
        assert all(bool(torch.isfinite(m).all()) for m in bank(image))
