"""A run of memories: one that sites share, and each site's own bank and generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvad.detectors.memory.feddymem import MemoryDetector
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.registry import create
from fedvad.detectors.scoring import ScoringConfig, distance_scale
from fedvad.detectors.student.parameters import under, weights_hash
from fedvad.errors import ArtefactError, ConfigError, MemoryBankError, join_names
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.density import holds
from fedvad.memory.origin import ORIGIN_ARRAYS, origin_arrays, origin_from
from fedvad.runs.answers import (
    Answer,
    AnswerValues,
    answer_rows,
    answer_values,
    answers_from,
    believed,
    with_answers,
)
from fedvad.runs.config import Reference, TrainConfig
from fedvad.runs.families import detector_of
from fedvad.runs.run import Arrays, Parts, Run, RunValues, SiteModel, SiteValues

__all__ = ["SiteMemory", "TrainedRun", "memory_detector"]

_NEGATIVES = "negatives/"


class _SiteValues(SiteValues):
    generator: str  # hash of its parameters
    raw: bool = False  # see `SiteMemory`; earlier files do not say
    answers: list[AnswerValues] = Field(default_factory=list)


class _RunValues(RunValues):
    kind: Literal["run"]
    reference: Reference
    scoring: dict[str, Any]
    sites: list[_SiteValues]


@dataclass(frozen=True, eq=False)
class SiteMemory(SiteModel):
    """A site's bank and generator, and what was said there of single images.

    raw: whether rows of memories are descriptors, which the generator has yet to embed. An earlier
    fedvad kept and sent rows as the generators of their sites had made them.
    """

    bank: MemoryBank
    generator: Generator
    answers: tuple[Answer, ...] = ()
    raw: bool = True

    def arrays(self) -> Arrays:
        """See `SiteModel.arrays`; the generator's are left out while it is the identity."""
        arrays = _bank_arrays(self.bank)
        if not self.generator.is_identity:
            arrays["generator/weight"] = self.generator.weight
            arrays["generator/bias"] = self.generator.bias
        return arrays | answer_rows(self.answers)

    def values(self) -> dict[str, Any]:
        """See `SiteModel.values`."""
        embeds = {"raw": True} if self.embeds else {}
        return {"generator": self.generator.hash(), **embeds, **answer_values(self.answers)}

    @property
    def embeds(self) -> bool:
        """Whether its generator has yet to embed the rows of a memory."""
        return self.raw and not self.generator.is_identity

    def embedded(self, rows: FloatArray) -> FloatArray:
        """(k, d) rows of a memory, or patches of answers, as patches to score are seen here."""
        return self.generator(rows) if self.embeds else rows


