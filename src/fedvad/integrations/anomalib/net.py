"""The torch module inside the anomalib plugin: floats in 0..1 to score and map."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from anomalib.data import InferenceBatch
from torch.nn import functional

from fedvad.detectors.memory.feddymem import map_columns
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ConfigError
from fedvad.features.modules import DescriptorNet
from fedvad.memory.bank import MemoryBank
from fedvad.serving.export.graph import MemoryHead

_AT_ONCE = 4  # images: their distances to the memory are what takes memory


class MemoryNet(torch.nn.Module):
    """A frozen descriptor network and a memory that is set when it is known.

    The memory is in the state dict as `vectors` (m, d), `weights` (m,), `spread` (m,) and the
    generator's `weight` (d, d) and `bias` (d,), the latter empty for the identity; what is derived
    from it is built again on loading.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    spread: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, network: DescriptorNet, scoring: ScoringConfig, image_size: int) -> None:
        super().__init__()
        self.network = network
        self.scoring = scoring
        self.image_size = image_size
        self.head: MemoryHead | None = None
        self._store(MemoryBank.empty(network.dim), Generator.identity(network.dim))

    @property
    def bank(self) -> MemoryBank:
        """The memory."""
        return MemoryBank(
            self.vectors.cpu().numpy(), self.weights.cpu().numpy(), self.spread.cpu().numpy()
        )

    @property
    def generator(self) -> Generator:
        """The map from descriptors to the memory's space."""
        if not self.weight.numel():
            return Generator.identity(self.network.dim)
        return Generator(self.weight.cpu().numpy(), self.bias.cpu().numpy())

    def set_memory(self, bank: MemoryBank, generator: Generator | None = None) -> None:
        """Score by this memory from now on; raises `MemoryBankError` for an empty one."""
        generator = generator or Generator.identity(bank.dim)
        grid = self.network.grid
        columns = map_columns(self.scoring, self.network, generator, grid)
        head = MemoryHead(bank, generator, self.scoring, grid=grid, columns=columns)
        for part in head.modules():  # all of it follows from the memory
            part._non_persistent_buffers_set.update(part._buffers)
        self._store(bank, generator)
        self.head = head.to(self.vectors.device)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but the backbone stays frozen: its statistics must not move."""
        super().train(mode)
        self.network.eval()
        return self

    def describe(self, images: torch.Tensor) -> torch.Tensor:
        """Descriptors (b, h, w, d) of (b, 3, S, S) floats in 0..1.

        Raises `ConfigError` for images of another size or range, as of a pre-processor that
        normalises: the network does so itself.
        """
        size = self.image_size
        if tuple(images.shape[1:]) != (3, size, size):
            raise ConfigError(
                f"expected images of 3 x {size} x {size}, got {tuple(images.shape[1:])}: the "
                "pre-processor must resize to the model's image_size; pre_processor=True does"
            )
        if not torch.compiler.is_compiling():
            low, high = (float(v) for v in torch.aminmax(images))
            if not (low >= -0.01 and high <= 1.01):  # false for NaN, too
                raise ConfigError(
                    f"expected pixels in 0..1, got {low:.3g} to {high:.3g}: the model normalises "
                    "by itself, so take Normalize out of the pre-processor (pre_processor=True)"
                )
        # the steps that image files have; resizing leaves values between them
        pixels = (images * 255).round().clamp(0, 255).permute(0, 2, 3, 1)
        descriptors: torch.Tensor = self.network(pixels)
        return descriptors

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Scores (b,) and maps (b, 1, S, S), higher is more anomalous, of images in 0..1.

        Raises `ConfigError` without a memory.
        """
        if self.head is None:
            raise ConfigError("the model has no memory yet: train it, or import a run")
        descriptors = self.describe(images)
        if torch.compiler.is_compiling():
            score, cells = self.head(descriptors)
        else:
            parts = [self.head(part) for part in torch.split(descriptors, _AT_ONCE)]
            score, cells = (torch.cat(values) for values in zip(*parts, strict=True))
        size = (self.image_size, self.image_size)
        map_ = functional.interpolate(cells[:, None], size, mode="bilinear", align_corners=False)
        return InferenceBatch(pred_score=score, anomaly_map=map_)

    def _store(self, bank: MemoryBank, generator: Generator) -> None:
        device = self.network.get_buffer("scale").device
        empty = np.zeros(0, np.float32)
        for name, value in {
            "vectors": bank.vectors,
            "weights": bank.weights,
            "spread": bank.spread,
            "weight": empty if generator.is_identity else generator.weight,
            "bias": empty if generator.is_identity else generator.bias,
        }.items():
            self.register_buffer(name, torch.tensor(value, device=device))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:  # the stored memory is rarely as long as this one
        stored = {
            name: state_dict[prefix + name].cpu().numpy()
            for name in ("vectors", "weights", "spread", "weight", "bias")
            if prefix + name in state_dict
        }
        if len(stored) == 5 and len(stored["vectors"]):
            generator = None
            if stored["weight"].size:
                generator = Generator(stored["weight"], stored["bias"])
            bank = MemoryBank(stored["vectors"], stored["weights"], stored["spread"])
            self.set_memory(bank, generator)
        super()._load_from_state_dict(state_dict, prefix, *args)
