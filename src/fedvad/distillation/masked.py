"""Masked distillation between unlike networks: aligners, generators, and the loss of a level.

Source: DFMSD (Zhang et al., arXiv 2407.13147), whose body and code were not available, by the
specification that was put together from its abstract and its lineage (MGD, AMD, PKD).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedvad.detectors.student.loss import level_maps
from fedvad.distillation.masks import channel_attention, enhanced, mask, spatial_attention
from fedvad.distillation.options import Distance, Grid, MaskedConfig, SemStats
from fedvad.errors import ConfigError, DataError

_EPS = 1e-6
_RIDGE = 1e-4
Shape = tuple[int, int, int]


def pair_levels(teacher: Sequence[Shape], student: Sequence[Shape]) -> list[int]:
    """For each teacher tap the index of the student tap of equal or nearest stride.

    teacher, student: (c, h, w) of maps of the same image, so that a grid stands for a stride. Of
    two student taps equally near (in octaves) the finer is taken.
    """

    def octaves(a: Shape, b: Shape) -> float:
        return round(abs(math.log2(a[1] * a[2]) - math.log2(b[1] * b[2])), 6)

    finest_first = sorted(range(len(student)), key=lambda i: -student[i][1] * student[i][2])
    return [min(finest_first, key=lambda i: octaves(t, student[i])) for t in teacher]


def semantic_loss(found: Tensor, wanted: Tensor, stats: SemStats = "batch") -> Tensor:
    """Mean || n(R) - n(T) ||^2 of maps (b, c, h, w), a scalar: 2 (1 - correlation) per channel.

    n(F) = (F - mean) / (std + 1e-6) per channel, over batch and positions, or over the positions
    of each `sample`. It does not change when a channel of either is scaled by a positive factor or
    shifted. A channel that is constant counts as zero. Source: PKD (arXiv 2207.02039), eq. 4.
    """
    over = (0, 2, 3) if stats == "batch" else (2, 3)

    def standard(x: Tensor) -> Tensor:
        centred = x - x.mean(over, keepdim=True)
        # not torch.std: its gradient is not finite where a channel is constant
        variance = centred.square().mean(over, keepdim=True)
        return centred / ((variance + _EPS**2).sqrt() + _EPS)

    return functional.mse_loss(standard(found), standard(wanted))


def distance(found: Tensor, wanted: Tensor, kind: Distance) -> Tensor:
    """Mean over positions and images of 1 - cosine, or the mean squared difference; a scalar."""
    if kind == "cosine":
        return level_maps([wanted], [found])[0].mean()
    return functional.mse_loss(found, wanted)


class Level(nn.Module):
    """One pair of taps: the aligner, which is kept, and the generators, which only train.

    mean: (1, c, 1, 1) of the teacher's channels; spread: one number for all of them. For `mse`
    maps are compared in these units.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, teacher: Shape, student: Shape, config: MaskedConfig) -> None:
        super().__init__()
        channels = teacher[0]
        self.grid = _grid(teacher, student, config.grid)
        self.aligner = nn.Conv2d(student[0], channels, 1)
        self.generators = nn.ModuleList()
        if config.generator:
            self.generators.extend(_generator(channels, config.hidden or channels) for _ in "sc")
        self.balance = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("spread", torch.ones(()))

    def aligned(self, student: Tensor) -> Tensor:
        """A(S): the student's map (b, c_s, h, w) in the teacher's channels and on the grid."""
        return _resize(self.aligner(student), self.grid)

    def target(self, teacher: Tensor) -> Tensor:
        """The teacher's map on the grid, in the units that A(S) is compared in."""
        return (_resize(teacher, self.grid) - self.mean) / self.spread

    def rebuilt(self, aligned: Tensor, spatial: Tensor, channel: Tensor) -> Tensor:
        """R: what the generators make of A(S) with positions and with channels hidden, mixed by a
        learned share; without generators the hidden maps themselves, mixed alike.
        """
        parts = [aligned * spatial, aligned * channel]
        if len(self.generators):
            parts = [make(part) for make, part in zip(self.generators, parts, strict=True)]
        share = torch.sigmoid(self.balance)
        return share * parts[0] + (1 - share) * parts[1]


