"""A run: what its sites share, what each has of its own, and how the two of them score."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy.typing as npt
from pydantic import Field, model_validator

from fedvad.data.checked import Stored, check_finite, parse_values, strictly
from fedvad.detectors.artefact import feature_identity, read_arrays, write_arrays
from fedvad.detectors.base import Detector
from fedvad.detectors.student.parameters import under, weights_hash
from fedvad.errors import ArtefactError, ConfigError, MemoryBankError
from fedvad.evaluation.results import LearningCurve
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import Reference
from fedvad.runs.families import METHODS, run_class
from fedvad.runs.run_folder import CONFIG_FILE, DETECTOR_FILE

__all__ = ["Arrays", "Parts", "Run", "SiteModel", "middle"]


class SiteValues(Stored):
    """What is a site's own, but for its arrays."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    n_images: Annotated[int, Field(ge=0, le=1 << 50)]
    thresholds: dict[Reference, dict[str, Any]]


class RunValues(Stored):
    """Of any run."""

    schema_: int = Field(alias="schema")
    version: str
    method: str
    data: str
    features: dict[str, Any]

    sites: Sequence[SiteValues]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method[:50]!r} is unknown")
        names = [site.name for site in self.sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"site {twice[0]!r} occurs twice")
        return self


def threshold_from(values: Mapping[str, Any]) -> Threshold:
    """The threshold whose `asdict` this was; raises `ArtefactError` for one that cannot decide."""
    found = strictly(Threshold, values, "a threshold")
    if found.n < 0 or not 0 < found.target_fpr < 1:
        raise ArtefactError(
            f"a threshold is damaged: it is of {found.n} images for a rate of {found.target_fpr}"
        )
    return found


Arrays = dict[str, npt.NDArray[Any]]

_OWN = re.compile(r"site\d+/")


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteModel:
    """What is a site's own.

    thresholds: by reference set. n_images: normal images it trained on.
    """

    thresholds: dict[str, Threshold] = field(default_factory=dict)
    n_images: int = 0

    def arrays(self) -> Arrays:
        """The arrays of the site, by name."""
        return {}

    def values(self) -> dict[str, Any]:
        """JSON values of the site, besides its name, thresholds and number of images."""
        return {}


class Parts(NamedTuple):
    """What the file of a run holds. described: its checked values. own, thresholds: by site, in the
    order of `described.sites`.
    """

    shared: Arrays
    described: Any
    own: list[Arrays]
    thresholds: list[dict[str, Threshold]]
    features: FeatureConfig