@dataclass(frozen=True, eq=False)
class TrainedRun(Run):
    """A global memory, and the banks and generators of the sites; see `Run`.

    scoring: how distances to a memory become scores. scale: by what
    distances to the rows of the memory are divided, see `distance_scale`; kept with the run, since
    finding it takes seconds. negatives: patches of defects that sites confirmed for all to know.
    """

    kind: ClassVar[str] = "run"
    described: ClassVar[type[RunValues]] = _RunValues
    holds: ClassVar[str] = "a memory"

    memory: MemoryBank
    sites: dict[str, SiteMemory]
    scoring: ScoringConfig
    reference: Reference
    features: FeatureConfig
    method: str
    data: str = ""
    scale: FloatArray | None = None
    negatives: MemoryBank | None = None

    @classmethod
    def of(
        cls,
        memory: MemoryBank,
        sites: dict[str, SiteMemory],
        config: TrainConfig,
        features: FeatureConfig,
        data: str = "",
    ) -> TrainedRun:
        """What a configuration made."""
        return cls(
            memory=memory,
            sites=sites,
            scoring=config.scoring(),
            reference=config.reference,
            features=features,
            method=config.method,
            data=data,
            scale=distance_scale(memory, config.scoring()),
        )

    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> MemoryDetector:
        """See `Run.detector`; a reference may need a memory that the site does not have."""
        self.features.check_same(extractor.config, "this run")
        if extractor.grid[2] != self.memory.dim:
            raise ArtefactError(
                f"this run is damaged: its memory has {self.memory.dim} values a row, the features "
                f"have {extractor.grid[2]}; train again"
            )
        reference = self.chosen_reference(site, reference)
        detector = memory_detector(self.method, extractor, self.scoring)
        model = self.sites.get(site) if site is not None else None
        if model is None:
            if reference == "local":
                whose = "no site was named" if site is None else f"site {site!r} is not among them"
                raise ConfigError(
                    f"reference 'local' needs a site of this run, whose memory then scores: "
                    f"{whose}; known sites: {join_names(self.sites)}"
                )
            return detector.with_memory(self.memory, scale=self.scale)
        bank, scale, negatives = self._scoring_parts(str(site), reference)
        return detector.with_memory(
            bank, model.generator, scale, negatives if len(negatives) else None
        )

    def defects_at(self, site: str) -> FloatArray:
        """(k, d) patches of confirmed defects that count at a known site, those of others too."""
        return self._scoring_parts(site, self.chosen_reference(site, None))[2]

    def _scoring_parts(
        self, site: str, reference: Reference
    ) -> tuple[MemoryBank, FloatArray | None, FloatArray]:
        """Memory, scale of distances and negatives of a known site."""
        model, bank, scale = self.sites[site], self.memory, self.scale
        if reference != "global":
            own = model.bank
            bank, scale = own if reference == "local" else concatenate([bank, own]), None
        if len(bank) == 0:
            raise ConfigError(
                f"site {site!r} took part in no round, so it has no memory of its own; "
                "use --reference global"
            )
        if model.embeds:
            bank, scale = model.generator.embedded(bank), None
        negatives = np.zeros((0, bank.dim), np.float32)
        if model.answers:
            bank, scale, negatives = with_answers(
                bank, scale, model.answers, self.scoring, model.embedded
            )
        if self.negatives is not None:
            scale = distance_scale(bank, self.scoring) if scale is None else scale
            limit = self.threshold(site, reference)
            others = replace(self.negatives, vectors=model.embedded(self.negatives.vectors))
            found = believed(others, site, bank, scale, self.scoring, limit)
            negatives = np.concatenate([negatives, found])
        return bank, scale, negatives

    def same_for_all(self, site: str) -> bool:
        """Whether the global memory scores at a known site as it does at any other."""
        return self.negatives is None and not self.sites[site].answers

    def chosen_reference(self, site: str | None, wanted: Reference | None) -> Reference:
        """See `Run.chosen_reference`; a site without its own memory defaults to the global.

        Another word is refused: to what follows it would mean the union.
        """
        if wanted is not None and wanted not in get_args(Reference):
            raise ConfigError(
                f"unknown reference {wanted!r}; choose from {', '.join(get_args(Reference))}"
            )
        if site in self.sites:
            return wanted or (self.reference if len(self.sites[site].bank) else "global")
        return "global" if wanted in (None, "union") else wanted

    def _own_threshold(self, model: SiteModel, reference: Reference) -> Threshold | None:
        # more vectors only lower the distance to the nearest: the threshold of the global memory
        # holds for the union, too, as long as nothing else scores; the density of a memory
        # changes with its rows
        own = model.thresholds
        lends = (
            reference == "union"
            and self.scoring.map == "nn1"
            and (not self.scoring.density or holds(self.memory, cast(SiteMemory, model).bank))
        )
        return own.get(reference) or (own.get("global") if lends else None)

    def shared_hash(self) -> str:
        """See `Run.shared_hash`; of the rows alone, as the rest is computed from them."""
        return weights_hash({"vectors": self.memory.vectors})

    @property
    def schema(self) -> int:
        """See `Run.schema`: 2 where rows name their sites, 3 with defects of all sites, and where
        generators embed rows.
        """
        if self.negatives is not None or any(site.embeds for site in self.sites.values()):
            return 3
        return 1 if self.memory.origin is None else 2

    def _shared_arrays(self) -> Arrays:
        arrays = {f"global/{name}": array for name, array in _bank_arrays(self.memory).items()}
        if self.negatives is not None:
            found = _bank_arrays(self.negatives)
            arrays |= {f"global/{_NEGATIVES}{name}": array for name, array in found.items()}
        return arrays if self.scale is None else arrays | {"global/scale": self.scale}

    def _shared_values(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "scoring": asdict(self.scoring),
            "features": self.features.identity(),
        }

    @classmethod
    def _assembled(cls, parts: Parts) -> Self:
        shared, described, own, thresholds, features = parts
        prefix = "global/"
        left = {name.removeprefix(prefix): array for name, array in shared.items()}
        if strange := {name for name in shared if not name.startswith(prefix)}:
            raise MemoryBankError(f"array {min(strange)!r} belongs to no site")
        memory = _bank("global", left)
        scale = _scale(left.pop("scale", None), len(memory))
        negatives = None
        if rest := under(_NEGATIVES, left):
            left = {name: array for name, array in left.items() if not name.startswith(_NEGATIVES)}
            negatives = _bank("defects", rest)
            if negatives.dim != memory.dim or rest:
                raise MemoryBankError("the defects of all sites do not fit the global memory")
        sites = {}
        for site, arrays, limits in zip(described.sites, own, thresholds, strict=True):
            bank = _bank(site.name, arrays)
            generator = Generator.identity(bank.dim)
            if "generator/weight" in arrays:
                generator = Generator(arrays.pop("generator/weight"), arrays.pop("generator/bias"))
                if generator.hash() != site.generator:
                    raise MemoryBankError(f"the generator of {site.name!r} is another one")
            if bank.dim != memory.dim:
                raise MemoryBankError(
                    f"site {site.name!r} has {bank.dim} values a row, the global memory "
                    f"{memory.dim}"
                )
            answers = answers_from(site.answers, arrays.pop("answers", None), bank.dim)
            left |= arrays
            sites[site.name] = SiteMemory(
                bank, generator, answers, site.raw, thresholds=limits, n_images=site.n_images
            )
        if left:
            raise MemoryBankError(f"array {min(left)!r} belongs to no site")
        return cls(
            memory=memory,
            sites=sites,
            scoring=ScoringConfig.from_values(described.scoring),
            reference=described.reference,
            features=features,
            method=described.method,
            data=described.data,
            scale=scale,
            negatives=negatives,
        )


