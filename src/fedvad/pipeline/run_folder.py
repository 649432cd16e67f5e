"""A run on disk: one detector file for all sites, and everything that explains it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedvad.data.files import write_atomically
from fedvad.detectors.artefact import feature_identity, read_arrays, write_arrays
from fedvad.detectors.feddymem import FedDyMem, MemoryDetector
from fedvad.detectors.generator import Generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ArtefactError, ConfigError, MemoryBankError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.memory.density import holds
from fedvad.pipeline.config import Reference, TrainConfig

__all__ = [
    "CONFIG_FILE",
    "DETECTOR_FILE",
    "LEDGER_FILE",
    "RESULTS_FILE",
    "SiteModel",
    "TrainedRun",
    "finite",
    "middle",
    "read_config",
    "read_ledger",
    "read_run",
    "threshold_from",
    "write_config",
    "write_json",
]

DETECTOR_FILE = "detector.safetensors"
CONFIG_FILE = "config.json"
LEDGER_FILE = "ledger.json"
RESULTS_FILE = "results.json"


@dataclass(frozen=True, eq=False)
class SiteModel:
    """What is a site's own: its bank, its generator, its thresholds by reference set.

    n_images: normal images it trained on.
    """

    bank: MemoryBank
    generator: Generator
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    n_images: int = 0


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """The result of a federated training: global memory and the sites' own parts.

    data: fingerprint of the images, by which a split of them is recognised.
    """

    memory: MemoryBank
    sites: dict[str, SiteModel]
    scoring: ScoringConfig
    reference: Reference
    features: FeatureConfig
    method: str
    data: str = ""

    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> MemoryDetector:
        """The detector of a site; of one that never trained (or None) the global memory's.

        Raises `MismatchError` when the extractor gives other features, `ConfigError` when a
        reference needs a memory that the site does not have.
        """
        self.features.check_same(extractor.config, "this run")
        reference = self._reference(site, reference)
        detector = FedDyMem(extractor=extractor, scoring=self.scoring)
        model = self.sites.get(site) if site is not None else None
        if model is None:
            if reference == "local":
                whose = "no site was named" if site is None else f"site {site!r} is not among them"
                raise ConfigError(
                    f"reference 'local' is the own memory of a site of this run: {whose}; "
                    f"known sites: {sorted(self.sites)}"
                )
            return detector.with_memory(self.memory)
        if reference == "global":
            bank = self.memory
        elif reference == "local":
            bank = model.bank
        else:
            bank = concatenate([self.memory, model.bank])
        if len(bank) == 0:
            raise ConfigError(
                f"site {site!r} took part in no round, so it has no memory of its own; "
                "use --reference global"
            )
        return detector.with_memory(bank, model.generator)

    def threshold(self, site: str | None, reference: Reference | None = None) -> Threshold | None:
        """A site's threshold; for an unknown site the median of the known ones."""
        reference = self._reference(site, reference)
        if site in self.sites:
            own = self.sites[site].thresholds
            # more vectors only lower the distance to the nearest: the threshold of the global
            # memory holds for the union, too, as long as nothing else scores; the density of a
            # memory changes with its rows
            lends = (
                reference == "union"
                and self.scoring.map == "nn1"
                and (not self.scoring.density or holds(self.memory, self.sites[site].bank))
            )
            return own.get(reference) or (own.get("global") if lends else None)
        known = [m.thresholds[reference] for m in self.sites.values() if reference in m.thresholds]
        return middle(known)

    def _reference(self, site: str | None, wanted: Reference | None) -> Reference:
        """The reference set that scores; a site without its own memory defaults to the global."""
        if site in self.sites:
            return wanted or self.reference
        return "global" if wanted in (None, "union") else wanted

    def save(self, folder: Path) -> None:
        """Write `detector.safetensors` into `folder`; raises `StorageError`."""
        arrays: dict[str, npt.NDArray[Any]] = _bank_arrays("global", self.memory)
        described = []
        for i, (name, model) in enumerate(sorted(self.sites.items())):
            arrays |= _bank_arrays(f"site{i}", model.bank)
            if not model.generator.is_identity:
                arrays[f"site{i}/generator/weight"] = model.generator.weight
                arrays[f"site{i}/generator/bias"] = model.generator.bias
            described.append(
                {
                    "name": name,
                    "n_images": model.n_images,
                    "generator": model.generator.hash(),
                    "thresholds": {k: asdict(t) for k, t in model.thresholds.items()},
                }
            )
        values = {
            "kind": "run",
            "method": self.method,
            "data": self.data,
            "reference": self.reference,
            "scoring": asdict(self.scoring),
            "features": self.features.identity(),
            "sites": described,
        }
        write_arrays(folder / DETECTOR_FILE, arrays, values)

    @classmethod
    def load(cls, folder: Path) -> TrainedRun:
        """Read a run; raises `ArtefactError` when it is incomplete or damaged, or a student's."""
        arrays, values, path = read_run(folder)
        if values.get("kind") == "student run":
            raise ArtefactError(
                f"{folder} holds a student and no memory: `fedvad evaluate`, `predict` and "
                "`inspect` take it, and `fedvad.load`"
            )
        return cls.from_arrays(arrays, values, path)

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, npt.NDArray[Any]], values: dict[str, Any], path: Path
    ) -> TrainedRun:
        """What `save` wrote, as `read_arrays` gives it; raises `ArtefactError`."""
        if values.get("kind") != "run":
            raise ArtefactError(f"{path} holds a {values.get('kind')}, not a run")
        try:
            sites = {}
            for i, site in enumerate(values["sites"]):
                bank = _bank(f"site{i}", arrays)
                generator = Generator.identity(bank.dim)
                if f"site{i}/generator/weight" in arrays:
                    generator = Generator(
                        arrays[f"site{i}/generator/weight"], arrays[f"site{i}/generator/bias"]
                    )
                thresholds = {k: threshold_from(t) for k, t in site["thresholds"].items()}
                sites[site["name"]] = SiteModel(bank, generator, thresholds, site["n_images"])
            return cls(
                memory=_bank("global", arrays),
                sites=sites,
                scoring=ScoringConfig.from_values(values["scoring"]),
                reference=values["reference"],
                features=feature_identity(values, path),
                method=values["method"],
                data=values["data"],
            )
        except (KeyError, TypeError, AttributeError, ValueError, MemoryBankError) as error:
            raise ArtefactError(f"{path} is incomplete or damaged: {error}") from error


