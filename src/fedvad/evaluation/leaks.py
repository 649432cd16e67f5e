"""What a memory reveals about the images behind it: membership, retrieval, inversion.

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

    Attributes
    ----------
    statistics : dict of str to (n,) float64 array
        By name and image; high speaks for membership.
    distance : (m,) float32 array
        From each memory row to the nearest patch of any image.
    image, patch : (m,) int64 arrays
        Which image, and which of its cells in reading order, that is.
    """

    statistics: dict[str, npt.NDArray[np.float64]]
    distance: FloatArray
    image: npt.NDArray[np.int64]
    patch: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(next(iter(self.statistics.values())))


@dataclass(frozen=True)
class Membership:
    """How well members are distinguished from outsiders.

    Attributes
    ----------
    auc : float
        Of the best statistic, chosen on one half of the images and judged on the other, both ways
        round; 0.5 is chance.
    each : dict of str to float
        AUC of each statistic on all images.
    """

    auc: float
    each: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retrieval:
    """How often rows lead back to images.

    Attributes
    ----------
    found : float
        Share of rows whose nearest patch is of a member.
    chance : float
        The same if rows said nothing.
    copies : float
        Share of rows that are a patch of a member, but for rounding: image and place are known.
    """

    found: float
    chance: float
    copies: float


@dataclass(frozen=True, eq=False)
class Inversion:
    """What a decoder restores from rows.

    Attributes
    ----------
    explained : float
        Share of the variance of the pixels behind the rows that it restores, at most 1.
    ceiling : float
        The same for patches whose own descriptors it is given.
    restored, originals : (m, s, s, 3) uint8 arrays
        What it made of the first rows, and the member's pixels nearest to them.
    """

    explained: float
    ceiling: float
    restored: npt.NDArray[np.uint8]
    originals: npt.NDArray[np.uint8]


def look(images: Iterable[HalfArray], rows: FloatArray, others: FloatArray | None = None) -> View:
    """Distances between the patches of images and the rows of an upload.

    Parameters
    ----------
    images : iterable of (h, w, d) float16 arrays
        Descriptors of at least one image.
    rows : (m, d) float32 array
        Of the upload.
    others : (k, d) float32 array, default=None
        Rows that these images had no part in, such as other sites', by which an attacker judges how
        unusual a patch is (difficulty calibration, Watson et al. 2022).

    Raises
    ------
    DataError
        Without images.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.leaks import look
    >>> image = np.arange(8, dtype=np.float16).reshape(2, 2, 2)
    >>> seen = look([image], np.array([[4, 5]], np.float32))
    >>> seen.distance.tolist(), seen.patch.tolist()
    ([0.0], [2])
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
    """How well the best statistic distinguishes members from outsiders.

    Parameters
    ----------
    members, outsiders : View
        Of at least four images each: those that took part, and normal images of the same kind that
        did not.
    seed : int
        Of the halves on which the statistic is chosen and judged.

    Raises
    ------
    DataError
        For fewer than four images of either.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.leaks import look, membership
    >>> drawn = np.random.default_rng(0).normal(size=(16, 2, 2, 3)).astype(np.float16)
    >>> rows = drawn[:8].reshape(-1, 3).astype(np.float32)  # every patch of the first eight
    >>> membership(look(drawn[:8], rows), look(drawn[8:], rows), seed=0).auc
    1.0

    Source: distance attacks on generative models (GAN-Leaks, Chen et al. 2020), on memories; forms
    ours.
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
    """How often a row leads to an image that it was made from.

    Parameters
    ----------
    members, outsiders : View
        As for `membership`.
    rows : (m, d) float32 array
        Of the upload.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.leaks import look, retrieve
    >>> drawn = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float16)
    >>> rows = drawn[:2].reshape(-1, 3).astype(np.float32)
    >>> retrieve(look(drawn[:2], rows), look(drawn[2:], rows), rows)
    Retrieval(found=1.0, chance=0.5, copies=1.0)

    Source: ours.
    """
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
    """Train a small decoder from descriptors to pixels on known patches, and apply it to the rows.

    Parameters
    ----------
    known : ((n, d) float32 array, (n, s, s, 3) uint8 array)
        Descriptors and pixels of patches that the attacker has.
    rows : (m, d) float32 array
        Of the upload.
    own : (m, d) float32 array
        Descriptor of the member's patch nearest to each row.
    pixels : (m, s, s, 3) uint8 array
        Pixels of that patch.
    seed : int
        Of the decoder and its training.
    pictures : int, default=16
        Number of rows to return as pictures.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.leaks import invert
    >>> rng = np.random.default_rng(0)
    >>> pixels = rng.integers(0, 256, (64, 2, 2, 3), dtype=np.uint8)
    >>> features = pixels.reshape(64, -1).astype(np.float32)  # a backbone that hides nothing
    >>> found = invert((features, pixels), features, features, pixels, seed=0, pictures=3)
    >>> found.restored.shape, found.explained > 0
    ((3, 2, 2, 3), True)

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
