"""What a memory tells about the images behind it: membership, retrieval, inversion.

Measurements by an attacker who has the upload, the (public) backbone and images like those of the
site. They bound nothing from above: a better attacker may learn more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError
from fedvad.evaluation.metrics import image_auroc
from fedvad.half import HalfArray, to_float
from fedvad.memory.bank import FloatArray
from fedvad.memory.distances import nearest

__all__ = [
    "Inversion",
    "Membership",
    "Retrieval",
    "View",
    "invert",
    "look",
    "membership",
    "retrieve",
]

# relative to its length: what float16 and a change of order cost a copied row
_SAME = 2e-3
_HIDDEN, _EPOCHS, _BATCH, _RATE = 512, 8, 256, 1e-3


@dataclass(frozen=True, eq=False)
class View:
    """How images look from a memory.

    statistics: name to (n,), by image; high speaks for membership.
    distance: (m,) from each memory row to the nearest patch of any image.
    image, patch: (m,) which image, and which of its cells in reading order, that is.
    """

    statistics: dict[str, npt.NDArray[np.float64]]
    distance: FloatArray
    image: npt.NDArray[np.int64]
    patch: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(next(iter(self.statistics.values())))


@dataclass(frozen=True)
class Membership:
    """auc: how well members are told from outsiders; 0.5 is chance. each: by statistic.

    The statistic is chosen on one half of the images and judged on the other, both ways round.
    """

    auc: float
    each: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retrieval:
    """found: share of rows whose nearest patch is of a member; chance: if rows told nothing.

    copies: share of rows that are a patch of a member, but for rounding: image and place are known.
    """

    found: float
    chance: float
    copies: float


@dataclass(frozen=True, eq=False)
class Inversion:
    """explained: share of the variance of the pixels behind the rows that a decoder restores.

    ceiling: the same for patches whose own descriptors it is given. Pictures are (m, s, s, 3)
    uint8: what it made of the first rows, and the member's pixels nearest to them.
    """

    explained: float
    ceiling: float
    restored: npt.NDArray[np.uint8]
    originals: npt.NDArray[np.uint8]


def look(images: Iterable[HalfArray], rows: FloatArray, others: FloatArray | None = None) -> View:
    """Distances between the patches of (h, w, d) images and the (m, d) rows of an upload.

    `others`: rows that these images had no part in, such as other sites', by which an attacker
    judges how unusual a patch is (difficulty calibration, Watson et al. 2022). Raises `DataError`
    without images.
    """
    import torch

    points = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
    away = None if others is None else torch.from_numpy(np.ascontiguousarray(others, np.float32))
    found: list[dict[str, float]] = []
    best = np.full(len(rows), np.inf, np.float32)
    image, patch = np.zeros((2, len(rows)), np.int64)
    for i, descriptors in enumerate(images):
        patches = torch.from_numpy(to_float(descriptors).reshape(-1, descriptors.shape[-1]))
        own = nearest(patches, points)[0].sqrt().numpy()
        found.append(_statistics(own, ""))
        if away is not None:
            usual = nearest(patches, away)[0].sqrt().numpy()
            found[-1] |= _statistics(own / np.maximum(usual, 1e-6), ", relative")
        squared, which = nearest(points, patches)
        distance = squared.sqrt().numpy()
        closer = distance < best
        best[closer], image[closer], patch[closer] = distance[closer], i, which.numpy()[closer]
    if not found:
        raise DataError("no image to look at")
    return View({name: np.array([f[name] for f in found]) for name in found[0]}, best, image, patch)


def _statistics(distances: FloatArray, suffix: str) -> dict[str, float]:
    ordered = np.sort(distances)
    one, five = (max(1, round(share * len(ordered))) for share in (0.01, 0.05))
    values = {
        "mean": ordered.mean(),
        "nearest": ordered[0],
        "nearest 1 %": ordered[:one].mean(),
        "nearest 5 %": ordered[:five].mean(),
        "farthest 5 %": ordered[-five:].mean(),
    }
    return {name + suffix: -float(value) for name, value in values.items()}


def membership(members: View, outsiders: View, *, seed: int) -> Membership:
    """How well the best statistic tells members from outsiders (same kind of normal images).

    Raises `DataError` for fewer than four of either. Source: distance attacks on generative models
    (GAN-Leaks, Chen et al. 2020), on memories; forms ours.
    """
    if min(len(members), len(outsiders)) < 4:
        raise DataError(
            f"{len(members)} members and {len(outsiders)} outsiders: at least four of each needed"
        )
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(len(view)) % 2 == 0 for view in (members, outsiders)]

    def auc(name: str, sides: list[npt.NDArray[np.bool_]]) -> float:
        scores = [v.statistics[name][s] for v, s in zip((members, outsiders), sides, strict=True)]
        labels = np.repeat([1, 0], [len(s) for s in scores])
        return image_auroc(np.concatenate(scores), labels) or 0.0

    names = list(members.statistics)
    judged = []
    for choose, judge in ((halves, [~h for h in halves]), ([~h for h in halves], halves)):
        judged.append(auc(max(names, key=lambda name: auc(name, choose)), judge))
    whole = [np.ones(len(view), np.bool_) for view in (members, outsiders)]
    return Membership(float(np.mean(judged)), {name: auc(name, whole) for name in names})


def retrieve(members: View, outsiders: View, rows: FloatArray) -> Retrieval:
    """How often a row leads to an image that it was made from. Source: ours."""
    lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-6)
    return Retrieval(
        found=float((members.distance < outsiders.distance).mean()),
        chance=len(members) / (len(members) + len(outsiders)),
        copies=float((members.distance < _SAME * lengths).mean()),
    )


def invert(
    known: tuple[FloatArray, npt.NDArray[np.uint8]],
    rows: FloatArray,
    own: FloatArray,
    pixels: npt.NDArray[np.uint8],
    *,
    seed: int,
    pictures: int = 16,
) -> Inversion:
    """Train a small decoder from descriptors to pixels on `known`, and turn it on the rows.

    known: (n, d) descriptors and (n, s, s, 3) pixels of patches that the attacker has. rows: (m, d)
    of the upload; own, pixels: descriptor and pixels of the member's patch nearest to each row.
    Source: Dosovitskiy & Brox 2016 (inverting by regression); two layers, ours.
    """
    import torch
    from torch import nn

    features, seen = known
    side = seen.shape[1]
    wanted = torch.from_numpy(seen.reshape(len(seen), -1).astype(np.float32) / 255)
    given = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    shift, scale = given.mean(0), given.std(0).clamp_min(1e-4)
    mean = wanted.mean(0)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = nn.Sequential(
            nn.Linear(given.shape[1], _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, wanted.shape[1])
        )
    optimiser = torch.optim.Adam(decoder.parameters(), lr=_RATE)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(given), generator=generator).split(_BATCH):  # type: ignore[no-untyped-call]
            loss = ((decoder((given[batch] - shift) / scale) + mean - wanted[batch]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    truth = torch.from_numpy(pixels.reshape(len(pixels), -1).astype(np.float32) / 255)
    spread = ((truth - truth.mean(0)) ** 2).mean().clamp_min(1e-12)

    def share(values: FloatArray) -> tuple[float, torch.Tensor]:
        with torch.inference_mode():
            made = decoder((torch.from_numpy(values.astype(np.float32)) - shift) / scale) + mean
        return float(1 - ((made - truth) ** 2).mean() / spread), made

    explained, made = share(rows)
    restored = (made[:pictures].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Inversion(
        explained=explained,
        ceiling=share(own)[0],
        restored=restored.reshape(-1, side, side, 3),
        originals=pixels[:pictures],
    )
