"""HyperSIGMA's recipe for anomalies: a coarse map gives labels, and a network refines them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvad.data.cubes.scene import Cube, normalised
from fedvad.errors import ConfigError, DataError
from fedvad.spectral.local_rx import principal
from fedvad.spectral.masked import pretrain
from fedvad.spectral.published import load_branch
from fedvad.spectral.rx import rx
from fedvad.spectral.sigma import SIZES, SigmaNet, SigmaSize

__all__ = [
    "IGNORED",
    "class_weights",
    "coarse_map",
    "hypersigma",
    "mixed",
    "pseudo_labels",
    "starts",
    "stitched",
    "whitened",
]

IGNORED = 255
_BACKGROUND, _ODD = 0.3, 0.0015
_BALANCE = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}  # exponents of a class's number of pixels


def hypersigma(
    cube: Cube,
    *,
    coarse: NDArray[np.floating] | None = None,
    size: str | SigmaSize = "tiny",
    branches: Literal["both", "spatial"] = "both",
    components: int | None = 20,
    score: Literal["mixed", "margin", "logit"] = "mixed",
    tile: int = 32,
    overlap: int = 8,
    pretraining: int = 1,
    epochs: int = 5,
    rate: float = 1e-3,
    balance: Literal["none", "sqrt", "inverse"] = "none",
    spatial_weights: Path | None = None,
    spectral_weights: Path | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Map of a network that learns, within the scene, what a coarse detector is surest of.

    Parameters
    ----------
    cube : (h, w, b) float array
    coarse : (h, w) float array, default=None
        Map of another detector; None for that of global RX.
    size : str or SigmaSize, default="tiny"
        "tiny", or the paper's "base", "large" and "huge", which are for GPUs.
    branches : {"both", "spatial"}, default="both"
        "spatial" is SpatSIGMA.
    components : int, default=20
        Principal components, each of unit variance, that the spatial branch sees with their
        magnitudes: what is odd for RX is large in either direction, also where the scene varies
        little, which standardised bands hide. None or 0 for the bands, as in the paper.
    score : {"mixed", "margin", "logit"}, default="mixed"
        The coarse map's values, given to the pixels in the order of the mean of their ranks in both
        maps; or the network's map alone: the logit of an anomaly, less that of background
        ("margin") or as it is, as in the public code.
    tile, overlap : int, default=32, 8
        Sides in pixels; the scene is learned and scored in tiles. The paper's overlap is 16.
    pretraining, epochs : int, default=1, 5
        Passes over the tiles of masked pre-training, and of training; the paper trains 10.
    rate : float, default=1e-3
        Of AdamW, falling to 0 by a cosine. The paper fine-tunes pre-trained weights with 6e-5.
    balance : {"none", "sqrt", "inverse"}, default="none"
        Weight of a class in the loss: 1, as in the paper, or by its number of labelled pixels, one
        over it or one over its root.
    spatial_weights, spectral_weights : Path, default=None
        Published weights of the branches, of the same size; see `published.load_branch`.
    seed : int, default=0

    Returns
    -------
    (h, w) float64 array
        In the unit of the coarse map; of "margin" and "logit" in logits, mean over tiles.

    Raises
    ------
    ConfigError, DataError
        For options out of range; for a scene whose surest 0.15 % are fewer than two pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.hypersigma import hypersigma
    >>> cube = np.random.default_rng(0).random((40, 40, 40))
    >>> hypersigma(cube, tile=20, overlap=0, pretraining=1, epochs=1).shape
    (40, 40)

    Source: Wang et al., IEEE TPAMI 47(8), 2025; trained from scratch on the scene.
    """
    if isinstance(size, str) and size not in SIZES:
        raise ConfigError(f"size is {size!r}; choose from {', '.join(SIZES)}")
    if not 0 <= overlap < tile:
        raise ConfigError(f"overlap is {overlap}; it must lie in 0 to tile {tile}")
    if branches not in ("both", "spatial") or score not in ("mixed", "margin", "logit"):
        raise ConfigError(
            f"branches is {branches!r}: both or spatial; score {score!r}: mixed, margin or logit"
        )
    if balance not in _BALANCE:
        raise ConfigError(f"balance is {balance!r}; choose from {', '.join(_BALANCE)}")
    if spectral_weights is not None and branches == "spatial":
        raise ConfigError("branches is 'spatial': omit spectral_weights")
    if pretraining < 0 or epochs < 1 or not rate > 0:
        raise ConfigError("pretraining must be at least 0, epochs 1, and rate above 0")
    spectra = normalised(cube, "band_std")
    features = whitened(cube, components) if components else spectra
    coarse = coarse_map(cube, coarse)
    labels = pseudo_labels(coarse)
    height, width = labels.shape
    missing = [(0, max(0, tile - side)) for side in (height, width)]
    labels = np.pad(labels, missing, constant_values=IGNORED)
    corners = [
        (y, x)
        for y in starts(labels.shape[0], tile, overlap)
        for x in starts(labels.shape[1], tile, overlap)
    ]
    tiles = [_tiles(values, missing, corners, tile) for values in (features, spectra)]
    marks = torch.from_numpy(np.stack([labels[y : y + tile, x : x + tile] for y, x in corners]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = SIZES[size] if isinstance(size, str) else size
        network = SigmaNet(features.shape[2], tile, chosen, spectral=branches == "both")
        for branch, file in (
            (network.spatial, spatial_weights),
            (network.spectral, spectral_weights),
        ):
            if file is not None and branch is not None:
                load_branch(branch, file)
        pretrain(network, *tiles, epochs=pretraining, rate=rate)
        _train(network, tiles, marks.long(), epochs, rate, class_weights(labels, balance))
        with torch.no_grad():
            found = [network(*(part[n : n + 1] for part in tiles))[0] for n in range(len(marks))]
    against = 0 if score == "logit" else 1
    scores = [(logits[1] - against * logits[0]).double().numpy() for logits in found]
    refined = stitched(scores, corners, labels.shape)[:height, :width]
    return mixed(refined, coarse) if score == "mixed" else refined


def coarse_map(cube: Cube, given: NDArray[np.floating] | None) -> NDArray[np.floating]:
    """The map that is refined: RX of the cube unless another is given.

    Raises `DataError` for a map of another size.

    >>> coarse_map(np.random.default_rng(0).random((9, 8, 3)), None).shape
    (9, 8)
    """
    if given is not None and np.shape(given) != cube.shape[:2]:
        raise DataError(f"the coarse map is {np.shape(given)}, the scene {cube.shape[:2]}")
    return rx(cube) if given is None else np.asarray(given)


def pseudo_labels(coarse: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Labels (h, w) of a coarse map: 0 for its lowest 30 %, 1 for its highest 0.15 %, else 255.

    >>> found = pseudo_labels(np.arange(2000.0).reshape(40, 50))
    >>> [int((found == label).sum()) for label in (0, 1, 255)]
    [600, 3, 1397]
    """
    order = np.argsort(coarse, axis=None, kind="stable")
    odd = round(_ODD * order.size)
    if odd < 2:
        raise DataError(
            f"{order.size} pixels are too few for HyperSIGMA: the highest 0.15 % must be two or "
            "more, of at least 1000 pixels"
        )
    labels = np.full(coarse.size, IGNORED, np.uint8)
    labels[order[: int(_BACKGROUND * order.size)]] = 0
    labels[order[-odd:]] = 1
    return labels.reshape(coarse.shape)


def class_weights(labels: NDArray[np.uint8], balance: str) -> NDArray[np.float32]:
    """Weights of background and anomaly in the loss, of mean 1; see `hypersigma`.

    >>> class_weights(np.array([0, 0, 0, 1, IGNORED], np.uint8), "inverse").tolist()
    [0.5, 1.5]
    """
    shares = np.array([(labels == label).sum() for label in (0, 1)]) ** -_BALANCE[balance]
    return np.asarray(2 * shares / shares.sum(), np.float32)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they cover `side`, evenly spread; side is at least tile.

    >>> starts(100, 32, 16)
    [0, 14, 27, 41, 54, 68]
    """
    count = math.ceil((side - tile) / (tile - overlap)) + 1
    return [round(place) for place in np.linspace(0, side - tile, count)]


def stitched(
    parts: Sequence[NDArray[np.float64]],
    corners: Sequence[tuple[int, int]],
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    """Tiles at their corners as one map, their mean where they overlap.

    >>> stitched([np.ones((2, 2)), 3 * np.ones((2, 2))], [(0, 0), (0, 1)], (2, 3)).tolist()
    [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """
    total, count = np.zeros(shape), np.zeros(shape)
    for part, (y, x) in zip(parts, corners, strict=True):
        place = np.s_[y : y + part.shape[0], x : x + part.shape[1]]
        total[place] += part
        count[place] += 1
    return total / count


def mixed(refined: NDArray[np.floating], coarse: NDArray[np.floating]) -> NDArray[np.float64]:
    """The coarse map's values, in the order of the mean of the pixels' ranks in both maps."""
    from scipy.stats import rankdata

    order = np.argsort(rankdata(refined) + rankdata(coarse), kind="stable")
    found = np.empty(coarse.size)
    found[order] = np.sort(coarse, axis=None)
    return found.reshape(coarse.shape)


def whitened(cube: Cube, components: int) -> NDArray[np.float64]:
    """Principal components (h, w, 2 k) of unit variance, and their magnitudes."""
    pixels = principal(cube, components)
    spread = pixels.std(axis=0)
    # of bands that say the same, all but one direction is rounding
    kept = spread > 1e-6 * spread[0]
    unit = pixels[:, kept] / spread[kept]
    return np.concatenate([unit, np.abs(unit)], axis=1).reshape(*cube.shape[:2], -1)


def _tiles(
    values: NDArray[np.float64],
    missing: Sequence[tuple[int, int]],
    corners: Sequence[tuple[int, int]],
    side: int,
) -> Tensor:
    """Tiles (n, values, side, side) of a cube, mirrored where it is smaller than a tile."""
    wide = np.pad(values, [*missing, (0, 0)], mode="symmetric").astype(np.float32)
    cut = np.stack([wide[y : y + side, x : x + side] for y, x in corners])
    return torch.from_numpy(cut).permute(0, 3, 1, 2)


def _train(
    network: SigmaNet,
    tiles: Sequence[Tensor],
    marks: Tensor,
    epochs: int,
    rate: float,
    weights: NDArray[np.float32],
) -> None:
    """Learn the marks (n, side, side) of tiles; weights: of the classes."""
    network.train()
    weight = torch.from_numpy(weights)
    decayed = [p for name, p in network.named_parameters() if p.ndim > 1 and "places" not in name]
    others = [p for name, p in network.named_parameters() if p.ndim <= 1 or "places" in name]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=5e-4)
    useful = [n for n in range(len(marks)) if bool((marks[n] != IGNORED).any())]
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(useful))
    for _ in range(epochs):
        for place in torch.randperm(len(useful)).tolist():
            number = useful[place]
            optimiser.zero_grad()
            logits = network(*(part[number : number + 1] for part in tiles))
            wanted = marks[number : number + 1]
            # the mean of the pixels, not of their weights: a tile may have one class alone
            loss = (
                F.cross_entropy(logits, wanted, weight, ignore_index=IGNORED, reduction="sum")
                / (wanted != IGNORED).sum()
            )
            torch.autograd.backward(loss)
            optimiser.step()
            falling.step()
    network.eval()
