"""Detectors as single safetensors files, with what they need to be trusted later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.errors import ArtefactError, MemoryBankError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    from fedvad.detectors.base import Detector

__all__ = [
    "feature_identity",
    "load_detector",
    "read_arrays",
    "save_detector",
    "write_arrays",
]

_KEY = "fedvad"
_SCHEMA = 1


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], values: dict[str, Any]) -> None:
    """Write named arrays and JSON values as one safetensors file, atomically."""
    from safetensors.numpy import save

    header = {_KEY: json.dumps({"schema": _SCHEMA, "version": __version__, **values})}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(path, save(contiguous, header))


def read_arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote; raises `ArtefactError` for anything else."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtefactError(f"{path} does not exist or is not a file")
    try:
        with safe_open(path, framework="numpy") as file:
            values = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if not isinstance(values, dict):
                raise ArtefactError(f"{path} is a safetensors file, but not one of fedvad's")
            if values.get("schema") != _SCHEMA:
                raise ArtefactError(
                    f"{path} has schema {values.get('schema')}, this fedvad "
                    f"({__version__}) reads {_SCHEMA}; it was written by fedvad "
                    f"{values.get('version')}"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path} is damaged or not a safetensors file: {error}") from error
    return arrays, values


def feature_identity(values: dict[str, Any], path: Path) -> FeatureConfig:
    """The feature configuration stored in an artefact's values."""
    try:
        stored = dict(values["features"])
        layers = stored.pop("layers")
        return FeatureConfig(layers=None if layers is None else tuple(layers), **stored)
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{path} lacks its feature configuration: {error}") from error


def save_detector(detector: Detector, path: Path) -> None:
    """Write one detector; see `Detector.save`."""
    arrays, values = detector.state()
    described = {
        "kind": "detector",
        "detector": detector.name,
        "features": detector.extractor.config.identity(),
        "values": values,
    }
    write_arrays(path, arrays, described)


def load_detector(path: Path, *, extractor: FeatureExtractor) -> Detector:
    """Read one detector; refuses another backbone, weights or feature configuration.

    Raises `ArtefactError` for a damaged or foreign file, `MismatchError` for other features.
    """
    from fedvad.detectors.registry import detector_class

    arrays, values = read_arrays(path)
    if values.get("kind") != "detector":
        raise ArtefactError(f"{path} holds a {values.get('kind')}, not a detector")
    feature_identity(values, path).check_same(extractor.config, f"detector {path.name}")
    try:
        cls = detector_class(values["detector"])
        return cls.from_state(arrays, values["values"], extractor=extractor)
    except (KeyError, TypeError, ValueError, MemoryBankError) as error:
        raise ArtefactError(f"{path} is incomplete or damaged: {error}") from error
