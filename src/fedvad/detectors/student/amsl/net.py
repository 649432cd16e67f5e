"""Encoder, memories, fusion and decoders for views, of maps of a backbone or of signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedvad.detectors.student.amsl.options import MemoriesConfig
from fedvad.detectors.student.amsl.views import Views
from fedvad.detectors.student.branches import reinitialise
from fedvad.detectors.student.daad.blocks import address, entropy
from fedvad.detectors.student.loss import EPS
from fedvad.detectors.student.rd.net import ReverseNet, Shape, resized

_HALVED = 4  # by which the encoder divides both sides
_HIDDEN = 128


@dataclass(frozen=True, eq=False)
class Answer:
    """Of each view: what was put in and what was rebuilt, (b, c, h, w), with every position in its
    place; logits (b, V) of which view it is; weights (b, q, n) of the items of both memories.
    """

    views: list[Tensor]
    rebuilt: list[Tensor]
    logits: list[Tensor]
    weights: list[Tensor]

    def regulariser(self, config: MemoriesConfig) -> Tensor:
        """What is added to the error of what is rebuilt; a scalar."""
        count = len(self.logits[0])
        total = torch.zeros((), device=self.logits[0].device)
        for kind, logits in enumerate(self.logits):
            truth = torch.full((count,), kind, device=logits.device)
            total = total + config.classify * functional.cross_entropy(logits, truth)
        for weights in self.weights:
            total = total + config.entropy * entropy(weights)
        return total


class AdaptiveMemories(nn.Module):
    """One memory that all views share, one of each view, and what they recall, mixed.

    shape: (c, h, w) of the input. Encoder, classifier and common memory serve all views; each has
    a memory, two gates and a decoder of its own. Equal seeds, equal weights.
    Source: Zhang et al. 2022, public code; without its dropout, and without a sigmoid at the end,
    as features and standardised signals are not bounded.
    """

    def __init__(self, shape: Shape, config: MemoriesConfig, *, seed: int) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        count, (first, last) = len(config.views), config.channels
        self.sides = -(-shape[1] // _HALVED), -(-shape[2] // _HALVED)
        self.views = Views(config.views, shape, seed=seed)
        with torch.random.fork_rng(devices=[]):  # layers draw weights of their own when made
            self.encoder = nn.Sequential(*_halving(shape[0], first), *_halving(first, last))
            self.classifier = nn.Sequential(
                nn.Conv2d(last, 1, 1),
                nn.Sigmoid(),
                nn.Flatten(),
                nn.Linear(self.sides[0] * self.sides[1], _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, count),
            )
            self.common = nn.Parameter(torch.zeros(config.items, last))
            self.own = nn.ParameterList(
                nn.Parameter(torch.zeros(config.items, last)) for _ in range(count)
            )
            if config.fusion == "learned":
                self.gates = nn.Parameter(torch.zeros(2 * count))
            given = (3 if config.fusion == "concat" else 2) * last
            self.decoders = nn.ModuleList(_decoder(given, first, shape[0]) for _ in range(count))
        reinitialise(self, seed)

    def answer(self, x: Tensor) -> Answer:
        """All that happens to inputs (b, c, h, w)."""
        views = self.views(x)
        rebuilt, logits, weights = [], [], []
        for i, view in enumerate(views):
            z = self.encoder(self._filled(view))
            logits.append(self.classifier(z))
            common, mine = (recalled(z, items, self.config) for items in (self.common, self.own[i]))
            whole = self.decoders[i](torch.cat([z, *self._fused(i, common[0], mine[0])], 1))
            rebuilt.append(whole[:, :, : self.shape[1], : self.shape[2]])
            weights += [common[1], mine[1]]
        back = self.views.in_place
        return Answer(back(views), back(rebuilt), logits, weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """What is rebuilt of each view."""
        return self.answer(x).rebuilt

    def _fused(self, i: int, common: Tensor, mine: Tensor) -> list[Tensor]:
        """What the decoder of view i gets of both memories' answers."""
        if self.config.fusion == "concat":
            return [common, mine]
        if self.config.fusion == "mean":
            return [(common + mine) / 2]
        shares = torch.sigmoid(self.gates[2 * i : 2 * i + 2])
        return [shares[0] * common + shares[1] * mine]

    def _filled(self, view: Tensor) -> Tensor:
        tall, wide = (side * _HALVED for side in self.sides)
        return functional.pad(view, (0, wide - self.shape[2], 0, tall - self.shape[1]))


def recalled(z: Tensor, items: Tensor, config: MemoriesConfig) -> tuple[Tensor, Tensor]:
    """What items (n, c) answer to (b, c, h, w), and their weights (b, h * w, n).

    By default a softmax of plain dot products, as in the public code.
    """
    weights = address(
        z.flatten(2).transpose(1, 2),
        items,
        temperature=config.temperature,
        shrink=config.shrink / len(items),
        cosine=config.read == "cosine",
    )
    answer = (weights @ items).transpose(1, 2)
    return answer.reshape(-1, int(z.shape[1]), int(z.shape[2]), int(z.shape[3])), weights


class MapMemories(AdaptiveMemories):
    """Adaptive memories of a teacher's maps: unit vectors of all taps, on the coarsest grid."""

    def __init__(self, shapes: Sequence[Shape], config: MemoriesConfig, *, seed: int) -> None:
        super().__init__(joined_shape(shapes), config, seed=seed)

    def joined(self, maps: Sequence[Tensor]) -> Tensor:
        """One (b, c, h, w) of the maps of all taps."""
        size = self.shape[1], self.shape[2]
        units = [functional.normalize(m, dim=1, eps=EPS) for m in maps]
        return torch.cat([resized(m, size) for m in units], 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:  # type: ignore[override]
        """What is rebuilt of each view of the teacher's maps."""
        return self.answer(self.joined(maps)).rebuilt


class ViewNet(ReverseNet):
    """Teacher and memories; each view is compared as a level of its own."""

    student: MapMemories

    def compared(
        self, teacher: list[Tensor], z: Tensor | list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `PaSTeNet.compared`."""
        answer = self.student.answer(self.student.joined(teacher))
        return answer.views, answer.rebuilt


def joined_shape(shapes: Sequence[Shape]) -> Shape:
    """Channels of all maps together, on the smallest grid."""
    channels = sum(shape[0] for shape in shapes)
    return channels, min(shape[1] for shape in shapes), min(shape[2] for shape in shapes)


def _halving(before: int, after: int) -> list[nn.Module]:
    return [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(before, after, 4), nn.ReLU(), nn.MaxPool2d(2)]


def _decoder(channels: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels // 2, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, out, 3, 1, 1),
    )
