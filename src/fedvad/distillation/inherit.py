"""A thin ResNet that takes over a wide one: channels that stand for all, weights by least squares.

Source: channel pruning layer by layer (He, Zhang & Sun, ICCV 2017, section 3), each layer fitted
to the teacher's response from what the student's earlier layers give; greedy column subset
selection in place of their LASSO. Ours: several blocks may become one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedvad.errors import ConfigError
from fedvad.features.compat import import_timm
from fedvad.features.tiny import Block, TinyNet, Unit

_POSITIONS = 40_000
_RIDGE = 1e-3
_CHUNK = 32


@torch.no_grad()
def inherit(student: TinyNet, teacher: nn.Module, images: Tensor, *, seed: int) -> list[float]:
    """Set all weights and statistics of `student`, in place, to what approximates `teacher`.

    teacher: a ResNet of basic blocks with at least the student's channels and blocks. images:
    (n, 3, S, S), normalised as both take them; the activations of all are in memory at once. Of
    a stage's blocks the last ones are taken over; the first of these stands for those before it.
    Returns for each block of the student the share of the variance that it explains of the
    teacher's channels it stands for. Raises `ConfigError` for a teacher that does not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    wide: Any = teacher
    stages = _stages(student, wide)
    student.eval()
    seen = _run(lambda x: functional.max_pool2d(wide.bn1(wide.conv1(x)).relu(), 3, 2, 1), images)
    streams = _streams(student, stages, seen, generator)
    first = streams[0]
    if len(first) != student.stem.conv.out_channels:
        first = representatives(_some(seen, generator), student.stem.conv.out_channels)
    weight, bias = _folded(wide.conv1, wide.bn1)
    _set(student.stem, weight[first], bias[first], images)
    found = _run(lambda x: student.pool(student.stem(x).relu()), images)
    explained = []
    for stream, blocks, own in zip(streams, stages, student.blocks(), strict=True):
        for number, block in enumerate(blocks):
            given = _respond(block, seen)
            seen = given.output.relu()
            place = number - (len(blocks) - len(own))
            if place < 0:
                continue
            wanted = given.output[:, stream]
            found = _take_over(own[place], given.inner, wanted, found, generator)
            explained.append(_explained(found, wanted.relu()))
    return explained


def representatives(values: Tensor, count: int) -> list[int]:
    """The `count` columns of `values` (n, c), ascending, that best rebuild all of them linearly.

    Greedy: each next column is the one that explains most of what the others left.
    """
    left = torch.cov(values.T.double())
    floor = 1e-9 * left.diagonal().mean().clamp_min(1e-30)
    chosen: list[int] = []
    for _ in range(count):
        own = left.diagonal().clone()
        gain = left.square().sum(0) / own.clamp_min(floor)
        gain[own <= floor] = 0  # constant, or a mixture of what is chosen
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        if own[best] > floor:
            left = left - torch.outer(left[:, best], left[best]) / own[best]
    return sorted(chosen)


@dataclass(frozen=True, eq=False)
class _Response:
    """What a teacher's block gives: its inner channels and its output, both before the ReLU."""

    inner: Tensor
    output: Tensor


def _stages(student: TinyNet, teacher: Any) -> list[list[Any]]:
    """The teacher's basic blocks of each of the student's stages, checked."""
    basic = import_timm().models.resnet.BasicBlock
    names = [f"layer{i + 1}" for i in range(len(student.stages))]
    if not all(hasattr(teacher, name) for name in ("conv1", "bn1", *names)):
        raise ConfigError(
            "a tiny student can begin with the weights of a ResNet of basic blocks (resnet18, "
            'resnet34) as its first teacher, and of no other; or set start = "random"'
        )
    stages = [list(getattr(teacher, name)) for name in names]
    if not all(isinstance(block, basic) for blocks in stages for block in blocks):
        raise ConfigError("the teacher's blocks are not basic ones: take resnet18 or resnet34")
    few = "a tiny student can take over at most the teacher's {}: make it smaller"
    if student.stem.conv.out_channels > teacher.conv1.out_channels:
        raise ConfigError(few.format(f"{teacher.conv1.out_channels} channels of the stem"))
    for name, blocks, own in zip(names, stages, student.blocks(), strict=True):
        if len(own) > len(blocks):
            raise ConfigError(few.format(f"{len(blocks)} blocks in {name}"))
        width, inner = blocks[-1].conv2.out_channels, blocks[-1].conv1.out_channels
        for part in own:
            if part.second.conv.out_channels > width or part.first.conv.out_channels > inner:
                raise ConfigError(few.format(f"{width} channels in {name}"))
    return stages