class Run(ABC):
    """The result of a federated training, with any method; `fedvad.load` reads it.

    sites: what is each site's own, by name. features: of the images it was trained on. method:
    as `--method` names it. data: fingerprint of the images, by which a split of them is
    recognised. reference: what scores at a site unless said otherwise.

    kind: what its file says it is. described: checks the values of its file. holds: in words.
    """

    kind: ClassVar[str]
    described: ClassVar[type[RunValues]]
    holds: ClassVar[str]

    sites: Mapping[str, SiteModel]
    features: FeatureConfig
    method: str
    data: str
    reference: Reference

    @abstractmethod
    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> Detector:
        """The detector of a site; of one that never trained (or None) what all sites share.

        Raises `MismatchError` when the extractor gives other features, `ConfigError` for a
        reference that cannot be met, `ArtefactError` for a run that is damaged.
        """

    def chosen_reference(self, site: str | None, wanted: Reference | None) -> Reference:
        """What scores at a site when `wanted` was asked for; raises `ConfigError`.

        Runs without a memory have none to choose.
        """
        if wanted not in (None, "global"):
            raise ConfigError(
                f"reference {wanted!r} chooses a memory, and this run has "
                f"{self.holds.removesuffix(' and no memory')}: omit it"
            )
        return "global"

    def threshold(self, site: str | None, reference: Reference | None = None) -> Threshold | None:
        """A site's threshold; for an unknown site the median of the known ones."""
        reference = self.chosen_reference(site, reference)
        model = None if site is None else self.sites.get(site)
        if model is not None:
            return self._own_threshold(model, reference)
        known = [m.thresholds[reference] for m in self.sites.values() if reference in m.thresholds]
        return middle(known)

    def limit(self, site: str | None, reference: Reference | None = None) -> float | None:
        """The value of `threshold`."""
        found = self.threshold(site, reference)
        return None if found is None else found.value

    def learning(self) -> dict[str, LearningCurve]:
        """By site how its training went; none of a site or method that has no curve."""
        return {}

    def shared_hash(self) -> str:
        """Digest of what all sites share: equal at every site of one federation."""
        return weights_hash(self._shared_arrays())

    def save(self, folder: Path) -> None:
        """Write `detector.safetensors` into `folder`; raises `StorageError`."""
        arrays = self._shared_arrays()
        sites = []
        for i, (name, model) in enumerate(sorted(self.sites.items())):
            arrays |= {f"site{i}/{n}": a for n, a in model.arrays().items()}
            thresholds = {k: asdict(t) for k, t in model.thresholds.items()}
            entry = {"name": name, "n_images": model.n_images} | model.values()
            sites.append(entry | {"thresholds": thresholds})
        values = {"schema": self.schema, "kind": self.kind, "method": self.method}
        values["data"] = self.data
        write_arrays(
            folder / DETECTOR_FILE, arrays, values | self._shared_values() | {"sites": sites}
        )

    @property
    def schema(self) -> int:
        """Version of its file, which an earlier fedvad may not read."""
        return 1

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run; raises `ArtefactError` when it is incomplete, damaged or of another kind."""
        path = run_file(folder)
        arrays, values = read_arrays(path)
        kind = run_class(values.get("kind"))
        if kind is None:
            raise ArtefactError(f"{path} holds a {values.get('kind')}, not a run")
        if not issubclass(kind, cls):
            raise ArtefactError(
                f"{folder} holds {kind.holds}, and {cls.holds} is needed here; `fedvad evaluate`, "
                "`predict`, `serve`, `export` and `inspect` take it, and `fedvad.load`"
            )
        return kind.from_arrays(arrays, values, path)

    @classmethod
    def from_arrays(cls, arrays: Arrays, values: dict[str, Any], path: Path) -> Self:
        """What `save` wrote, as `read_arrays` gives it; raises `ArtefactError`."""
        described = parse_values(cls.described, values, path)
        check_finite(arrays, cls._must_be_finite(values), str(path))
        shared = {name: array for name, array in arrays.items() if not _OWN.match(name)}
        own = [under(f"site{i}/", arrays) for i in range(len(described.sites))]
        try:
            thresholds = [
                {str(k): threshold_from(t) for k, t in site.thresholds.items()}
                for site in described.sites
            ]
            if left := {n for n in arrays if _OWN.match(n)} - {
                f"site{i}/{n}" for i, found in enumerate(own) for n in found
            }:
                raise ArtefactError(f"array {min(left)!r} belongs to no site")
            features = feature_identity(values, path)
            return cls._assembled(Parts(shared, described, own, thresholds, features))
        except (KeyError, ConfigError, ArtefactError, MemoryBankError) as error:
            raise ArtefactError(
                f"{path} is incomplete or damaged: {error}; restore it from a copy, or train again"
            ) from error

    @abstractmethod
    def _shared_arrays(self) -> Arrays:
        """Arrays of all sites together, by name."""

    @abstractmethod
    def _shared_values(self) -> dict[str, Any]:
        """JSON values of all sites together, `features` among them, in the order of the file."""

    @classmethod
    @abstractmethod
    def _assembled(cls, parts: Parts) -> Self:
        """The run of a file's parts; raises what `from_arrays` makes an `ArtefactError`."""

    @classmethod
    def _must_be_finite(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a file in which no number may be NaN or infinite."""
        return {}

    def _own_threshold(self, model: SiteModel, reference: Reference) -> Threshold | None:
        return model.thresholds.get(reference)


def middle(thresholds: Sequence[Threshold]) -> Threshold | None:
    """The (upper) median by value, for sites without one of their own; None of none."""
    return sorted(thresholds, key=lambda t: t.value)[len(thresholds) // 2] if thresholds else None


def check_folder(folder: Path) -> None:
    """Raise `ArtefactError` unless a run's folder is there and is a folder."""
    if not folder.is_dir():
        why = "is a file" if folder.is_file() else "does not exist"
        raise ArtefactError(
            f"run folder {folder} {why}: give the folder that `fedvad train --out` wrote"
        )


def run_file(folder: Path) -> Path:
    """The file of a run in its folder; raises `ArtefactError` where there is none."""
    check_folder(folder)
    path = folder / DETECTOR_FILE
    if not path.is_file():
        if (folder / "state").is_dir():
            mend = "; its training was interrupted: finish it with --resume"
        elif (folder / CONFIG_FILE).is_file():
            mend = ", which was removed: restore it from a copy, or train again"
        else:
            mend = ": give the folder that `fedvad train --out` wrote"
        raise ArtefactError(f"{folder} is not a run folder: it holds no {DETECTOR_FILE}{mend}")
    return path
