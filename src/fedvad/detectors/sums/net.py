"""The detector of sums as one torch module, for exports."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedvad.detectors.student.graphs import smoothed
from fedvad.detectors.sums.gaussian import SumsScorer


class SumsMaps(nn.Module):
    """uint8 images (b, S, S, 3) to the smoothed maps (b, h, w) of `SumsScorer`.

    network: the images' descriptors (b, h, w, d).
    """

    def __init__(self, network: nn.Module, scorer: SumsScorer) -> None:
        super().__init__()
        self.network, self.smooth, self.grid = network, scorer.config.smooth, scorer.space.grid
        shifts = np.einsum("ck,ckj->cj", scorer.centre, scorer.roots)
        for name, array in (
            ("projection", scorer.space.projection), ("roots", scorer.roots), ("shifts", shifts),
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The maps."""
        descriptors = self.network(images)
        height, width = descriptors.shape[1:3]
        units = nn.functional.normalize(descriptors, dim=3, eps=1e-6)
        points = units @ self.get_buffer("projection")
        parts = []
        for cell in range(self.grid**2):
            rows, columns = (
                (-(-part * length // self.grid), -(-(part + 1) * length // self.grid))
                for part, length in zip(divmod(cell, self.grid), (height, width), strict=True)
            )
            own = points[:, rows[0] : rows[1], columns[0] : columns[1]]
            away = own @ self.get_buffer("roots")[cell] - self.get_buffer("shifts")[cell]
            parts.append(away.square().sum(3).sqrt())
        lines = [torch.cat(parts[i : i + self.grid], 2) for i in range(0, len(parts), self.grid)]
        return smoothed(torch.cat(lines, 1), self.smooth)
