"""Auto-AD: a network draws the scene out of noise, and fails at what is odd."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedvad.data.cubes.scene import Cube, Norm, normalised
from fedvad.errors import ConfigError, DataError

__all__ = ["SkipNet", "auto_ad"]

_WEIGH_EVERY, _WINDOW, _STILL = 100, 50, 1.5e-5
_RATE, _NOISE = 0.01, 0.1


def auto_ad(
    cube: Cube,
    *,
    channels: int = 128,
    steps: int = 1001,
    seed: int = 0,
    norm: Norm = "global_minmax",
) -> NDArray[np.float64]:
    """Map of what a network trained on this scene alone cannot draw.

    Every 100 steps the pixels that it draws worst get less weight, so that it learns the
    background; it stops when the loss stands still, before it draws the anomalies too.

    Parameters
    ----------
    cube : (h, w, b) float array
        At least 16 x 16 pixels.
    channels : int, default=128
        Of every layer. Time grows with its square.
    steps : int, default=1001
        At most.
    seed : int, default=0
        Of the weights and the noise.
    norm : default="global_minmax"
        See `normalised`; the network draws values from 0 to 1.

    Returns
    -------
    (h, w) float64 array
        Squared errors, of the last time that the pixels were weighed, or of the last step.

    Raises
    ------
    ConfigError, DataError
        For options out of range; for a scene that is too small.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.auto_ad import auto_ad
    >>> auto_ad(np.random.default_rng(0).random((16, 18, 5)), channels=4, steps=2).shape
    (16, 18)

    Source: Wang et al. 2021.
    """
    if channels < 1 or steps < 1:
        raise ConfigError(f"channels {channels} and steps {steps} must be at least 1")
    if norm not in ("global_minmax", "band_minmax"):
        raise ConfigError(f"norm is {norm!r}; Auto-AD takes global_minmax or band_minmax")
    values = normalised(cube, norm)
    if min(values.shape[:2]) < 16:
        raise DataError(f"{values.shape[:2]} are too few pixels for Auto-AD: it takes 16 x 16")
    target = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _drawn(target, channels, steps)


def _drawn(target: Tensor, channels: int, steps: int) -> NDArray[np.float64]:
    # at least two pixels at the deepest level, which mirrors its border
    levels = min(5, int(np.log2(min(target.shape[2:]))) - 1)
    network = SkipNet(target.shape[1], channels, levels)
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
    noise = 0.1 * torch.rand_like(target)
    weights = torch.ones_like(target[:, :1])
    losses: list[float] = []
    for step in range(steps):
        optimiser.zero_grad()
        drawn = network(noise + _NOISE * torch.randn_like(noise))
        weigh = step > 0 and step % _WEIGH_EVERY == 0  # never by a network that has learned nothing
        if weigh or step < _WEIGH_EVERY:  # a shorter training has the errors of its last step
            errors = (drawn.detach() - target).square().sum(1)[0]
        if weigh:
            weights = errors.max() - errors
            weights = (weights / weights.max().clamp_min(1e-12))[None, None]
        loss = F.mse_loss(weights * drawn, weights * target)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
        still = step > 0 and step % _WINDOW == 0
        if still and np.abs(np.diff(losses[-_WINDOW - 1 :])).mean() < _STILL:
            break
    found: NDArray[np.float64] = errors.double().numpy()
    return found


class SkipNet(nn.Module):
    """Halvings of a map (n, b, h, w) and as many doublings, with a way across at each.

    Parameters
    ----------
    bands, channels : int
    levels : int, default=5
        Number of halvings; each side is at least 2 ** (levels + 1).

    Examples
    --------
    >>> SkipNet(7, 4, 3)(torch.zeros(1, 7, 20, 18)).shape
    torch.Size([1, 7, 20, 18])

    Source: Ulyanov, Vedaldi and Lempitsky 2018, with Auto-AD's sizes.
    """

    def __init__(self, bands: int, channels: int, levels: int = 5) -> None:
        super().__init__()
        before = [bands] + [channels] * (levels - 1)
        self.across = nn.ModuleList(_convolved(n, channels, 1) for n in before)
        self.down = nn.ModuleList(
            nn.Sequential(_convolved(n, channels, 3, stride=2), _convolved(channels, channels, 3))
            for n in before
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(2 * channels),
                _convolved(2 * channels, channels, 3),
                _convolved(channels, channels, 1),
            )
            for _ in before
        )
        self.last = nn.Conv2d(channels, bands, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(n, b, h, w) in 0..1 from any map of that shape."""
        kept, deep = [], image
        for across, down in zip(self.across, self.down, strict=True):
            kept.append(across(deep))
            deep = down(deep)
        for up, beside in zip(reversed(self.up), reversed(kept), strict=True):
            deep = F.interpolate(deep, beside.shape[2:], mode="nearest")
            deep = up(torch.cat([beside, deep], 1))
        drawn: Tensor = torch.sigmoid(self.last(deep))
        return drawn


def _convolved(before: int, after: int, size: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, size // 2, padding_mode="reflect"),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(0.2),
    )
