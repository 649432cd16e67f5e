"""A student that rebuilds the teacher's maps from block-wise memories alone, and its critic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedvad.detectors.student.branches import reinitialise
from fedvad.detectors.student.daad.blocks import BlockMemory
from fedvad.detectors.student.daad.options import BlockConfig
from fedvad.detectors.student.rd.net import Bottleneck, Residual, ReverseNet, Shape, resized
from fedvad.errors import ConfigError

_NARROWEST = 8
_CELLS = 4  # sides of a block, where divisions are not given


class MemoryStudent(nn.Module):
    """Each level's map passes through its memory; a decoder joins what they recall, from the
    coarsest level to the finest, and rebuilds every level.

    shapes: (c, h, w) of the levels. width: hidden channels of a level in shares of its own.
    critic: None without an adversary. Equal seeds, equal weights. Raises `ConfigError` for options
    that do not fit the shapes.
    """

    def __init__(
        self, shapes: Sequence[Shape], config: BlockConfig, *, width: float, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        sizes = [(shape[1], shape[2]) for shape in shapes]
        self.sizes, self.order = sizes, sorted(range(len(sizes)), key=lambda i: sizes[i])
        widths = [max(_NARROWEST, round(width * shape[0])) for shape in shapes]
        divisions = _divisions(shapes, config)
        with torch.random.fork_rng(devices=[]):  # layers draw weights of their own when made
            self.memories = nn.ModuleList(
                BlockMemory(shape, n, config.depth, config.items)
                for shape, n in zip(shapes, divisions, strict=True)
            )
            before, joins, heads = 0, [], []
            for i in self.order:
                joins.append(Residual(before + shapes[i][0], widths[i]))
                heads.append(nn.Conv2d(widths[i], shapes[i][0], 1))
                before = widths[i]
            self.joins, self.heads = nn.ModuleList(joins), nn.ModuleList(heads)
            self.critic = Critic(shapes, widths) if config.adversary else None
        reinitialise(self, seed)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What is rebuilt of the teacher's maps, one (b, c, h, w) of the same shape each."""
        return self.rebuilt(self.weights(maps))

    def weights(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(b, q, n) of the items, by level, for the blocks of maps (b, c, h, w)."""
        options = {"temperature": self.config.temperature, "shrink": self.config.shrink}
        pairs = zip(self.memories, maps, strict=True)
        return [memory.weights(m, **options) for memory, m in pairs]  # type: ignore[operator]

    def rebuilt(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The maps from the items with such weights: nothing passes by the memories."""
        found: dict[int, Tensor] = {}
        joined: list[Tensor] = []
        for i, join, head in zip(self.order, self.joins, self.heads, strict=True):
            recalled = self.memories[i].recall(weights[i])  # type: ignore[operator]
            x = join(torch.cat([*(resized(j, self.sizes[i]) for j in joined), recalled], 1))
            found[i], joined = head(x), [x]
        return [found[i] for i in range(len(found))]


class Critic(nn.Module):
    """Tells the teacher's maps from rebuilt ones; its representation of either scores, too."""

    def __init__(self, shapes: Sequence[Shape], widths: Sequence[int]) -> None:
        super().__init__()
        channels = 2 * max(widths)
        self.body = Bottleneck(shapes, widths, channels)
        self.verdict = nn.Linear(channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Representations (b, c', h', w'), and (b,) logits of being the teacher's."""
        found: Tensor = self.body(maps)
        return found, self.verdict(found.mean((2, 3)))[:, 0]

    def frozen(self, maps: Sequence[Tensor]) -> Tensor:
        """Representations, of which only the maps have a gradient."""
        own = {name: p.detach() for name, p in self.named_parameters()}
        found: tuple[Tensor, Tensor] = functional_call(self, own, (maps,))
        return found[0]


class MemoryNet(ReverseNet):
    """Teacher and student; with a critic its representation is compared as one more level."""

    student: MemoryStudent

    def compared(
        self, teacher: list[Tensor], z: Tensor | list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `PaSTeNet.compared`."""
        rebuilt = self.student(teacher)
        critic = self.student.critic
        if critic is None:
            return teacher, rebuilt
        return [*teacher, critic(teacher)[0]], [*rebuilt, critic(rebuilt)[0]]


def _divisions(shapes: Sequence[Shape], config: BlockConfig) -> list[int]:
    bad = [shape[0] for shape in shapes if shape[0] % config.depth]
    if bad:
        raise ConfigError(f"depth {config.depth} does not divide {bad[0]} channels")
    given = config.divisions
    if not given:
        return [max(1, min(shape[1:]) // _CELLS) for shape in shapes]
    if len(given) not in (1, len(shapes)):
        raise ConfigError(f"divisions {given}: give one for all, or {len(shapes)}, one a level")
    return [*given] if len(given) == len(shapes) else [given[0]] * len(shapes)
