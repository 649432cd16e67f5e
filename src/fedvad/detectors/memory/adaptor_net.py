"""A student of descriptors: it must rebuild a patch's features through a narrow passage.

Trained on normal patches alone, it fails on what it never saw. It is the smallest student of a
frozen backbone there is (0.4 MB for ResNet-18's 384 values), so it is what weight averaging is
measured with. Source: ours; the bottleneck is Deng and Li's (reverse distillation, 2022).
"""

from __future__ import annotations

import torch
from torch import nn

from fedvad.detectors.student.graphs import smoothed


class Adaptor(nn.Module):
    """(n, dim) descriptors to (n, dim) rebuilt directions; equal seeds give equal weights."""

    def __init__(self, dim: int, *, hidden: int, bottleneck: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, bottleneck)
            )
            self.decoder = nn.Sequential(
                nn.ReLU(), nn.Linear(bottleneck, hidden), nn.ReLU(), nn.Linear(hidden, dim)
            )

    def encode(self, descriptors: torch.Tensor) -> torch.Tensor:
        """(n, bottleneck) of (n, dim) descriptors, whatever their length."""
        unit = nn.functional.normalize(descriptors, dim=1)
        # values of about 1, for which the layers' initial weights are made
        encoded: torch.Tensor = self.encoder(unit * unit.shape[1] ** 0.5)
        return encoded

    def forward(self, descriptors: torch.Tensor) -> torch.Tensor:
        """(n, dim) rebuilt."""
        rebuilt: torch.Tensor = self.decoder(self.encode(descriptors))
        return rebuilt

    def distances(self, descriptors: torch.Tensor) -> torch.Tensor:
        """(n,) 1 - cosine between descriptors and what is rebuilt of them, in [0, 2]."""
        return 1 - nn.functional.cosine_similarity(self(descriptors), descriptors, dim=1)


class AdaptorMaps(nn.Module):
    """uint8 images (b, S, S, 3) to the smoothed maps (b, h, w) of an adaptor's distances.

    network: the images' descriptors (b, h, w, d). smooth: side of the mean filter, in cells.
    """

    def __init__(self, network: nn.Module, student: Adaptor, smooth: int) -> None:
        super().__init__()
        self.network, self.student, self.smooth = network, student, smooth

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The maps."""
        descriptors = self.network(images)
        rows = descriptors.flatten(0, 2)
        # as `Adaptor.distances`, by operators that OpenVINO has
        units = [nn.functional.normalize(x, dim=1) for x in (rows, self.student(rows))]
        cosines = (units[0] * units[1]).sum(1)
        return smoothed((1 - cosines).reshape(descriptors.shape[:3]), self.smooth)


def adaptor_loss(
    student: Adaptor, descriptors: torch.Tensor, noise: torch.Tensor, jitter: float
) -> torch.Tensor:
    """Mean distance of clean (n, dim) descriptors to what is rebuilt of jittered ones.

    noise: (n, dim) standard normal; it is scaled to `jitter` times each descriptor's root mean
    square, so that the shortcut of copying is closed (feature jittering: You et al. 2022, UniAD).
    """
    size = descriptors.square().mean(1, keepdim=True).sqrt()
    rebuilt = student(descriptors + jitter * size * noise)
    return 1 - nn.functional.cosine_similarity(rebuilt, descriptors, dim=1).mean()
