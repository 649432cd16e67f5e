"""The mask that says where to look, kept in the run folder, wherever that moves."""

from __future__ import annotations

from pathlib import Path

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.files import write_atomically
from fedvad.data.images import read_mask
from fedvad.data.region import is_shape
from fedvad.runs.config import TrainConfig

REGION_FILE = "region.png"


def keep_region(folder: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with a copy of the mask in the run folder, if it has one.

    Raises `ImageError` for a mask that cannot be read, `StorageError`.
    """
    place = _place(folder)
    if config.region is None or config.region == place or is_shape(config.region):
        return config
    from PIL import Image

    from fedvad.report.overlay import marked_png

    mask = Image.fromarray(read_mask(Path(config.region), max_pixels=ANY_SIZE))
    write_atomically(Path(place), marked_png(mask, "region of interest"))
    return config.model_copy(update={"region": place})


def stored_region(folder: Path, region: str | None) -> str | None:
    """A region as the configuration of the run folder holds it."""
    return REGION_FILE if region == _place(folder) else region


def found_region(folder: Path, region: str | None) -> str | None:
    """What `stored_region` was made of, in the folder as it lies now."""
    return _place(folder) if region == REGION_FILE else region


def _place(folder: Path) -> str:
    return str((folder / REGION_FILE).absolute())