def memory_detector(
    method: str, extractor: FeatureExtractor, scoring: ScoringConfig
) -> MemoryDetector:
    """The detector of a memory method, without its memory."""
    made = create(detector_of(method), extractor=extractor, scoring=scoring)
    assert isinstance(made, MemoryDetector)  # or its family were another
    return made


def _scale(values: npt.NDArray[Any] | None, rows: int) -> FloatArray | None:
    if values is None:
        return None
    if values.ndim == 1:  # as an earlier fedvad kept it
        values = values[:, None]
    fits = values.shape in ((rows, 1), (rows, 2))
    if values.dtype != np.float32 or not fits or (values <= 0).any():
        raise MemoryBankError(f"the scale of distances does not fit a memory of {rows} rows")
    return values


def _bank_arrays(bank: MemoryBank) -> Arrays:
    arrays: Arrays = {"vectors": bank.vectors, "weights": bank.weights, "spread": bank.spread}
    return arrays | origin_arrays(bank.origin)


def _bank(whose: str, arrays: Arrays) -> MemoryBank:
    """Taken out of `arrays`; raises `KeyError`, `MemoryBankError`."""
    vectors, weights, spread = (arrays.pop(name) for name in ("vectors", "weights", "spread"))
    for part in (vectors, weights, spread):
        if part.dtype.kind != "f":
            raise MemoryBankError(f"memory {whose!r} holds {part.dtype}, not floating point")
    origin = origin_from(arrays, len(vectors))
    for name in ORIGIN_ARRAYS:
        arrays.pop(name, None)
    return MemoryBank(vectors, weights, spread, origin)
