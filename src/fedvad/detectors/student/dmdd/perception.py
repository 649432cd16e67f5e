"""The fusion head: distance maps of all levels and both branches to one map of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedvad.detectors.student.dmdd.options import HeadInput
from fedvad.detectors.student.loss import EPS, level_maps
from fedvad.detectors.student.rd.net import Shape, conv, resized

_DILATIONS = (1, 6, 12, 18)
_SQUEEZE = 8
_PRIOR = -2.0  # logit: about one cell in eight


class Perception(nn.Module):
    """Parallel dilated convolutions with attention to channels and places, and a sigmoid.

    shapes: (c, h, w) of the teacher's maps; the head works on the finest grid. given: see
    `DualConfig.head_input`. Source: the paper names a multi-perception network with several
    attentions; its layers are inferred (Chen et al. 2017, DeepLab, and Woo et al. 2018, CBAM).
    """

    def __init__(self, shapes: Sequence[Shape], given: HeadInput, channels: int) -> None:
        super().__init__()
        self.given, self.levels = given, len(shapes)
        self.grid = max(s[1] for s in shapes), max(s[2] for s in shapes)
        inputs = 2 * (len(shapes) if given == "map" else sum(s[0] for s in shapes))
        self.enter = conv(inputs, channels, kernel=1)
        self.views = nn.ModuleList(conv(channels, channels, dilation=d) for d in _DILATIONS)
        self.join = nn.Conv2d(channels * len(_DILATIONS), channels, 1, bias=False)
        self.joined = nn.BatchNorm2d(channels)
        self.channels = ChannelAttention(channels)
        self.places = PlaceAttention()
        self.short = nn.Conv2d(inputs, 1, 1, bias=False)
        self.look = conv(channels, channels)
        self.leave = nn.Conv2d(channels, 1, 1)

    def begin(self) -> None:
        """Set the weights to a logistic function of the sum of all distances, without wider views.

        Those come in as they prove of use. From random weights, a head that has had few steps sees
        defects where a dilated kernel has its corners. Ours.
        """
        nn.init.zeros_(self.joined.weight)
        nn.init.zeros_(self.leave.weight)
        nn.init.ones_(self.short.weight)
        # products of unit features add up to 1 - cos less 1, for each level and branch
        assert self.leave.bias is not None  # as it is made
        nn.init.constant_(self.leave.bias, _PRIOR + (0 if self.given == "map" else 2 * self.levels))

    def forward(
        self, teacher: Sequence[Tensor], normality: Sequence[Tensor], abnormality: Sequence[Tensor]
    ) -> Tensor:
        """(b, h, w) probabilities of maps (b, c, h', w'), one of each kind per level."""
        given = torch.cat([*self._given(teacher, normality), *self._given(teacher, abnormality)], 1)
        x = self.enter(given)
        joined = self.joined(self.join(torch.cat([view(x) for view in self.views], 1)))
        seen = self.look(x + self.places(self.channels(joined)))
        logits = self.leave(seen).float() + self.short(given).float()
        return torch.sigmoid(logits)[:, 0]

    def _given(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
        if self.given == "map":
            found = [m[:, None] for m in level_maps(teacher, student)]
        else:
            found = [
                -functional.normalize(t, dim=1, eps=EPS) * functional.normalize(s, dim=1, eps=EPS)
                for t, s in zip(teacher, student, strict=True)
            ]
        return [resized(m, self.grid) for m in found]


class ChannelAttention(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): each channel times a factor in (0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // _SQUEEZE)
        self.down, self.up = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) of the same shape."""
        squeezed = torch.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.up(squeezed))


class PlaceAttention(nn.Module):
    """Each position times a factor in (0, 1), of the mean and maximum over channels (CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) of the same shape."""
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.look(seen))
