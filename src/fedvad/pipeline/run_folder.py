"""A run on disk: one detector file for all sites, and everything that explains it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from fedvad.data.checked import check_finite, parse_values
from fedvad.data.files import write_atomically
from fedvad.data.sealed import finite, parse_json, read_sealed, sha256_of, write_sealed
from fedvad.detectors.artefact import feature_identity, read_arrays, write_arrays
from fedvad.detectors.feddymem import FedDyMem, MemoryDetector
from fedvad.detectors.generator import Generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ArtefactError, ConfigError, MemoryBankError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.density import holds
from fedvad.pipeline.config import Reference, TrainConfig
from fedvad.pipeline.run_region import found_region, stored_region
from fedvad.pipeline.run_values import RunValues, threshold_from

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
    "read_results",
    "read_run",
    "threshold_from",
    "write_config",
    "write_json",
    "write_ledger",
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

    data: fingerprint of the images, by which a split of them is recognised. scale: by what
    distances to the rows of the memory are divided, see `distance_scale`; kept with the run, since
    finding it takes seconds.
    """

    memory: MemoryBank
    sites: dict[str, SiteModel]
    scoring: ScoringConfig
    reference: Reference
    features: FeatureConfig
    method: str
    data: str = ""
    scale: FloatArray | None = None

    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> MemoryDetector:
        """The detector of a site; of one that never trained (or None) the global memory's.

        Raises `MismatchError` when the extractor gives other features, `ConfigError` when a
        reference needs a memory that the site does not have, `ArtefactError` for a memory that
        does not fit the features.
        """
        self.features.check_same(extractor.config, "this run")
        if extractor.grid[2] != self.memory.dim:
            raise ArtefactError(
                f"this run is damaged: its memory has {self.memory.dim} values a row, the features "
                f"have {extractor.grid[2]}; train again"
            )
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
            return detector.with_memory(self.memory, scale=self.scale)
        if reference == "global":
            return detector.with_memory(self.memory, model.generator, self.scale)
        local = reference == "local"
        bank = model.bank if local else concatenate([self.memory, model.bank])
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
        """The reference set that scores; a site without its own memory defaults to the global.

        Raises `ConfigError` for another word: to what follows it would mean the union.
        """
        if wanted is not None and wanted not in get_args(Reference):
            raise ConfigError(
                f"unknown reference {wanted!r}; choose from {', '.join(get_args(Reference))}"
            )
        if site in self.sites:
            return wanted or self.reference
        return "global" if wanted in (None, "union") else wanted

    def save(self, folder: Path) -> None:
        """Write `detector.safetensors` into `folder`; raises `StorageError`."""
        arrays: dict[str, npt.NDArray[Any]] = _bank_arrays("global", self.memory)
        if self.scale is not None:
            arrays["global/scale"] = self.scale
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
        told = parse_values(RunValues, values, str(path))
        check_finite(arrays, {}, str(path))
        left = dict(arrays)
        try:
            memory = _bank("global", left)
            scale = _scale(left.pop("global/scale", None), len(memory))
            sites = {}
            for i, site in enumerate(told.sites):
                bank = _bank(f"site{i}", left)
                generator = Generator.identity(bank.dim)
                if f"site{i}/generator/weight" in left:
                    generator = Generator(
                        left.pop(f"site{i}/generator/weight"), left.pop(f"site{i}/generator/bias")
                    )
                    if generator.hash() != site.generator:
                        raise MemoryBankError(f"the generator of {site.name!r} is another one")
                if bank.dim != memory.dim:
                    raise MemoryBankError(
                        f"site {site.name!r} has {bank.dim} values a row, the global memory "
                        f"{memory.dim}"
                    )
                thresholds = {str(k): threshold_from(t) for k, t in site.thresholds.items()}
                sites[site.name] = SiteModel(bank, generator, thresholds, site.n_images)
            if left:
                raise MemoryBankError(f"array {min(left)!r} belongs to no site")
            return cls(
                memory=memory,
                sites=sites,
                scoring=ScoringConfig.from_values(told.scoring),
                reference=told.reference,
                features=feature_identity(values, path),
                method=told.method,
                data=told.data,
                scale=scale,
            )
        except (KeyError, ConfigError, ArtefactError, MemoryBankError) as error:
            raise ArtefactError(f"{path} is incomplete or damaged: {error}") from error


