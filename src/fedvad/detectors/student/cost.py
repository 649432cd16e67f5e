"""What a student costs: bytes at rest, and multiplications per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Memory:
    """Bytes of a network's parameters and of its buffers (BN statistics), apart."""

    parameters: int
    buffers: int

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.parameters + self.buffers


def memory(*modules: torch.nn.Module) -> Memory:
    """Bytes of networks kept together; a tensor or layer that several share counts once."""
    parameters = {id(p): p for module in modules for p in module.parameters()}
    buffers = {id(b): b for module in modules for b in module.buffers()}
    return Memory(_bytes(parameters.values()), _bytes(buffers.values()))


def macs(network: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-accumulates of one forward pass over `inputs`, in convolutions and matrix products.

    Counted by torch's own counter of operations. Bias, normalisation, activations and elementwise
    products, so also the comparison of the branches, are left out, as is usual. The mode of the
    network is put back.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    training = network.training
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network.eval()(*inputs)
    finally:
        network.train(training)
    return int(counter.get_total_flops()) // 2


def descriptor_macs(network: torch.nn.Module, sides: tuple[int, int], *, channels: int = 3) -> int:
    """`macs` of a descriptor network for one image (or tile) of (height, width), on its device.

    channels: of the image, or bands of a cube.
    """
    import torch

    device = network.get_buffer("scale").device
    return macs(network, torch.zeros(1, *sides, channels, dtype=torch.uint8, device=device))


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
