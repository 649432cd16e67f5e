"""A backbone for cubes: spectra along the axes in which normal ones vary, each of unit variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedvad.data.files import write_atomically
from fedvad.errors import ConfigError, DataError, WeightsError
from fedvad.features.backbones import Backbone, weights_hash
from fedvad.features.taps import check_taps

COMPONENTS = 20  # at most
_NOISE = 1e-6  # of the largest deviation; below it, directions are rounding
_FAR = 30_000.0  # within float16


class BandNet(nn.Module):
    """Whitened spectra of cubes.

    Parameters
    ----------
    mean : (b,) float array
    axes : (k, b) float array
        Rows; a spectrum's distance from the mean along each, in units of its standard deviation.

    Examples
    --------
    >>> net = BandNet(np.array([1.0, 1.0]), np.array([[0.5, 0.0]]))
    >>> net(torch.full((1, 2, 3, 3), 5.0))[0][0, 0, 0, 0].item()
    2.0
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, mean: NDArray[np.floating], axes: NDArray[np.floating]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("axes", torch.from_numpy(axes.astype(np.float32)))

    def forward(self, cubes: Tensor) -> list[Tensor]:
        """Cubes (b, bands, h, w) to one map (b, k, h, w)."""
        centred = cubes - self.mean[:, None, None]
        return [functional.conv2d(centred, self.axes[:, :, None, None]).clamp(-_FAR, _FAR)]


def write_bands_file(
    path: Path,
    mean: NDArray[np.float64],
    covariance: NDArray[np.float64],
    *,
    components: int = COMPONENTS,
) -> None:
    """Write the weights of `BandNet`, from the mean (b,) and covariance (b, b) of normal pixels.

    components: of most variance that are kept, at most. One machine finds them for all, since
    the last bits of eigenvectors differ between machines. Raises `DataError` where normal pixels
    do not vary, `StorageError`.
    """
    from safetensors.numpy import save

    squares, vectors = np.linalg.eigh(covariance)
    spread = np.sqrt(np.maximum(squares, 0))[::-1][:components]
    kept = spread > _NOISE * spread[0]
    if not kept.any():
        raise DataError("all normal pixels have the same spectrum: there is nothing to measure by")
    axes = vectors[:, ::-1][:, :components][:, kept] / spread[kept]
    arrays = {"mean": mean, "axes": np.ascontiguousarray(axes.T)}
    write_atomically(path, save({name: a.astype(np.float32) for name, a in arrays.items()}))


def read_bands_file(path: Path) -> BandNet:
    """What `write_bands_file` wrote; raises `WeightsError` for anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as weights of spectral: {error}") from error
    mean, axes = arrays.get("mean"), arrays.get("axes")
    if (
        mean is None
        or axes is None
        or {mean.dtype, axes.dtype} != {np.dtype(np.float32)}
        or axes.shape[1:] != mean.shape
        or not len(axes)
        or not (np.isfinite(mean).all() and np.isfinite(axes).all())
    ):
        raise WeightsError(
            f"{path} holds no weights of spectral: write them with fedvad spectral --moments FILE "
            "--save-backbone FILE"
        )
    return BandNet(mean, axes)


def build(
    name: str,
    weights: Path | None,
    layers: Sequence[int] | None,
    sides: tuple[int, int] | None,
) -> Backbone:
    """See `families.Builder.build`."""
    if weights is None:
        raise WeightsError(
            "spectral has weights of the sites' own normal pixels. fedvad train finds them; else "
            "write them, fedvad spectral --moments FILE --save-backbone FILE, and give --weights"
        )
    network = read_bands_file(weights).eval()
    chosen = check_taps(name, layers or (0,), range(1))
    bands = network.mean.numel()
    # what undoes the scaling of pictures to 0..1
    as_they_are = (0.0,) * bands, (1 / 255,) * bands
    return Backbone(network, *as_they_are, chosen, weights_hash(network), bands=bands)


def trainable(
    name: str, layers: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Callable[[], nn.Module]]:
    """See `families.Builder.trainable`: nothing is."""
    raise ConfigError("spectral has nothing to train: choose another student")