class MaskedHeads(nn.Module):
    """Aligners and generators of all levels of one teacher, and the loss through them.

    teacher, student: (c, h, w) of every tap, for the image size that is trained with. Raises
    `ConfigError` when a tap of the student is nobody's pair, because it would stay untrained.
    """

    def __init__(
        self, teacher: Sequence[Shape], student: Sequence[Shape], config: MaskedConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.pairs = pair_levels(teacher, student)
        idle = sorted(set(range(len(student))) - set(self.pairs))
        if idle:
            raise ConfigError(
                f"taps {idle} of the student (maps {[student[i] for i in idle]}) are nearest to no "
                f"tap of the teacher (maps {list(teacher)}): give the teacher's layers or the "
                "student's so that each has its pair"
            )
        self.levels = nn.ModuleList(
            Level(t, student[i], config) for t, i in zip(teacher, self.pairs, strict=True)
        )

    def aligned(self, student: Sequence[Tensor]) -> list[Tensor]:
        """A(S) per level, as they are used after training, in the teacher's own units."""
        return [
            level.aligned(student[i]) * level.spread + level.mean
            for level, i in self.paired()
        ]  # fmt: skip

    @torch.no_grad()
    def calibrate(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> None:
        """Take mean and spread of the teacher's channels from maps (n, c, h, w) of some images,
        and let the aligners begin where they fit the student's maps of these images best.

        The spread is the root of the channels' mean variance. One for all, because distances are
        what is imitated later, and to them channels that hardly vary hardly matter. Does nothing
        for `cosine`. Raises `DataError` for maps that are not finite.
        """
        if self.config.distance == "cosine":
            return
        for (level, i), maps in zip(self.paired(), teacher, strict=True):
            if not bool(maps.isfinite().all()):
                raise DataError("the teacher gives maps that are not finite: fix its weights")
            level.mean.copy_(maps.mean((0, 2, 3), keepdim=True))
            level.spread.copy_((maps - level.mean).square().mean().sqrt().clamp_min(_EPS))
            # resizing and pooling go before a 1 x 1 convolution as well as behind it
            inputs = _pool(_resize(student[i], level.grid), self.config.pool)
            _solve(level.aligner, inputs, _pool(level.target(maps), self.config.pool))

    def losses(
        self,
        teacher: Sequence[Tensor],
        student: Sequence[Tensor],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The terms `masked`, `plain` and `semantic`, each the mean over the levels; scalars.

        teacher, student: maps (b, c, h, w) of every tap. generator: of the masks that are drawn.
        """
        terms: dict[str, list[Tensor]] = {"masked": [], "plain": [], "semantic": []}
        for (level, i), wanted in zip(self.paired(), teacher, strict=True):
            found = self._level_losses(level, wanted, student[i], generator)
            for name, value in found.items():
                terms[name].append(value)
        return {name: torch.stack(values).mean() for name, values in terms.items()}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """w_m masked + w_a plain + w_sem semantic."""
        config = self.config
        return (
            config.w_m * terms["masked"]
            + config.w_a * terms["plain"]
            + config.w_sem * terms["semantic"]
        )

    def paired(self) -> list[tuple[Level, int]]:
        """Each level, in the teacher's order, with the index of its tap of the student."""
        levels = [level for level in self.levels if isinstance(level, Level)]
        return list(zip(levels, self.pairs, strict=True))

    def _level_losses(
        self, level: Level, teacher: Tensor, student: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        config = self.config
        target, aligned = level.target(teacher), level.aligned(student)
        pooled = _pool(target, config.pool)
        plain = distance(_pool(aligned, config.pool), pooled, config.distance)
        if config.w_m == 0 and config.w_sem == 0:  # nobody asks what generators would cost
            nothing = torch.zeros_like(plain)
            return {"masked": nothing, "plain": plain, "semantic": nothing}
        # attention is on the teacher's own values: in other units every channel would be alike
        seen = _resize(teacher, level.grid)
        spatial = spatial_attention(seen, config.temperature)
        channel = channel_attention(seen, config.temperature)
        if config.enhance:
            wrong = (aligned.detach() - target).square()
            spatial = enhanced(spatial, wrong.mean(1, keepdim=True), config.enhance)
            channel = enhanced(channel, wrong.mean((2, 3), keepdim=True), config.enhance)
        rebuilt = level.rebuilt(
            aligned,
            mask(spatial, config.rho_s, config.mode, generator),
            mask(channel, config.rho_c, config.mode, generator),
        )
        return {
            "masked": distance(_pool(rebuilt, config.pool), pooled, config.distance),
            "plain": plain,
            "semantic": semantic_loss(rebuilt, target, config.sem_stats),
        }


def _solve(aligner: nn.Conv2d, inputs: Tensor, wanted: Tensor) -> None:
    """Weights of a 1 x 1 convolution by ridge regression of maps (n, c, h, w) on others."""
    x, y = (m.permute(0, 2, 3, 1).flatten(0, 2).double() for m in (inputs, wanted))
    mean_x, mean_y = x.mean(0), y.mean(0)
    squares = (x - mean_x).T @ (x - mean_x)
    ridge = (_RIDGE * squares.diagonal().mean()).clamp_min(_EPS)
    weight = torch.linalg.solve(
        squares + ridge * torch.eye(len(squares), dtype=x.dtype, device=x.device),
        (x - mean_x).T @ (y - mean_y),
    )
    aligner.weight.copy_(weight.T[:, :, None, None])
    assert aligner.bias is not None  # as `Level` makes it
    aligner.bias.copy_(mean_y - mean_x @ weight)


def _generator(channels: int, hidden: int) -> nn.Sequential:
    """Shallow on purpose: a strong one would repair anything, and not converge on small maps."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 3, padding=1),
    )


def _grid(teacher: Shape, student: Shape, grid: Grid) -> tuple[int, int]:
    if grid == "min":
        return min(teacher[1], student[1]), min(teacher[2], student[2])
    return (teacher if grid == "teacher" else student)[1:]


def _pool(maps: Tensor, pool: int) -> Tensor:
    # zeros beyond the border count alike in both
    return maps if pool == 1 else functional.avg_pool2d(maps, pool, stride=1, padding=pool // 2)


def _resize(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[2:]) == grid:
        return maps
    return functional.interpolate(maps, grid, mode="bilinear", align_corners=False)
