"""Windows of multivariate signals, by site, from NumPy files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError

_TRAIN, _TEST, _LABELS = "train.npy", "test.npy", "labels.npy"
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class SignalSite:
    """A site's windows, (n, channels, length) float32: normal ones to train on, and any to test.

    labels: (m,) of the m test windows, True for anomalous ones; None where there are none.
    """

    name: str
    train: npt.NDArray[np.float32]
    test: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.bool_] | None = None


def read_signal_sites(data: Path) -> list[SignalSite]:
    """Sites of a folder with a folder for each, or of one site alone.

    A site has train.npy, and perhaps test.npy and labels.npy (0 normal, 1 anomalous). Raises
    `DataError` for files that do not fit, and for sites whose windows differ in shape.
    """
    folders = (
        [data] if (data / _TRAIN).is_file() else sorted(p.parent for p in data.glob(f"*/{_TRAIN}"))
    )
    if not folders:
        raise DataError(f"{data}: no {_TRAIN} in it or in its folders: save (n, channels, length)")
    sites = [_site(folder) for folder in folders]
    shapes = {site.name: site.train.shape[1:] for site in sites}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{data}: windows differ in (channels, length): {shapes}")
    return sites


def _site(folder: Path) -> SignalSite:
    train = read_windows(folder / _TRAIN)
    if len(train) < _FEWEST:
        raise DataError(f"{folder / _TRAIN}: has {len(train)} window: {_FEWEST} or more are needed")
    if not (folder / _TEST).is_file():
        return SignalSite(folder.name, train)
    test = read_windows(folder / _TEST)
    if test.shape[1:] != train.shape[1:]:
        raise DataError(f"{folder}: test windows are {test.shape[1:]}, not {train.shape[1:]}")
    if not (folder / _LABELS).is_file():
        return SignalSite(folder.name, train, test)
    labels = _array(folder / _LABELS)
    if labels.shape != (len(test),) or not np.isin(labels, (0, 1)).all():
        raise DataError(f"{folder / _LABELS}: needs a 0 or 1 for each of {len(test)} test windows")
    return SignalSite(folder.name, train, test, labels.astype(bool))


def read_windows(source: str | os.PathLike[str] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(n, channels, length) windows of a .npy file, or those given; n >= 1.

    Raises `DataError` for anything else, and for values that are not finite.
    """
    if isinstance(source, str | os.PathLike):
        array, name = _array(Path(source)), f"{os.fspath(source)}: holds"
    else:
        array, name = np.asarray(source), "windows hold"
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "buif":
        raise DataError(
            f"{name} {array.dtype} of shape {array.shape}, not (n, channels, length) numbers"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{name} values that are not finite")
    return found


def _array(path: Path) -> npt.NDArray[Any]:
    try:
        found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return found
