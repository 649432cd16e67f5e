"""FedDyMem and PatchCore as detectors: one memory, one generator, one way to score."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import ImageSet
from fedvad.detectors.base import (
    Arrays,
    NormalFeatures,
    Values,
)
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.site import ROUNDS, FedDyMemConfig, MemorySite
from fedvad.detectors.patches import SCORING, PatchDetector
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.coreset import CandidateSampler
from fedvad.memory.reduce import reduce_patches

if TYPE_CHECKING:
    from fedvad.features.modules import DescriptorNet

_CONFIG = FedDyMemConfig()


def map_columns(
    scoring: ScoringConfig, network: DescriptorNet, generator: Generator, grid: tuple[int, ...]
) -> FloatArray | None:
    """What `ScoringConfig.column_weights` gives for a map of (h, w, ...) `grid`.

    None behind a trained generator, each of whose values is of all layers.
    """
    if not generator.is_identity:
        return None
    return scoring.column_weights(network.shares, grid[0] * grid[1])


@dataclass(kw_only=True, eq=False, repr=False)
class MemoryDetector(PatchDetector):
    """Scores patches by their distance to a memory bank.

    bank_: the memory, after generator_. generator_: the identity, unless it is trained.
    """

    def __post_init__(self) -> None:
        # building the index of a large memory takes a while, so what scores is kept
        self._scorer: MemoryScorer | None = None
        self._scale: FloatArray | None = None
        self._negatives: FloatArray | None = None
        self.bank_: MemoryBank | None = None
        self.generator_: Generator | None = None

    def with_memory(
        self,
        bank: MemoryBank,
        generator: Generator | None = None,
        scale: FloatArray | None = None,
        negatives: FloatArray | None = None,
    ) -> Self:
        """Adopt a memory made elsewhere, as a new site does with the global one.

        scale: what `distance_scale` gives for it, where it is known already. negatives: (k, d)
        patches of confirmed defects, see `MemoryScorer`.
        """
        self.bank_, self._scale, self._scorer = bank, scale, None
        self._negatives = negatives
        self.generator_ = generator or Generator.identity(bank.dim)
        return self

    def embedded(self, descriptors: FloatArray) -> FloatArray:
        """See `PatchDetector.embedded`."""
        assert self.generator_ is not None  # there is one wherever there is a memory
        return self.generator_(descriptors)

    def facts(self) -> dict[str, Any]:
        """See `Detector.facts`."""
        assert self.bank_ is not None
        assert self.generator_ is not None
        bank, generator = self.bank_, self.generator_.hash()
        memory = {"rows": len(bank), "dim": bank.dim, "generator": generator}
        return {"scoring": asdict(self.scoring), "memory": memory}

    @property
    def memory_rows(self) -> int:
        """See `Detector.memory_rows`."""
        return 0 if self.bank_ is None else len(self.bank_)

    @property
    def scorer(self) -> MemoryScorer:
        """What scores against the memory; raises `ConfigError` before there is one."""
        if self.bank_ is None:
            raise ConfigError(f"{self.name} has no memory yet: call fit() or with_memory() first")
        if self._scorer is None:
            assert self.generator_ is not None
            columns = map_columns(
                self.scoring, self.extractor.network, self.generator_, self.extractor.grid
            )
            self._scorer = MemoryScorer(
                self.bank_, self.scoring, scale=self._scale, negatives=self._negatives,
                columns=columns,
            )  # fmt: skip
        return self._scorer

    def state(self) -> tuple[Arrays, Values]:
        """See `Detector.state`."""
        if self.bank_ is None or self.generator_ is None:
            raise ConfigError(f"{self.name} has learned nothing to save: call fit() first")
        arrays: dict[str, npt.NDArray[Any]] = {
            "bank/vectors": self.bank_.vectors,
            "bank/weights": self.bank_.weights,
            "bank/spread": self.bank_.spread,
        }
        if not self.generator_.is_identity:
            arrays["generator/weight"] = self.generator_.weight
            arrays["generator/bias"] = self.generator_.bias
        return arrays, {"scoring": asdict(self.scoring), "seed": self.seed}

    @classmethod
    def from_state(cls, arrays: Arrays, values: Values, *, extractor: FeatureExtractor) -> Self:
        """See `Detector.from_state`."""
        detector = cls(
            extractor=extractor,
            scoring=ScoringConfig.from_values(values["scoring"]),
            seed=values["seed"],
        )
        generator = None
        if "generator/weight" in arrays:
            generator = Generator(arrays["generator/weight"], arrays["generator/bias"])
        bank = MemoryBank(arrays["bank/vectors"], arrays["bank/weights"], arrays["bank/spread"])
        return detector.with_memory(bank, generator)


@dataclass(kw_only=True, eq=False, repr=False)
class PatchCore(MemoryDetector):
    """A k-center coreset of normal patches (Roth et al. 2022), of `rows` vectors."""

    name: ClassVar[str] = "patchcore"

    rows: int = FedDyMemConfig.rows
    candidates: float = FedDyMemConfig.candidates
    projection: int | None = FedDyMemConfig.projection

    def fit(self, images: ImageSet) -> Self:
        """See `Detector.fit`; the memory is what a site of a federation sends in one round."""
        config = FedDyMemConfig(
            rows=self.rows, candidates=self.candidates, projection=self.projection
        )
        return self.with_memory(
            MemorySite(self._features(images), config, seed=self.seed).update(1, None)
        )

    def fit_features(self, *sites: NormalFeatures) -> Self:
        """Fit on descriptors already read, of several sites pooled."""
        pooled, total = [], sum(map(len, sites))
        for features in sites:
            height, width, dim = features.extractor.grid
            sampler = CandidateSampler(
                n_images=len(features),
                patches_per_image=height * width,
                dim=dim,
                fraction=self.candidates,
                max_bytes=(1 << 30) * len(features) // max(1, total),
                seed=self.seed,
            )
            for descriptors in features:
                sampler.add(descriptors)
            pooled.append(sampler.result())
        bank = reduce_patches(
            np.concatenate(pooled),
            self.rows,
            mode="coreset",
            seed=self.seed,
            projection=self.projection,
        )
        return self.with_memory(bank)


@dataclass(kw_only=True, eq=False, repr=False)
class FedDyMem(MemoryDetector):
    """The dynamic memory of a single site; a federation merges the memories of several.

    scoring: None takes that of `config`.
    """

    name: ClassVar[str] = "feddymem"

    config: FedDyMemConfig = _CONFIG
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scoring is SCORING:
            self.scoring = self.config.scoring

    def fit(self, images: ImageSet) -> Self:
        """See `Detector.fit`."""
        site = MemorySite(self._features(images), self.config, seed=self.seed, rounds=self.rounds)
        for round_ in range(1, self.rounds + 1):
            site.update(round_, site.bank if len(site.bank) else None)
        return self.with_memory(site.generator.embedded(site.bank), site.generator)