def middle(thresholds: Sequence[Threshold]) -> Threshold | None:
    """The (upper) median by value, for sites without one of their own; None of none."""
    return sorted(thresholds, key=lambda t: t.value)[len(thresholds) // 2] if thresholds else None


def write_config(folder: Path, config: TrainConfig) -> None:
    """Store the resolved configuration."""
    values = config.model_dump(mode="json") | {"region": stored_region(folder, config.region)}
    write_sealed(folder / CONFIG_FILE, values)


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run; raises `ArtefactError` when it is missing or damaged.

    People change it by hand (another device, another place of the weights): that is a warning.
    """
    path = folder / CONFIG_FILE
    config = parse_values(TrainConfig, read_sealed(path, editable=True), str(path))
    return config.model_copy(update={"region": found_region(folder, config.region)})


def write_ledger(folder: Path, ledger: Ledger, *, vouches_for: Sequence[str] = ()) -> None:
    """Store the ledger, with the SHA-256 of other files of the folder as they are now."""
    files = {name: sha256_of((folder / name).read_bytes()) for name in vouches_for}
    write_sealed(folder / LEDGER_FILE, ledger.model_dump() | ({"files": files} if files else {}))


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a run, an empty one where it has none; raises `ArtefactError` for a damaged."""
    return _ledger(folder)[0]


def read_results(folder: Path) -> dict[str, Any]:
    """What `train` returned; raises `ArtefactError` when it is missing or damaged."""
    path = folder / RESULTS_FILE
    told = _ledger(folder)[1].get(RESULTS_FILE)
    try:
        data = path.read_bytes()
        results = parse_json(data)
        if not isinstance(results, dict):
            raise ValueError("it holds no table of values")
    except (OSError, ValueError) as error:
        raise ArtefactError(f"cannot read {path}, it is missing or damaged: {error}") from error
    if told not in (None, sha256_of(data)):
        raise ArtefactError(
            f"{path} was damaged or changed after it was written: restore it from a copy, or train "
            "again"
        )
    return results


def _ledger(folder: Path) -> tuple[Ledger, dict[str, Any]]:
    path = folder / LEDGER_FILE
    if not path.exists():
        return Ledger(), {}
    values = read_sealed(path)
    files = values.pop("files", {})
    return parse_values(Ledger, values, str(path)), files if isinstance(files, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any parser reads: NaN and infinity become null."""
    write_atomically(path, json.dumps(finite(value), indent=2, allow_nan=False).encode())


def _scale(values: npt.NDArray[Any] | None, rows: int) -> FloatArray | None:
    if values is None:
        return None
    if values.dtype != np.float32 or values.shape != (rows,) or (values <= 0).any():
        raise MemoryBankError(f"the scale of distances does not fit a memory of {rows} rows")
    return values


def _bank_arrays(prefix: str, bank: MemoryBank) -> dict[str, npt.NDArray[Any]]:
    return {
        f"{prefix}/vectors": bank.vectors,
        f"{prefix}/weights": bank.weights,
        f"{prefix}/spread": bank.spread,
    }


def _bank(prefix: str, arrays: dict[str, npt.NDArray[Any]]) -> MemoryBank:
    """Taken out of `arrays`; raises `KeyError`, `MemoryBankError`."""
    parts = [arrays.pop(f"{prefix}/{name}") for name in ("vectors", "weights", "spread")]
    for part in parts:
        if part.dtype.kind != "f":
            raise MemoryBankError(f"memory {prefix!r} holds {part.dtype}, not floating point")
    return MemoryBank(*parts)


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
