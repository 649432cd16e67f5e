"""A backbone without weights: oriented band-pass energies of brightness and colour."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvad.errors import ConfigError
from fedvad.features.backbones import Backbone
from fedvad.features.modules import Taps
from fedvad.features.taps import check_taps

_RADIUS = 5
_ORIENTATIONS = 6
# Half an octave apart; the levels are one octave apart, so six wavelengths tile 3.4 to 19 pixels.
_WAVELENGTHS = (3.4, 4.8)
# Responses are in units of local contrast (see `_unit`). Well above the floor the lighting's gain
# cancels; patches below it count as nearly flat, so that noise on them is not blown up.
_FLOOR = 0.05
# Share of the local contrast at which the logarithm turns linear: keeps noise in nearly empty
# bands from dominating the distance.
_SOFT = 0.3
# Brightness in logarithmic units: dark yarns and bright ones get the same contrast.
_DARK = 0.1
# Colour differences vary by about 0.05 to 0.1 in these units and are raised to the spread of the
# log-shares, about 0.5. Brightness (0.2) stays below it on purpose: it is what lighting changes.
_LEVEL_GAIN = 1.0
_TINT_GAIN = 6.0


def _unit(kernel: Tensor) -> Tensor:
    """Scale (k, k) to root-mean-square response 1 on a 1/f texture of unit contrast.

    Natural textures have about this spectrum, so filters of any wavelength become comparable
    without looking at data.
    """
    n = 64
    f = torch.fft.fftfreq(n, dtype=torch.float64)
    power = (f[:, None] ** 2 + f[None, :] ** 2).clamp_min(1e-12).reciprocal()
    power[0, 0] = 0.0
    gain = torch.fft.fft2(kernel, s=(n, n)).abs().square()
    return kernel / torch.sqrt((gain * power).sum() / power.sum())


def _lattice() -> tuple[Tensor, Tensor]:
    line = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _gabor(wavelength: float, angle: float) -> tuple[Tensor, Tensor]:
    """Even and odd kernel, each (k, k), for waves that travel along `angle` (radians from x)."""
    y, x = _lattice()
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    # A width that grows with the wavelength gives every filter the same bandwidth in octaves.
    envelope = torch.exp(-(u**2 + (0.7 * v) ** 2) / (2 * (0.5 * wavelength) ** 2))
    even = envelope * torch.cos(2 * math.pi * u / wavelength)
    odd = envelope * torch.sin(2 * math.pi * u / wavelength)
    share = envelope / envelope.sum()
    # Without their mean the filters ignore brightness itself.
    return _unit(even - even.sum() * share), _unit(odd - odd.sum() * share)


def _spot() -> Tensor:
    """Difference of Gaussians (k, k): bright spots positive, dark spots negative."""
    y, x = _lattice()
    square = x**2 + y**2
    centre, surround = (torch.exp(-square / (2 * s**2)) for s in (1.0, 2.2))
    return _unit(centre / centre.sum() - surround / surround.sum())


class FilterBank(nn.Module):
    """RGB (b, 3, S, S) in 0..1 to three maps (b, c, S/stride, S/stride), strides 4, 8 and 16.

    Channels of each map: 12 energies (2 wavelengths x 6 orientations, wavelength first), bright
    and dark spots, spots of two opponent colours in both signs, brightness, two opponent colours
    and their difference from the surround. Spots and energies are logarithms of their share of
    the local contrast, zero on a flat patch. S must be a multiple of 16 and at least 32.
    Nothing is learned or loaded; the same input gives the same output. Source: ours, after
    Gabor energies (Bovik et al. 1990) and divisive normalisation (Heeger 1992).
    """

    # All that the maps depend on, in place of weights. Count the number up whenever they change,
    # else caches and detectors of older versions pass for this one's.
    recipe = (
        f"filterbank 1 {_RADIUS} {_ORIENTATIONS} {_WAVELENGTHS} {_FLOOR} {_SOFT} {_DARK} "
        f"{_LEVEL_GAIN} {_TINT_GAIN}"
    )
    pair: Tensor
    spot: Tensor
    soft: Tensor

    def __init__(self) -> None:
        super().__init__()
        pairs = [
            _gabor(wavelength, math.pi * k / _ORIENTATIONS)
            for wavelength in _WAVELENGTHS
            for k in range(_ORIENTATIONS)
        ]
        binomial = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=torch.float64) / 16
        soft = (binomial[:, None] * binomial[None, :]).expand(3, 1, 5, 5)
        kernels = {
            "pair": torch.stack([e for e, _ in pairs] + [o for _, o in pairs])[:, None],
            "spot": _spot().expand(3, 1, -1, -1),
            "soft": soft,
        }
        for name, kernel in kernels.items():
            # Not persistent: there are no weights to store, the code is the source.
            self.register_buffer(name, kernel.to(torch.float32).contiguous(), persistent=False)
        self.strides: list[int] = [4, 8, 16]
        self.channels: list[int] = [len(pairs) + 12] * len(self.strides)

    def _level(self, planes: Tensor) -> Tensor:
        """One octave: brightness and two opponent colours (b, 3, s, s) to (b, c, s/4, s/4)."""
        r = _RADIUS
        wide = F.pad(planes, (r, r, r, r), mode="reflect")
        bright = wide[:, :1]
        even, odd = F.conv2d(bright, self.pair).chunk(2, 1)
        energy = torch.sqrt(even.square() + odd.square())
        energy = F.avg_pool2d(energy, 4)
        spots = F.conv2d(wide, self.spot, groups=3)
        spots = F.avg_pool2d(torch.cat([F.relu(spots), F.relu(-spots)], 1), 4)
        contrast = energy.mean(1, keepdim=True) + _FLOOR
        shares = torch.log1p(torch.cat([energy, spots], 1) / (_SOFT * contrast))
        level = F.avg_pool2d(planes, 4)
        level = torch.cat([_LEVEL_GAIN * level[:, :1], _TINT_GAIN * level[:, 1:]], 1)
        around = F.avg_pool2d(level, 9, 1, 4, count_include_pad=False)
        return torch.cat([shares, level, level - around], 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of (b, 3, S, S) at strides 4, 8, 16."""
        # Differences of logarithms do not change with the light's strength.
        logs = torch.log1p(images / _DARK) / math.log1p(1 / _DARK)
        red, green, blue = logs[:, 0:1], logs[:, 1:2], logs[:, 2:3]
        yellow = (red + green) / 2
        planes = torch.cat([(red + green + blue) / 3, red - green, yellow - blue], 1)
        maps = [self._level(planes)]
        for _ in self.strides[1:]:
            wide = F.pad(planes, (2, 2, 2, 2), mode="reflect")
            planes = F.conv2d(wide, self.soft, stride=2, groups=3)
            maps.append(self._level(planes))
        return maps


def build(
    name: str,
    weights: Path | None,
    layers: Sequence[int] | None,
    sides: tuple[int, int] | None,
) -> Backbone:
    """See `families.Builder.build`."""
    if weights is not None:
        raise ConfigError("the filter bank is analytic: --weights does not go with it")
    bank = FilterBank()
    chosen = check_taps(name, layers or (0, 1, 2), range(len(bank.channels)))
    # Not a hash of the kernels: their last bits differ between processors, and sites must agree.
    identity = hashlib.sha256(FilterBank.recipe.encode()).hexdigest()
    return Backbone(Taps(bank, chosen).eval(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), chosen, identity)


def trainable(
    name: str, layers: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Callable[[], nn.Module]]:
    """See `families.Builder.trainable`: nothing is."""
    raise ConfigError("the filter bank has nothing to train: choose another student")
