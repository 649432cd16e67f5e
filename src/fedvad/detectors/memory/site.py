"""One site's dynamic memory bank: how it is filled, shaped and renewed from round to round.

Source: FedDyMem (arXiv 2502.21012, abstract) for the parts; their forms are ours, see
docs/methods/feddymem.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory.answered import AnsweredPatches
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.metric_loss import MetricLossConfig, TrainingLog, train_generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ConfigError, MemoryBankError, check_choice
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.coreset import CandidateSampler
from fedvad.memory.kmeans import weighted_kmeans
from fedvad.memory.origin import Origin, Source, origin_arrays, origin_from
from fedvad.memory.private import PrivatePositionMeans
from fedvad.memory.reduce import PositionMeans, ReduceMode, cells, reduce_patches, renew

Anchors = Literal["global", "local", "union"]
Reduce = Literal["coreset", "cluster", "position"]
Update = Literal["grow", "ema"]
ROUNDS = 2  # of exchange, by default
_ANCHORS: dict[str, int] = {"restarts": 1, "max_iterations": 10, "projection": 64}


@dataclass(frozen=True)
class FedDyMemConfig:
    """Options of a site's memory; `docs/methods/feddymem.md` says which were measured how.

    rows: vectors a site may upload per round.
    reduce: how patches become rows (`coreset`, `cluster`, `position`); pull: see `reduce_patches`.
    update: `grow` adds, each round, the rows that the memory known so far covers worst; `ema`
        keeps the rows of round one and moves them by exponential averaging.
    ema: share of the old bank that an `ema` round keeps.
    candidates: share of all patches sampled afresh each round; candidate_bytes: its bound.
    projection: dimensions in which coresets are chosen (None: all).
    train: whether the generator is trained (else it stays the identity).
    anchors: what the metric loss pulls to from the second round on.
    min_count: distinct images that every row must be an average of.
    clip, noise: of `PrivatePositionMeans`; both only with reduce `position`.
    """

    rows: int = 1500
    reduce: Reduce = "coreset"
    pull: float = 0.0
    update: Update = "grow"
    ema: float = 0.5
    candidates: float = 0.25
    candidate_bytes: int = 64 << 20
    projection: int | None = 64
    train: bool = False
    anchors: Anchors = "global"
    min_count: int = 1
    clip: float | None = None
    noise: float = 0.0
    loss: MetricLossConfig = field(default_factory=MetricLossConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)

    def __post_init__(self) -> None:
        check_choice("reduce", self.reduce, Reduce)
        check_choice("update", self.update, Update)
        check_choice("anchors", self.anchors, Anchors)
        if self.rows < 1 or not 0 <= self.ema < 1:
            raise ConfigError("rows must be at least 1 and ema in [0, 1)")
        if self.min_count < 1 or self.noise < 0:
            raise ConfigError("min_count must be at least 1 and noise at least 0")
        if self.min_count > 1 and self.reduce == "coreset" and self.pull < 1:
            raise ConfigError(
                "min_count needs averaged rows: use reduce 'cluster' or 'position', or pull 1"
            )
        if self.noise and self.clip is None:
            raise ConfigError("noise needs clip, the bound that it is calibrated to")
        if self.clip is not None and (self.reduce != "position" or self.train):
            raise ConfigError(
                "clip and noise go with reduce 'position' and an untrained generator only: other "
                "rows are grouped by looking at the data, which noise on them does not cover"
            )
        if self.update == "grow" and self.reduce == "position":
            raise ConfigError(
                "update 'grow' keeps earlier rows, and reduce 'position' would send the same means "
                "each round; use update 'ema'"
            )


def round_seed(seed: int, round_: int) -> int:
    """Seed of what a site draws in a round."""
    return seed * 1009 + round_


class MemorySite:
    """The state of one site between rounds: bank, generator, and what its features look like.

    bank: the rows this site has contributed so far, as descriptors: what a generator makes of
    them is for its site alone. generator: this site's own. radius: see `TrainingLog`. rounds: how
    many are expected; their samples are drawn in as few passes as `candidate_bytes` allows.
    answered: what people said of images; with update `grow` the next rounds send the patches of
    normal ones that the bank does not hold before any others, and none that is more like a defect.
    reserved: rows of a round whose place something else takes.
    """

    def __init__(
        self, features: NormalFeatures, config: FedDyMemConfig, *, seed: int, rounds: int = 1
    ) -> None:
        self.features = features
        self.rounds = rounds
        self.config = config
        self.seed = seed
        height, width, dim = features.extractor.grid
        self.dim = dim
        self.patches_per_image = height * width
        self.generator = Generator.identity(dim)
        self.radius = 1.0
        self.bank = MemoryBank.empty(dim)
        self.training: list[TrainingLog] = []
        self.answered = AnsweredPatches()
        self.reserved = 0
        self._ahead: dict[int, CandidateSampler] = {}
        self._images = np.zeros(0, np.int64)

    @property
    def n_patches(self) -> int:
        """Patches of all training images: what the site's memory stands for."""
        return len(self.features) * self.patches_per_image

    @property
    def spread(self) -> float | None:
        """Share of the raw features' spread that the trained generator kept, if one was trained."""
        return self.training[-1].spread[-1] if self.training else None

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """Bank and generator as named arrays; the generator's are left out while it is none."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "vectors": self.bank.vectors,
            "weights": self.bank.weights,
            "spread": self.bank.spread,
            **origin_arrays(self.bank.origin),
        }
        if not self.generator.is_identity:
            arrays["generator/weight"] = self.generator.weight
            arrays["generator/bias"] = self.generator.bias
            arrays["generator/radius"] = np.array([self.radius])
        return arrays

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue from a `snapshot`; raises KeyError or `MemoryBankError` for what is none."""
        origin = origin_from(arrays, len(arrays["weights"]))
        self.bank = MemoryBank(arrays["vectors"], arrays["weights"], arrays["spread"], origin)
        self.generator, self.radius = Generator.identity(self.dim), 1.0
        if "generator/weight" in arrays:
            if "generator/radius" not in arrays:
                raise MemoryBankError(
                    "an earlier fedvad trained this site's generator, and moved the rows of its "
                    "memory with it: begin the federation again"
                )
            self.generator = Generator(arrays["generator/weight"], arrays["generator/bias"])
            self.radius = float(arrays["generator/radius"][0])

    def update(self, round_: int, known: MemoryBank | None) -> MemoryBank:
        """One round: sample, train if wanted, renew the bank; returns the rows to send.

        `known` is the memory handed back so far. What is returned, and whether it adds to
        (`grow`) or replaces (`ema`) what was sent before, is the configuration's choice.
        """
        if self.config.reduce == "position":
            if self.config.train:
                self._train(self._sample(round_), known, round_)
            return self._replace(self._position_means(), round_)
        patches = self._sample(round_)
        if self.config.train:
            self._train(patches, known, round_)
        if self.config.update == "grow":
            return self._grow(patches, known, round_)
        if len(self.bank) == 0:
            return self._replace(self._reduce(patches, round_), round_)
        moved = renew(
            self.bank,
            patches,
            keep=self.config.ema,
            images=self._images,
            min_count=self.config.min_count,
        )
        return self._replace(moved, round_)

    def sample_ahead(self, round_: int = 1) -> Callable[[npt.NDArray[np.float16]], None]:
        """Begin the samples of this round and of following ones; give them each image in turn.

        For a pass over the features that somebody else makes anyway, such as their first.
        """
        first = self._sampler(round_)
        self._ahead = {round_: first}
        together = self.config.candidate_bytes // max(1, first.nbytes)
        for following in range(round_ + 1, min(self.rounds + 1, round_ + together)):
            self._ahead[following] = self._sampler(following)
        samplers = list(self._ahead.values())

        def take(descriptors: npt.NDArray[np.float16]) -> None:
            for sampler in samplers:
                sampler.add(descriptors)

        return take

    def _sample(self, round_: int) -> FloatArray:
        ahead = self._ahead.get(round_)
        # an unreadable image shifts what a sampler made for more images takes of each
        if ahead is None or not ahead.complete or ahead.n_images != len(self.features):
            take = self.sample_ahead(round_)
            for descriptors in self.features:
                take(descriptors)
        sampler = self._ahead.pop(round_)
        self._images = sampler.images()
        return sampler.result()

    def _sampler(self, round_: int) -> CandidateSampler:
        return CandidateSampler(
            n_images=len(self.features),
            patches_per_image=self.patches_per_image,
            dim=self.dim,
            fraction=self.config.candidates,
            max_bytes=self.config.candidate_bytes,
            seed=round_seed(self.seed, round_),
        )

    def _train(self, raw: FloatArray, known: MemoryBank | None, round_: int) -> None:
        """Towards averages: single patches that a coreset chose are the extremes of the normal."""
        seed = round_seed(self.seed, round_)
        anchors = []
        if known is None or self.config.anchors != "global":
            own = self.bank if len(self.bank) else self._reduce(raw, round_)
            anchors.append(cells(raw, own.vectors, pull=1.0))
        if known is not None and self.config.anchors != "local":
            anchors.append(weighted_kmeans(known, self.config.rows, seed=seed, **_ANCHORS))
        self.generator, training = train_generator(
            self.generator,
            raw,
            self.generator(concatenate(anchors).vectors),
            self.config.loss,
            seed=seed,
            radius=self.radius,
        )
        self.radius = training.radius
        self.training.append(training)

    def _reduce(
        self,
        patches: FloatArray,
        round_: int,
        known: MemoryBank | None = None,
        rows: int | None = None,
    ) -> MemoryBank:
        mode: ReduceMode = "cluster" if self.config.reduce == "cluster" else "coreset"
        growing = self.config.update == "grow"
        return reduce_patches(
            patches,
            rows or self.config.rows,
            mode=mode,
            seed=round_seed(self.seed, round_),
            pull=self.config.pull,
            initial=known.vectors if known is not None else None,
            near=self.bank.vectors if growing else None,
            projection=self.config.projection,
            images=self._images,
            min_count=self.config.min_count,
            origin=self._origin(round_, len(patches), mode == "coreset" and self.config.pull == 0),
        )

    def _grow(self, patches: FloatArray, known: MemoryBank | None, round_: int) -> MemoryBank:
        most = self.config.rows - self.reserved
        defective = self.answered.like_defects(patches, self.bank, known)
        if defective.any() and not defective.all():
            patches, self._images = patches[~defective], self._images[~defective]
        answered = self.answered.rows(self.bank, self.features.where, round_, most)
        if len(answered):
            known = answered if known is None else concatenate([known, answered])
        room = most - len(answered)
        new = self._reduce(patches, round_, known, room) if room else MemoryBank.empty(self.dim)
        new = concatenate([answered, new]) if len(answered) else new
        if len(new) == 0 and len(self.bank):  # a sign of life, which weighs one patch
            return MemoryBank(self.bank.vectors[:1], np.ones(1), self.bank.spread[:1])
        if len(new) == 0:  # of a newcomer, whose patches others have sent
            new = self._reduce(patches, round_, rows=1)
        new = self._scaled(new)
        self.bank = self._scaled(concatenate([self.bank, new]))
        return new

    def _replace(self, bank: MemoryBank, round_: int) -> MemoryBank:
        # rows of this way to update are averages, or were moved: of no one image
        self.bank = replace(self._scaled(bank), origin=self._origin(round_, len(bank)))
        return self.bank

    def _origin(self, round_: int, rows: int, images: bool = False) -> Origin:
        """Of this many rows of a round; of the sampled patches with their images."""
        site = self.features.where
        if not images:
            return Origin.of([Source(site, round_)], np.zeros(rows, np.int64))
        sources = [Source(site, round_, digest) for digest in self.features.digests]
        return Origin.of(sources, self._images)

    def _scaled(self, bank: MemoryBank) -> MemoryBank:
        return bank.rescaled(float(self.n_patches))

    def _position_means(self) -> MemoryBank:
        if len(self.features) < self.config.min_count:
            raise ConfigError(
                f"{self.features.where} has {len(self.features)} images, fewer than min_count = "
                f"{self.config.min_count}: lower it, or omit this site"
            )
        means = PositionMeans()
        if self.config.clip is not None:
            # not the run's seed: whoever knows that could take the noise off again
            means = PrivatePositionMeans(
                clip=self.config.clip, noise=self.config.noise, rng=np.random.default_rng()
            )
        for descriptors in self.features:
            means.add(to_float(descriptors)[None])
        fresh = means.result()
        if len(self.bank) == 0:
            return fresh
        keep = self.config.ema
        return MemoryBank(
            keep * self.bank.vectors + (1 - keep) * fresh.vectors,
            fresh.weights,
            keep * self.bank.spread + (1 - keep) * fresh.spread,
        )