def _streams(
    student: TinyNet, stages: Sequence[Sequence[Any]], seen: Tensor, generator: torch.Generator
) -> list[list[int]]:
    """Channels that are kept between the blocks of each stage."""
    streams = []
    for number, (blocks, own) in enumerate(zip(stages, student.blocks(), strict=True)):
        width = own[0].second.conv.out_channels
        values = []
        if number == 0 and width == student.stem.conv.out_channels:
            values.append(_some(seen, generator))  # the stem's channels continue in this stage
        for place, block in enumerate(blocks, len(own) - len(blocks)):
            seen = _respond(block, seen).output.relu()
            if place >= 0:
                values.append(_some(seen, generator))
        streams.append(representatives(torch.cat(values), width))
    return streams


def _respond(block: Any, x: Tensor) -> _Response:
    inner = _run(lambda part: block.bn1(block.conv1(part)), x)
    shortcut = x if block.downsample is None else _run(block.downsample, x)
    return _Response(
        inner, _run(lambda part: block.bn2(block.conv2(part.relu())), inner) + shortcut
    )


def _take_over(
    own: Block, inner: Tensor, wanted: Tensor, found: Tensor, generator: torch.Generator
) -> Tensor:
    """Fit one block to the teacher's responses; returns what it gives for `found`."""
    chosen = representatives(_some(inner.relu(), generator), own.first.conv.out_channels)
    weight, bias = _fit([(own.first.conv, found)], inner[:, chosen], generator)
    _set(own.first, weight[0], bias, found)
    middle = _run(lambda x: own.first(x).relu(), found)
    if isinstance(own.shortcut, Unit):
        inputs = [(own.second.conv, middle), (own.shortcut.conv, found)]
        weight, bias = _fit(inputs, wanted, generator)
        _set(own.shortcut, weight[1], torch.zeros_like(bias), found)
    else:
        weight, bias = _fit([(own.second.conv, middle)], wanted - found, generator)
    _set(own.second, weight[0], bias, middle)
    return _run(own, found)


def _fit(
    inputs: Sequence[tuple[nn.Conv2d, Tensor]], wanted: Tensor, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Weights of convolutions whose sum gives `wanted` (n, o, h, w), and a bias: ridge regression
    at random positions.
    """
    count, outputs = wanted.shape[:2]
    share = max(1, _POSITIONS // count)
    squares: Any = 0.0
    products: Any = 0.0
    for i in range(count):
        at = torch.randperm(wanted[i, 0].numel(), generator=generator)[:share]
        columns = [
            functional.unfold(
                maps[i : i + 1],
                conv.kernel_size,
                padding=conv.kernel_size[0] // 2,
                stride=conv.stride,
            )[0][:, at]
            for conv, maps in inputs
        ]
        design = torch.cat([*columns, torch.ones(1, len(at))]).double()
        squares = squares + design @ design.T
        products = products + design @ wanted[i].reshape(outputs, -1)[:, at].double().T
    ridge = _RIDGE * squares.diagonal()[:-1].mean() * torch.ones(len(squares))
    ridge[-1] = 0
    solution = torch.linalg.solve(squares + ridge.double().diag(), products).float()
    sizes = [conv.weight[0].numel() for conv, _ in inputs]
    parts = solution[:-1].split(sizes)
    return (
        [p.T.reshape_as(conv.weight) for p, (conv, _) in zip(parts, inputs, strict=True)],
        solution[-1],
    )


def _set(unit: Unit, weight: Tensor, bias: Tensor, inputs: Tensor) -> None:
    """Weights such that the unit gives weight * x + bias, with the statistics of `inputs`."""
    unit.conv.weight.copy_(weight)
    maps = _run(unit.conv, inputs)
    variance, mean = torch.var_mean(maps, (0, 2, 3), unbiased=False)
    unit.norm.running_mean.copy_(mean)  # type: ignore[union-attr]
    unit.norm.running_var.copy_(variance)  # type: ignore[union-attr]
    unit.norm.weight.copy_((variance + unit.norm.eps).sqrt())
    unit.norm.bias.copy_(bias + mean)


def _folded(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its normalisation by running statistics."""
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return conv.weight * gain[:, None, None, None], norm.bias - norm.running_mean * gain


def _run(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([step(part) for part in torch.split(x, _CHUNK)])


def _some(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Values (m, c) at random positions of maps (n, c, h, w)."""
    values = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    return values[torch.randperm(len(values), generator=generator)[:_POSITIONS]]


def _explained(found: Tensor, wanted: Tensor) -> float:
    around = wanted - wanted.mean((0, 2, 3), keepdim=True)
    return 1 - float((found - wanted).square().mean() / around.square().mean().clamp_min(1e-30))
