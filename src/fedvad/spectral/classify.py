"""Classes of all pixels of a scene, learned from some of its labelled ones by DSFormer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvad.data.cubes.scene import Cube, normalised
from fedvad.errors import ConfigError, DataError
from fedvad.spectral.dsformer import DSFormer, DSFormerSize, size_of
from fedvad.spectral.local_rx import principal

__all__ = ["Classified", "classify", "logits_of", "patches_around", "train"]

_BATCH = 256
_FEW = 15  # of a class that has fewer labelled pixels than are wanted


@dataclass(frozen=True, eq=False)
class Classified:
    """Classes of a scene.

    Attributes
    ----------
    classes : (h, w) int64 array
        Of every pixel.
    trained : (h, w) bool array
        The pixels that were learned from.
    agreement : (float, float, float)
        Overall accuracy, mean accuracy of the classes and Cohen's kappa on the other labelled
        pixels, or on those of them that are `apart`.
    """

    classes: NDArray[np.int64]
    trained: NDArray[np.bool_]
    agreement: tuple[float, float, float]


def classify(
    cube: Cube,
    labels: NDArray[np.integer[Any]],
    *,
    size: str | DSFormerSize = "paper",
    patch: int = 10,
    components: int = 30,
    per_class: int = 50,
    epochs: int = 500,
    rate: float = 1e-4,
    apart: bool = False,
    seed: int = 0,
) -> Classified:
    """Learn the classes of a scene from a few pixels of each, and name those of all pixels.

    Parameters
    ----------
    cube : (h, w, b) float array
    labels : (h, w) int array
        0 where unknown.
    size : str or DSFormerSize, default="paper"
        "paper", or "small" (32 values, two blocks).
    patch : int, default=10
        Side of what is seen around a pixel, a multiple of the token's side.
    components : int, default=30
        Principal components of the scene that the network sees.
    per_class : int, default=50
        Pixels learned from; 15 of a class that has fewer labelled ones, which must be more.
    epochs, rate : default=500, 1e-4
        Of AdamW, in batches of 256.
    apart : bool, default=False
        Measure on labelled pixels alone whose patches have no pixel in common with those of the
        learned ones. By default they overlap, as in the literature, which flatters.
    seed : int, default=0
        Of the pixels, the weights and the training.

    Raises
    ------
    ConfigError, DataError
        For a patch that does not fit; for labels of another shape or fewer than two classes.

    Examples
    --------
    >>> labels = np.repeat([[1, 2]], 40, axis=0).repeat(2, axis=1)
    >>> cube = np.random.default_rng(0).random((40, 4, 3)) + labels[:, :, None]
    >>> small = DSFormerSize(dim=8, depth=1, heads=2, groups=2)
    >>> classify(cube, labels, size=small, patch=4, per_class=20, epochs=1).classes.shape
    (40, 4)

    Source: Xu et al., Neural Networks 187, 2025.
    """
    size = size_of(size)
    if patch < 2 or patch % size.token:
        raise ConfigError(f"patch is {patch}; it must be a multiple of the token's {size.token}")
    if labels.shape != cube.shape[:2]:
        raise DataError(f"labels {labels.shape} are not those of a scene {cube.shape[:2]}")
    known = np.unique(labels[labels > 0])
    if known.size < 2:
        raise DataError("the labels name fewer than two classes: one class cannot be told apart")
    rng = np.random.default_rng(seed)
    trained = _chosen(labels, known, per_class, rng)
    pixels = principal(normalised(cube), components)
    image = pixels.reshape(*cube.shape[:2], -1).astype(np.float32)
    around = patches_around(image, patch)
    targets = torch.from_numpy(np.searchsorted(known, labels[trained]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DSFormer(image.shape[2], known.size, size)
        train(network, torch.from_numpy(around[trained]), targets, epochs, rate, rng)
    found = known[logits_of(network, around).argmax(2)].astype(np.int64)
    near = _near(trained, patch if apart else 1)
    return Classified(found, trained, _agreement(found, labels, (labels > 0) & ~near, known))


def patches_around(image: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """What surrounds each pixel of (h, w, bands), mirrored at the edge: a view (h, w, bands, p, p).

    >>> patches_around(np.zeros((3, 4, 2), np.float32), 5).shape
    (3, 4, 2, 5, 5)
    """
    before = patch // 2
    wide = np.pad(image, ((before, patch - 1 - before),) * 2 + ((0, 0),), mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(wide, (patch, patch), axis=(0, 1))


def _near(trained: NDArray[np.bool_], patch: int) -> NDArray[np.bool_]:
    """Pixels whose patch has a pixel in common with that of a trained one."""
    around = patches_around(trained[:, :, None].astype(np.float32), 2 * patch - 1)
    return np.asarray(around.any(axis=(2, 3, 4)))


def _chosen(
    labels: NDArray[np.integer[Any]],
    known: NDArray[np.integer[Any]],
    per_class: int,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    trained = np.zeros(labels.size, np.bool_)
    for number in known:
        places = np.flatnonzero(labels == number)
        wanted = per_class if places.size > per_class else _FEW
        if places.size <= wanted:
            raise DataError(f"class {number} has {places.size} pixels; it takes more than {wanted}")
        trained[rng.choice(places, wanted, replace=False)] = True
    return trained.reshape(labels.shape)


def train(
    network: DSFormer,
    patches: Tensor,
    targets: Tensor,
    epochs: int,
    rate: float,
    rng: np.random.Generator,
) -> None:
    """Teach the network the classes of patches (n, bands, p, p), in batches of 256, turned."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-5)
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(patches)))
        for start in range(0, len(patches), _BATCH):
            batch = order[start : start + _BATCH]
            seen = torch.stack([_turned(one, rng) for one in patches[batch]])
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(seen), targets[batch]))
            optimiser.step()
    network.eval()


def _turned(patch: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the time one of two flips and three turns."""
    way = int(rng.integers(10))
    if way < 2:
        return patch.flip(1 + way)
    return patch.rot90(way - 1, (1, 2)) if way < 5 else patch


@torch.no_grad()
def logits_of(network: DSFormer, around: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (h, w, classes) of patches (h, w, bands, p, p), a row at a time."""
    rows = [network(torch.from_numpy(row.copy())).numpy() for row in around]
    return np.stack(rows)


def _agreement(
    found: NDArray[np.int64],
    labels: NDArray[np.integer[Any]],
    where: NDArray[np.bool_],
    known: NDArray[np.integer[Any]],
) -> tuple[float, float, float]:
    ours, theirs = found[where], labels[where]
    if lost := sorted({int(n) for n in known} - {int(n) for n in np.unique(theirs)}):
        raise DataError(
            f"no labelled pixel of class {lost[0]} is left to measure on: lower per_class or patch"
        )
    right = ours == theirs
    overall = float(right.mean())
    average = float(np.mean([right[theirs == number].mean() for number in known]))
    by_chance = sum(float(np.mean(ours == n) * np.mean(theirs == n)) for n in known)
    return overall, average, (overall - by_chance) / (1 - by_chance)