def middle(thresholds: Sequence[Threshold]) -> Threshold | None:
    """The (upper) median by value, for sites without one of their own; None of none."""
    return sorted(thresholds, key=lambda t: t.value)[len(thresholds) // 2] if thresholds else None


def threshold_from(values: dict[str, Any]) -> Threshold:
    """The threshold whose `asdict` this was, read back from JSON."""
    return Threshold(**values | {"scores": tuple(values.get("scores", ()))})


def write_config(folder: Path, config: TrainConfig) -> None:
    """Store the resolved configuration."""
    write_atomically(folder / CONFIG_FILE, config.model_dump_json(indent=2).encode())


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run; raises `ArtefactError` when it is missing or damaged."""
    try:
        return TrainConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtefactError(f"cannot read {folder / CONFIG_FILE}: {error}") from error


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a run; an empty one when there is none that can be read."""
    try:
        return Ledger.model_validate_json((folder / LEDGER_FILE).read_bytes())
    except (OSError, ValueError):
        return Ledger()


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any parser reads: NaN and infinity become null."""
    write_atomically(path, json.dumps(finite(value), indent=2, allow_nan=False).encode())


def finite(value: Any) -> Any:
    """JSON values with NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _bank_arrays(prefix: str, bank: MemoryBank) -> dict[str, npt.NDArray[Any]]:
    return {
        f"{prefix}/vectors": bank.vectors,
        f"{prefix}/weights": bank.weights,
        f"{prefix}/spread": bank.spread,
    }


def _bank(prefix: str, arrays: dict[str, npt.NDArray[Any]]) -> MemoryBank:
    return MemoryBank(
        arrays[f"{prefix}/vectors"], arrays[f"{prefix}/weights"], arrays[f"{prefix}/spread"]
    )


def read_run(folder: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any], Path]:
    """Arrays, values and path of a run's file; raises `ArtefactError`."""
    if not folder.is_dir():
        raise ArtefactError(f"run folder {folder} does not exist")
    path = folder / DETECTOR_FILE
    if not path.is_file():
        unfinished = (folder / "state").is_dir()
        raise ArtefactError(
            f"{folder} holds no {DETECTOR_FILE}"
            + ("; its training was interrupted: finish it with --resume" if unfinished else "")
        )
    return *read_arrays(path), path
