"""A teacher advanced by residuals that amplify anomalies: gate, residual, and the net with both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.rd.net import ReverseNet, Shape

_SLOWEST = 10_000.0


def position_code(channels: int, height: int, width: int) -> Tensor:
    """(channels, h, w) fixed code in [-1, 1]: sines and cosines of the row, then of the column.

    Channels that are no multiple of 4 get the first of the next multiple. Source: Vaswani et al.
    2017, section 3.5, along both axes.
    """
    quarter = -(-channels // 4)
    speeds = _SLOWEST ** (-torch.arange(quarter) / quarter)
    rows = (torch.arange(height)[None] * speeds[:, None])[:, :, None].expand(-1, -1, width)
    columns = (torch.arange(width)[None] * speeds[:, None])[:, None].expand(-1, height, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()])[:channels]


class Gate(nn.Module):
    """Where to amplify: how well a feature matches the anomalous half of a learned memory.

    memory: (2 * items, c), the normal half first. Source: arXiv 2405.02068, matching-guided
    residual gate.
    """

    position: Tensor  # not `code`, which is another thing in a traced module

    def __init__(self, shape: Shape, config: AmplifyConfig) -> None:
        super().__init__()
        channels = shape[0]
        self.tau = config.tau
        self.query = _perceptron(channels, config.width(channels))
        self.memory = nn.Parameter(torch.randn(2 * config.items, channels))
        self.register_buffer("position", position_code(*shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, h, w) in [0, 1] of (b, c, h, w)."""
        query = functional.normalize(self.query(x + self.position), dim=1)
        memory = functional.normalize(self.memory, dim=1)
        # one 1 x 1 convolution gives the cosines with all items
        matches = functional.conv2d(query, memory[:, :, None, None])
        shares = torch.softmax(matches.float() / self.tau, 1)
        return shares[:, len(memory) // 2 :].sum(1, keepdim=True)


class ResidualGenerator(nn.Module):
    """What to add: each value times a factor in (-1, 1), or any value (`additive`).

    Source: arXiv 2405.02068, attribute-scaling residual generator; `additive` is ours.
    """

    def __init__(self, channels: int, config: AmplifyConfig) -> None:
        super().__init__()
        self.scales = config.residual == "scale"
        self.factors = _perceptron(channels, config.width(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The residual (b, c, h, w) of (b, c, h, w); never larger than the value it scales."""
        factors: Tensor = self.factors(x)
        return torch.tanh(factors) * x if self.scales else factors


class AmplifyBlock(nn.Module):
    """Gate and residual of one level with maps of shape (c, h, w)."""

    def __init__(self, shape: Shape, config: AmplifyConfig) -> None:
        super().__init__()
        self.gate = Gate(shape, config)
        self.residual = ResidualGenerator(shape[0], config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Amplified maps (b, c, h, w), gate (b, 1, h, w) and residual (b, c, h, w) of maps x.

        mask: (b, 1, h, w), takes the gate's place in the sum (teacher forcing).
        """
        gate, residual = self.gate(x), self.residual(x)
        return x + (gate if mask is None else mask) * residual, gate, residual


def amplifier(shapes: Sequence[Shape], config: AmplifyConfig, *, seed: int) -> nn.ModuleList:
    """One block per level, untrained; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(AmplifyBlock(shape, config) for shape in shapes)


class AdvancedNet(ReverseNet):
    """A reverse student whose teacher's maps are amplified first.

    The blocks do not change the backbone: it propagates its own maps. Wherever maps of the teacher
    are handed over (`compared`, a training set after `change_teacher`), they are the amplified.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, blocks: nn.ModuleList) -> None:
        super().__init__(teacher, student)
        self.blocks = blocks

    def advanced(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Amplified maps of the teacher's own, by the predicted gate."""
        return [block(m)[0] for block, m in zip(self.blocks, maps, strict=True)]

    def gates(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(b, 1, h, w) per level of the teacher's own maps."""
        return [block.gate(m) for block, m in zip(self.blocks, maps, strict=True)]  # type: ignore[operator]

    def from_shared(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """See `PaSTeNet.from_shared`; the teacher's maps are the amplified."""
        return self.compared(self.advanced(self.teacher(z)), z)


def _perceptron(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 1),
    )
