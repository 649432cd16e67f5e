"""Detectors by name: one line each, imported when first asked for."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fedvad.data.checked import check_finite
from fedvad.detectors.artefact import feature_identity, read_arrays
from fedvad.errors import ArtefactError, ConfigError, MemoryBankError
from fedvad.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    from fedvad.detectors.base import Detector


class _Entry(NamedTuple):
    family: str | None
    module: str
    cls: str


# family: of the methods of `train` that make it, see `fedvad.runs.families`; None where none does
_DETECTORS = {
    "aand": _Entry("student", "student.aand.detector", "AAND"),
    "amsl": _Entry("student", "student.amsl.detector", "AMSL"),
    "daad": _Entry("student", "student.daad.detector", "DAAD"),
    "dcam": _Entry("student", "student.dcam.detector", "DCAM"),
    "dmdd": _Entry("student", "student.dmdd.detector", "DMDD"),
    "feddymem": _Entry("memory", "memory.feddymem", "FedDyMem"),
    "paste": _Entry("student", "student.stfpm", "PaSTe"),
    "patchcore": _Entry("memory", "memory.feddymem", "PatchCore"),
    "rd": _Entry("student", "student.rd.detector", "RD"),
    "stfpm": _Entry("student", "student.stfpm", "STFPM"),
    "sums": _Entry("sums", "sums.detector", "SumsDetector"),
}


def list_detectors(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """Names of the registered detectors that match a shell pattern, of one family or of any."""
    return sorted(
        name
        for name, entry in _DETECTORS.items()
        if fnmatch(name, pattern) and family in (None, entry.family)
    )


def detector_class(name: str) -> type[Detector]:
    """The class behind a name; raises `ConfigError` for an unknown one."""
    entry = _DETECTORS.get(name)
    if entry is None:
        raise ConfigError(f"unknown detector {name!r}; choose from {list_detectors()}")
    module = import_module(f"{__package__}.{entry.module}")
    return cast("type[Detector]", getattr(module, entry.cls))


def create(name: str, *, extractor: FeatureExtractor, **options: Any) -> Detector:
    """Create a detector by its name; `options` go to its constructor."""
    return detector_class(name)(extractor=extractor, **options)


def load_detector(path: Path, *, extractor: FeatureExtractor) -> Detector:
    """Read one detector; refuses another backbone, weights or feature configuration.

    Raises `ArtefactError` for a damaged or foreign file, `MismatchError` for other features.
    """
    arrays, values = read_arrays(path)
    if values.get("kind") != "detector":
        raise ArtefactError(f"{path} holds a {values.get('kind')}, not a detector")
    feature_identity(values, path).check_same(extractor.config, f"detector {path.name}")
    check_finite(arrays, {}, str(path))
    try:
        cls = detector_class(values["detector"])
        return cls.from_state(arrays, values["values"], extractor=extractor)
    except (KeyError, TypeError, ValueError, MemoryBankError) as error:
        raise ArtefactError(f"{path} is incomplete or damaged: {error}") from error
