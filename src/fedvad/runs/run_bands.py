"""The backbone of cubes, made of sums of all sites' normal pixels, kept in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedvad.data.contents import normals
from fedvad.data.cubes.pixels import read_cube
from fedvad.data.sets import Site
from fedvad.errors import DataError, ImageError
from fedvad.features.names import SPECTRAL
from fedvad.runs.config import TrainConfig
from fedvad.runs.progress import Progress, Stage
from fedvad.spectral.moments import Moments

BANDS_FILE = "bands.safetensors"


def keep_bands(
    folder: Path, config: TrainConfig, sites: Sequence[Site], progress: Progress, *, resume: bool
) -> TrainConfig:
    """The configuration with the file of a spectral backbone.

    Each site adds up count, mean and scatter of the pixels of its normal training images; without
    weights of its own the run has those of the sum. Other backbones stay as they are. Raises
    `DataError` for cubes of unlike bands, or where no cube can be read.
    """
    if config.backbone != SPECTRAL or config.weights is not None:
        return config
    place = _place(folder)
    if not (resume and place.is_file()):
        stage = Stage(progress, "bands", sum(len(site.train) for site in sites))
        total: Moments | None = None
        for path in (path for site in sites for path in normals(site.train)):
            try:
                own = Moments.of(read_cube(path, max_pixels=config.max_pixels).cube)
            except ImageError:  # training counts these, and says why
                continue
            if total is not None and own.mean.shape != total.mean.shape:
                raise DataError(
                    f"{path}: has {own.mean.size} bands and others have {total.mean.size}: bring "
                    "all cubes to the same bands"
                )
            total = own if total is None else total + own
            stage()
        if total is None:
            raise DataError("none of the normal training images can be read as a cube of bands")
        from fedvad.features.bands import write_bands_file  # PyTorch takes seconds to import

        write_bands_file(place, total.mean, total.covariance)
    return config.model_copy(update={"weights": place})


def stored_bands(folder: Path, weights: Path | None) -> str | None:
    """The weights as the configuration of the run folder holds them."""
    if weights is None:
        return None
    return BANDS_FILE if weights == _place(folder) else str(weights)


def found_bands(folder: Path, weights: Path | None) -> Path | None:
    """What `stored_bands` was made of, in the folder as it lies now."""
    return _place(folder) if weights == Path(BANDS_FILE) else weights


def _place(folder: Path) -> Path:
    return (folder / BANDS_FILE).absolute()
