"""Detectors by name."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from fedvad.detectors.aand import AAND
from fedvad.detectors.adaptor import AdaptorDetector
from fedvad.detectors.base import Detector
from fedvad.detectors.dcam import DCAM
from fedvad.detectors.dmdd import DMDD
from fedvad.detectors.feddymem import FedDyMem, PatchCore
from fedvad.detectors.reverse import RD
from fedvad.detectors.stfpm import STFPM, PaSTe
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor

__all__ = ["create", "detector_class", "list_detectors"]

_DETECTORS: dict[str, type[Detector]] = {
    cls.name: cls
    for cls in (FedDyMem, PatchCore, STFPM, PaSTe, DCAM, RD, AAND, DMDD, AdaptorDetector)
}


def list_detectors(pattern: str = "*") -> list[str]:
    """Names of the registered detectors that match a shell pattern."""
    return sorted(name for name in _DETECTORS if fnmatch(name, pattern))


def detector_class(name: str) -> type[Detector]:
    """The class behind a name; raises `ConfigError` for an unknown one."""
    try:
        return _DETECTORS[name]
    except KeyError:
        raise ConfigError(f"unknown detector {name!r}; choose from {list_detectors()}") from None


def create(name: str, *, extractor: FeatureExtractor, **options: Any) -> Detector:
    """A detector by name, as its constructor makes it."""
    return detector_class(name)(extractor=extractor, **options)
