"""Patches of a site, and a memory generator trained on pairs of them, for `equal_rows.py`.

The metric loss pulls a patch to its nearest row of the memory, which may be of its own image. A
test image has no rows there. So here the positive of a patch is the nearest patch of another
image, and its negatives are either the positives of the other patches in the batch, or hard ones:
the nearest patches that belong to another region of the image (and to another image).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from fedvad.data.folders import Site
from fedvad.detectors.memory.generator import Generator
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import FloatArray
from fedvad.memory.coreset import CandidateSampler

IntArray = npt.NDArray[np.int64]
PAIRS = 8192  # patches among which pairs are looked for
HARD = 16  # negatives of a patch


@dataclass(frozen=True)
class Sample:
    """Some normal patches of a site: (n, d), the image and the (n, 2) cell each is of."""

    patches: FloatArray
    images: IntArray
    cells: IntArray


def sample(site: Site, features: FeatureExtractor, seed: int) -> Sample:
    """A quarter of a site's normal patches, as for one round of PatchCore."""
    normal = [item.path for item in site.train if item.label == 0]
    height, width, dim = features.grid
    most = (64 << 20) // (4 * dim)
    sampler, places = (
        CandidateSampler(
            n_images=len(normal), patches_per_image=height * width, dim=length,
            fraction=0.25, max_bytes=4 * length * most, seed=seed,
        )
        for length in (dim, 2)
    )  # fmt: skip
    cells = np.stack(np.indices((height, width)), axis=2).astype(np.float16)
    for item in features.stream(normal):
        sampler.add(item.descriptors)
        places.add(cells)
    return Sample(sampler.result(), sampler.images(), places.result().astype(np.int64))


def train_on_pairs(
    sample: Sample,
    negatives: Literal["batch", "regions"],
    *,
    temperature: float = 0.1,
    identity: float = 1.0,
    seed: int,
) -> Generator:
    """One pass over the sample with InfoNCE on cosines of embedded pairs.

    identity: weight of the mean of ||G(p) - p||^2. A region is another one from a quarter of the
    longer side away. Optimiser and batch are those of the metric loss.
    """
    weight, bias = Generator.identity(sample.patches.shape[1]).parameters()
    optimiser = torch.optim.AdamW([weight, bias], lr=1e-3, weight_decay=5e-4, amsgrad=True)
    order = torch.Generator().manual_seed(seed)
    data, images = torch.from_numpy(sample.patches), torch.from_numpy(sample.images)
    cells = torch.from_numpy(sample.cells)
    reach = (int(cells.max()) + 1) / 4
    pool = torch.randperm(len(data), generator=order)[:PAIRS]

    def embedded(patches: torch.Tensor) -> torch.Tensor:
        return patches + patches @ weight.T + bias

    def unit(patches: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(embedded(patches), dim=-1)

    for rows in torch.split(torch.randperm(len(data), generator=order), 1024):
        raw = data[rows]
        apart = torch.cdist(raw, data[pool])
        apart[images[rows][:, None] == images[pool]] = torch.inf
        positives = data[pool[apart.argmin(1)]]
        if negatives == "batch":
            alike = unit(raw) @ unit(positives).T
            right = torch.arange(len(rows))
        else:
            away = (cells[rows][:, None] - cells[pool]).abs().amax(2)
            apart[away < reach] = torch.inf
            hard = data[pool[apart.topk(HARD, largest=False).indices]]
            alike = torch.einsum(
                "bd,bkd->bk", unit(raw), unit(torch.cat([positives[:, None], hard], 1))
            )
            right = torch.zeros(len(rows), dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(alike / temperature, right)
        loss = loss + identity * (embedded(raw) - raw).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight, bias], 1.0)
        optimiser.step()
    return Generator(weight.detach().numpy(), bias.detach().numpy())
