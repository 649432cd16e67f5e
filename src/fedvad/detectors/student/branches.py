"""A backbone taken apart: shared trunk, frozen teacher, and a student that starts at random."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from fedvad.errors import ConfigError, join_names
from fedvad.features.compat import import_timm
from fedvad.features.modules import BlockTaps, Headed
from fedvad.features.tiny import TinyNet

_CHAINS = "fedvad-tiny, mcunet_in3, or a ResNet, MobileNet, EfficientNet or ConvNeXt of timm"


class Branch(nn.Module):
    """Steps in a row; the outputs after those at positions `taps` (from 0) are what it gives."""

    def __init__(self, steps: Iterable[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (b, c, h, w), one per tap, finest first."""
        outputs = []
        for i, step in enumerate(self.steps):
            x = step(x)
            if i in self.taps:
                outputs.append(x)
        return outputs


class PaSTeNet(nn.Module):
    """Teacher and student that share their first layers (partially shared teacher-student).

    trunk: layers 0..b of the backbone, run once. teacher: the rest up to the last tap. student:
    the same structure as the teacher. Trunk and teacher are frozen and stay in eval mode, so that
    training the student moves neither their weights nor their batch statistics.
    reads_maps: whether the student is given the teacher's maps instead of the trunk's feature.
    Source: PaSTe (arXiv 2410.11591), section 2 of its specification.
    """

    reads_maps: ClassVar[bool] = False

    def __init__(self, trunk: nn.Module, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False)
        self.student = student.requires_grad_(True)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the student alone."""
        super().train(mode)
        self.trunk.eval()
        self.teacher.eval()
        return self

    def shared(self, x: Tensor) -> Tensor:
        """Feature (b, c, h, w) of normalised images (b, 3, S, S) that both branches start from."""
        z: Tensor = self.trunk(x)
        return z

    def from_shared(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of the teacher and of the student, one (b, c, h, w) pair per level."""
        return self.compared(self.teacher(z), z)

    def compared(
        self, teacher: list[Tensor], z: Tensor | list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """`from_shared` where the teacher's maps (b, c, h, w) are known already."""
        return teacher, self.student(z)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """`from_shared` of `shared`."""
        return self.from_shared(self.shared(x))


class STFPMNet(PaSTeNet):
    """Teacher and student with nothing in common (STFPM, BMVC 2021): `shared` is the identity."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__(nn.Sequential(), teacher, student)


def build_net(
    network: nn.Module, layers: Sequence[int], *, bootstrap: int | None = None, seed: int
) -> PaSTeNet:
    """Take a tapped backbone network (as `build_backbone` gives it) apart; it stays as it is.

    layers: taps to distil, counted as the backbone counts them. bootstrap: last layer that is
    shared, by the same count; None takes the one before the first tap, -1 shares nothing (STFPM).
    seed: of the student's weights. Everything after the last tap is dropped.

    Raises `ConfigError` for a bootstrap that is not before the first tap, an unknown layer, or a
    network that is not a chain of layers with weights.
    """
    steps, ends = _chain(copy.deepcopy(network))
    taps = sorted(set(layers))
    check_layers(taps, sorted(ends))
    if bootstrap is None:
        bootstrap = taps[0] - 1
    if not -1 <= bootstrap < taps[0]:
        raise ConfigError(
            f"bootstrap {bootstrap} must lie in -1..{taps[0] - 1}: from layer {taps[0]} on, the "
            "first that is distilled, the student needs layers of its own"
        )
    cut = _cut(steps, ends[bootstrap]) if bootstrap >= 0 else 0
    own = steps[cut : ends[taps[-1]]]
    teacher = Branch(own, [ends[t] - 1 - cut for t in taps])
    student = Branch(copy.deepcopy(own), teacher.taps)
    reinitialise(student, seed)
    if cut == 0:
        return STFPMNet(teacher, student)
    return PaSTeNet(nn.Sequential(*steps[:cut]), teacher, student)


def check_layers(layers: Sequence[int], given: Sequence[int]) -> None:
    """Raise `ConfigError` for no layer to distil, or one that the backbone does not give."""
    unknown = sorted(set(layers) - set(given))
    if unknown or not layers:
        raise ConfigError(
            f"the backbone gives layers {join_names(given)}, not {join_names(unknown or layers)}; "
            "build it with all the layers that are to be distilled"
        )


def reinitialise(module: nn.Module, seed: int) -> None:
    """Random weights in place: He normal by fan-out per group; scales 1, biases 0, BN statistics
    as new. The same seed gives the same weights on every machine with the same PyTorch.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            groups = getattr(part, "groups", 1)
            for name, weight in part.named_parameters(recurse=False):
                if weight.ndim < 2:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                fan_out = weight.shape[0] * math.prod(weight.shape[2:]) / groups
                values = torch.randn(weight.shape, generator=generator) * math.sqrt(2 / fan_out)
                weight.copy_(values)
            if isinstance(part, nn.modules.batchnorm._NormBase):
                part.reset_running_stats()


def _chain(network: nn.Module) -> tuple[list[nn.Module], dict[int, int]]:
    """The network as steps in a row, and how many of them lead to each layer it counts."""
    import_timm()
    from timm.models._features import FeatureListNet

    if isinstance(network, Headed):  # a metric behind the taps, of which a cosine needs none
        return _chain(network.network)
    if isinstance(network, TinyNet):
        steps = [network.stem, nn.ReLU(), network.pool]
        ends = {}
        for i, stage in enumerate(network.blocks()):
            steps += stage
            ends[i] = len(steps)
        return steps, ends
    if isinstance(network, BlockTaps):
        stem = [network.conv_stem, network.bn1]
        return [*stem, *network.blocks], {i: 3 + i for i in range(len(network.blocks))}
    children = dict(network.named_children())
    if type(network) is FeatureListNet:
        names = list(children)
        flat = {name.replace(".", "_"): i + 1 for i, name in enumerate(names)}
        modules = {i: m.replace(".", "_") for i, m in enumerate(_every(network, "module"))}
        return list(children.values()), {i: flat[m] for i, m in modules.items() if m in flat}
    if "blocks" in children and "conv_stem" in children and not _hooked(network):
        blocks = list(children.pop("blocks").children())
        steps = [*children.values(), *blocks]
        stages = {i: len(children) + int(s) for i, s in enumerate(_every(network, "stage"))}
        return steps, {i: end for i, end in stages.items() if end <= len(steps)}
    raise ConfigError(
        f"a {type(network).__name__} cannot be split into a teacher and a student: that needs "
        f"a chain of layers with weights. Choose {_CHAINS}"
    )


def _every(network: nn.Module, key: str) -> list[str]:
    """One value per layer of a timm network, tapped or not."""
    return [entry[key] for entry in network.feature_info.info]  # type: ignore[union-attr]


def _hooked(network: nn.Module) -> bool:
    return getattr(network, "feature_hooks", None) is not None


def _cut(steps: Sequence[nn.Module], end: int) -> int:
    """`end`, moved past steps without weights: a stored feature after a pooling is smaller."""
    while end < len(steps) and not list(steps[end].parameters()):
        end += 1
    return end
