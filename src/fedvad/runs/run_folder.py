"""What lies beside a run: its configuration, its region, its ledger, its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.checked import parse_values
from fedvad.data.files import write_atomically
from fedvad.data.images import read_mask
from fedvad.data.region import is_shape
from fedvad.data.sealed import finite, read_sealed, read_table, sha256_of, write_sealed
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.results import Results
from fedvad.federation.ledger import Ledger
from fedvad.runs.config import TrainConfig
from fedvad.runs.run_bands import found_bands, stored_bands

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


DETECTOR_FILE = "detector.safetensors"
CONFIG_FILE = "config.json"
LEDGER_FILE = "ledger.json"
RESULTS_FILE = "results.json"
EARLIER_THRESHOLDS_FILE = "earlier-thresholds.json"  # to undo a calibration
_REGION_DIGEST = "region_sha256"
BEFORE = "before-{}.safetensors"  # of a run that was updated, by the digest of the new one


def write_config(folder: Path, config: TrainConfig) -> None:
    """Store the resolved configuration."""
    region = stored_region(folder, config.region)
    values = config.model_dump(mode="json") | {
        "region": region,
        "weights": stored_bands(folder, config.weights),
    }
    if region == REGION_FILE:  # what it leaves out of an image, no score shows
        values[_REGION_DIGEST] = sha256_of((folder / REGION_FILE).read_bytes())
    write_sealed(folder / CONFIG_FILE, values)


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run; raises `ArtefactError` when it is missing or damaged.

    People change it by hand (another device, another place of the weights): that is a warning. Its
    copy of a region's mask must be the one of the training.
    """
    path = folder / CONFIG_FILE
    values = read_sealed(path, editable=True)
    digest = values.pop(_REGION_DIGEST, None)
    config = parse_values(TrainConfig, values, path)
    if config.region == REGION_FILE:
        _check_region(folder / REGION_FILE, digest)
    return config.model_copy(
        update={
            "region": found_region(folder, config.region),
            "weights": found_bands(folder, config.weights),
        }
    )


def _check_region(path: Path, digest: object) -> None:
    """Raise `ArtefactError` for a mask that is gone, or is not the one with this SHA-256."""
    try:
        changed = digest not in (None, sha256_of(path.read_bytes()))
    except OSError as error:
        raise ArtefactError(
            f"cannot read {path}, the mask of the run's region: {error.strerror or error}; restore "
            "it from a copy, or train again"
        ) from error
    if changed:
        raise ArtefactError(
            f"{path} was damaged or changed after the training, whose region it is: restore it "
            "from a copy, or train again"
        )


def check_configuration(out: Path) -> None:
    """Raise `ConfigError` where the configuration in a folder to write is not one of ours."""
    if (out / CONFIG_FILE).exists():
        try:
            read_config(out)
        except ArtefactError as error:
            raise ConfigError(f"{out} holds something else: choose another --out") from error


def write_ledger(folder: Path, ledger: Ledger, *, vouches_for: Sequence[str] = ()) -> None:
    """Store the ledger, with the SHA-256 of other files of the folder as they are now."""
    files = {name: sha256_of((folder / name).read_bytes()) for name in vouches_for}
    write_sealed(folder / LEDGER_FILE, ledger.model_dump() | ({"files": files} if files else {}))


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a run, an empty one where it has none; raises `ArtefactError` for a damaged."""
    return _ledger(folder)[0]


def read_results(folder: Path) -> Results:
    """What `train` returned; raises `ArtefactError` when it is missing or damaged."""
    path = folder / RESULTS_FILE
    wanted = _ledger(folder)[1].get(RESULTS_FILE)
    results, data = read_table(path)
    if wanted not in (None, sha256_of(data)):
        raise ArtefactError(
            f"{path} was damaged or changed after it was written: restore it from a copy, or train "
            "again"
        )
    return Results.parse(results, path)


def _ledger(folder: Path) -> tuple[Ledger, dict[str, Any]]:
    path = folder / LEDGER_FILE
    if not path.exists():
        return Ledger(), {}
    try:
        values = read_sealed(path)
        files = values.pop("files", {})
        ledger = parse_values(Ledger, values, path)
    except ArtefactError as error:
        raise ArtefactError(
            f"{error} (or remove it: rounds and costs of the training are then unknown)"
        ) from error
    return ledger, files if isinstance(files, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any parser reads: NaN and infinity become null."""
    write_atomically(path, json.dumps(finite(value), indent=2, allow_nan=False).encode())
