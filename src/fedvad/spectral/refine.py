"""DSFormer as the refiner of a coarse map: the patches around the pixels that it is surest of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube
from fedvad.errors import ConfigError
from fedvad.spectral.classify import logits_of, patches_around, train
from fedvad.spectral.dsformer import DSFormer, DSFormerSize, size_of
from fedvad.spectral.hypersigma import coarse_map, mixed, pseudo_labels, whitened

__all__ = ["dsformer"]

_PATCH = 6  # of three tokens by three


def dsformer(
    cube: Cube,
    *,
    coarse: NDArray[np.floating] | None = None,
    size: str | DSFormerSize = "small",
    components: int = 20,
    background: int = 200,
    epochs: int = 30,
    rate: float = 1e-3,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Map of a DSFormer that learns, within the scene, what a coarse detector is surest of.

    Parameters
    ----------
    cube : (h, w, b) float array
    coarse : (h, w) float array, default=None
        Map of another detector; None for that of global RX.
    size : str or DSFormerSize, default="small"
        "small" (32 values, two blocks), or "paper".
    components : int, default=20
        Principal components, of unit variance, that the network sees with their magnitudes.
    background : int, default=200
        Pixels that it learns the background from, drawn among the lowest 30 % of the coarse map;
        anomalies are the highest 0.15 %.
    epochs, rate : default=30, 1e-3
        Of AdamW.
    seed : int, default=0

    Returns
    -------
    (h, w) float64 array
        The coarse map's values, in the order of the mean of the ranks in both maps.

    Raises
    ------
    ConfigError, DataError
        For options out of range; for a scene whose surest 0.15 % are fewer than two pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.refine import dsformer
    >>> cube = np.random.default_rng(0).random((40, 40, 12))
    >>> dsformer(cube, components=5, epochs=1).shape
    (40, 40)

    Source: Xu et al., Neural Networks 187, 2025, in HyperSIGMA's recipe (Wang et al. 2025); the
    combination is ours.
    """
    size = size_of(size)
    if background < 1 or epochs < 1 or not rate > 0 or _PATCH % size.token:
        raise ConfigError(
            f"background and epochs must be at least 1, rate above 0, and {_PATCH} a multiple of "
            f"the token's side {size.token}"
        )
    coarse = coarse_map(cube, coarse)
    labels = pseudo_labels(coarse)
    rng = np.random.default_rng(seed)
    usual = np.argwhere(labels == 0)
    usual = usual[rng.permutation(len(usual))[:background]]
    places = np.concatenate([usual, np.argwhere(labels == 1)])
    around = patches_around(whitened(cube, components).astype(np.float32), _PATCH)
    targets = torch.from_numpy(labels[places[:, 0], places[:, 1]].astype(np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DSFormer(around.shape[2], 2, size)
        patches = torch.from_numpy(around[places[:, 0], places[:, 1]])
        train(network, patches, targets, epochs, rate, rng)
    logits = logits_of(network, around)
    return mixed(logits[:, :, 1] - logits[:, :, 0], coarse)
