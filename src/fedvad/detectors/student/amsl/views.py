"""Views of maps or signals, by one transformation each, that can be laid back in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import savgol_coeffs
from torch import Tensor, nn
from torch.nn import functional

_SNR = 5.0
_SEGMENTS = 5
_FACTORS = (0.5, 0.8, 1.5, 2.0)
_WINDOW, _ORDER = 11, 3


class Views(nn.Module):
    """Views of (b, c, h, w); signals have their time along h.

    `noise` adds a pattern whose power is a fifth of the input's; `negated` is -x; `reversed` is
    x backwards in h; `permuted` has five segments of h in another order; `scaled` is x times 0.5,
    0.8, 1.5 or 2; `smoothed` is x after Savitzky and Golay over 11 steps of h. Pattern, order
    and factor are drawn once, by the seed: equal seeds give equal views at every site, in training
    and in scoring.

    Source: Zhang et al. 2022, public code, which draws them once for each data set, too. The order
    of the polynomial (3) is ours.
    """

    def __init__(self, kinds: Sequence[str], shape: tuple[int, int, int], *, seed: int) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        rng = np.random.default_rng(seed)
        pattern = rng.standard_normal(shape).astype(np.float32)
        segments = np.array_split(np.arange(shape[1]), min(_SEGMENTS, shape[1]))
        drawn = rng.permutation(len(segments))
        if (drawn == np.arange(len(drawn))).all():  # the same as before is no other view
            drawn = np.roll(drawn, 1)
        order = np.concatenate([segments[i] for i in drawn])
        self.factor = float(rng.choice(_FACTORS))
        window = min(_WINDOW, shape[1] - 1 + shape[1] % 2)
        kernel = savgol_coeffs(window, min(_ORDER, window - 1)).astype(np.float32)
        for name, array in (
            ("pattern", pattern),
            ("order", order),
            ("place", np.argsort(order)),
            ("kernel", kernel),
        ):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One (b, c, h, w) for each kind."""
        return [self._view(kind, x) for kind in self.kinds]

    def in_place(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Views, or what was rebuilt of them, with every position where it was in x."""
        moved = {"reversed": lambda v: v.flip(2), "permuted": self._back}
        pairs = zip(self.kinds, views, strict=True)
        return [moved[kind](view) if kind in moved else view for kind, view in pairs]

    def _back(self, view: Tensor) -> Tensor:
        return view.index_select(2, self.get_buffer("place"))

    def _view(self, kind: str, x: Tensor) -> Tensor:
        if kind == "noise":
            power = x.square().mean((1, 2, 3), keepdim=True)
            return x + (power / _SNR).sqrt() * self.get_buffer("pattern")
        if kind == "negated":
            return -x
        if kind == "reversed":
            return x.flip(2)
        if kind == "permuted":
            return x.index_select(2, self.get_buffer("order"))
        if kind == "scaled":
            return x * self.factor
        return self._smoothed(x) if kind == "smoothed" else x

    def _smoothed(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel")
        channels, height, width = (int(n) for n in x.shape[1:])
        lines = x.permute(0, 1, 3, 2).reshape(-1, 1, height)
        half = len(kernel) // 2
        padded = functional.pad(lines, (half, half), mode="replicate")
        smooth = functional.conv1d(padded, kernel[None, None])
        return smooth.reshape(-1, channels, width, height).permute(0, 1, 3, 2)
