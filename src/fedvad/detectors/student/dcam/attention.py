"""Attention blocks at the distilled levels, and a student that is trained through them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedvad.detectors.student.branches import Branch, PaSTeNet, STFPMNet
from fedvad.detectors.student.dcam.options import AttentionConfig

_HIDDEN = 8


class ChannelAttention(nn.Module):
    """Which channels matter: sigmoid(mlp(maximum) + mlp(mean)), both over the positions.

    The two-layer perceptron c -> c / reduction -> c is shared and has no bias. Source: CBAM (Woo
    et al. 2018), eq. 2; that the hidden layer has 8 values at least is ours.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        # Features after a ReLU are positive, so every other hidden value is 0 for all images from
        # the start; with two or three of them, often all are, and nothing is ever trained.
        hidden = max(_HIDDEN, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, 1, 1) in (0, 1) of (b, c, h, w)."""
        logits = self.mlp(x.amax((2, 3))) + self.mlp(x.mean((2, 3)))
        return torch.sigmoid(logits)[:, :, None, None]


class SpatialAttention(nn.Module):
    """Which positions matter: sigmoid of a 7 x 7 convolution of the channels' mean and maximum.

    Source: CBAM (Woo et al. 2018), eq. 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, h, w) in (0, 1) of (b, c, h, w)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.conv(pooled))


class AttentionBlock(nn.Module):
    """The attention of one level with this many channels; see `AttentionConfig`."""

    def __init__(self, channels: int, config: AttentionConfig) -> None:
        super().__init__()
        self.residual = config.residual
        on_channels = config.dcam in ("channel", "both")
        self.channel = ChannelAttention(channels, config.reduction) if on_channels else None
        self.spatial = SpatialAttention() if config.dcam in ("spatial", "both") else None

    def gain(self, x: Tensor) -> Tensor:
        """What x (b, c, h, w) is multiplied by, a positive tensor that broadcasts to it; the
        spatial attention sees what the channel attention leaves.
        """
        gain = x.new_ones(1, 1, 1, 1)
        if self.channel is None and self.spatial is None:
            return gain
        if self.channel is not None:
            gain = self.channel(x)
        if self.spatial is not None:
            gain = gain * self.spatial(x * gain)
        return 1 + gain if self.residual else gain

    def forward(self, x: Tensor) -> Tensor:
        """x times its gain, (b, c, h, w)."""
        return x * self.gain(x)


class AttendedStudent(Branch):
    """A student with an attention block per level; its steps are the student's own, not copies.

    In gain mode its maps are those of the student times their gains, as weights (`att_as_weight`)
    they are the student's. Names of the student's parameters stay; those of the attention begin
    with `attention`.
    """

    def __init__(
        self, student: Branch, channels: Sequence[int], config: AttentionConfig, *, seed: int
    ) -> None:
        super().__init__(student.steps, student.taps)
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attention = nn.ModuleList(AttentionBlock(c, config) for c in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (b, c, h, w), one per level, as they are compared with the teacher's."""
        return self.attended(self.plain(x))

    def plain(self, x: Tensor) -> list[Tensor]:
        """Maps of the student without any attention."""
        return super().forward(x)

    def attended(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The student's maps as they are compared with the teacher's."""
        if self.config.att_as_weight:
            return list(maps)
        return [block(m) for block, m in zip(self.attention, maps, strict=True)]

    def target(self, teacher: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's maps as the student's are compared with them."""
        if self.config.on == "student":
            return list(teacher)
        return [block(m) for block, m in zip(self.attention, teacher, strict=True)]

    def weights(self, maps: Sequence[Tensor]) -> list[Tensor] | None:
        """Per level the weights of the loss given the student's plain maps; None in gain mode."""
        if not self.config.att_as_weight:
            return None
        return [block.gain(m) for block, m in zip(self.attention, maps, strict=True)]  # type: ignore[operator]


class AttendedNet(STFPMNet):
    """Teacher and student whose attention is part of the score (`keep_at_test`)."""

    student: AttendedStudent

    def compared(
        self, teacher: list[Tensor], z: Tensor | list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `PaSTeNet.compared`."""
        return self.student.target(teacher), self.student(z)


def attend(
    net: PaSTeNet, config: AttentionConfig, *, image_size: int, seed: int
) -> AttendedStudent:
    """The net's student with attention on the net's device; equal seeds, equal weights.

    image_size: side in pixels of the images, for one blank one tells the channels of each level.
    """
    device = next(net.student.parameters()).device
    with torch.inference_mode():
        maps = net.teacher(net.shared(torch.zeros(1, 3, image_size, image_size, device=device)))
    channels = [int(m.shape[1]) for m in maps]
    assert isinstance(net.student, Branch)  # nets of a chain have one
    return AttendedStudent(net.student, channels, config, seed=seed).to(device)
