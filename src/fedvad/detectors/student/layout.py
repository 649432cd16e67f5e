"""How the weights and images of a network that is trained lie in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_FEWEST = 8


def memory_format(network: torch.nn.Module) -> torch.memory_format:
    """Channels last, in which a step of a depthwise student takes half the time on a CPU.

    But contiguous for a network with a strided 1 x 1 convolution of fewer than 8 channels: without
    AVX-512, torch 2.13 writes beyond its buffers in the backward pass of such a layer when channels
    come last, and the process ends.
    """
    import torch

    for module in network.modules():
        if (
            isinstance(module, torch.nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels < _FEWEST
        ):
            return torch.contiguous_format
    return torch.channels_last
