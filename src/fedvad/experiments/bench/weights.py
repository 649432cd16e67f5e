"""Cells that average weights instead of merging memories: the alternatives a table must show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import field_validator

from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.memory.adaptor import AdaptorConfig, AdaptorDetector, AdaptorSite
from fedvad.detectors.memory.feddymem import FedDyMem
from fedvad.detectors.memory.generator_site import GeneratorConfig, GeneratorSite
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule
from fedvad.federation.payload import Payload
from fedvad.runs.config import TrainConfig
from fedvad.runs.families import METHODS, method_class
from fedvad.runs.phases import run_phases, weight_phase
from fedvad.runs.plan import site_seed
from fedvad.runs.student_config import Averaging, StudentOptions


class WeightOptions(Averaging):
    """What a `weights` row of a suite says, besides the averaging.

    part: `adaptor`, a distillation student of the descriptors; `generator`, FedDyMem's, each site
    scoring with its own memory; a method of `train` that averages a student, such as `paste`.
    bootstrap: last layer that `paste` shares. alone: each site keeps its own weights, and nothing
    is sent.
    """

    part: str = "adaptor"
    bootstrap: int | None = None
    alone: bool = False

    @field_validator("part")
    @classmethod
    def _known(cls, part: str) -> str:
        known = (*_PARTS, *(name for name in METHODS if method_class(name).sends_weights))
        if part not in known:
            raise ValueError(f"there is no part {part!r}; choose one of {', '.join(known)}")
        return part

    @property
    def is_method(self) -> bool:
        """Whether the part is a method of `train`, which runs as any other."""
        return self.part not in _PARTS

    def of_student(self, config: TrainConfig) -> TrainConfig:
        """The configuration of a student's training with the part as its method."""
        averaging = self.model_dump(include=set(Averaging.model_fields))
        student = StudentOptions(**averaging, bootstrap=self.bootstrap)
        return config.model_copy(update={"method": self.part, "student": student})


@dataclass(frozen=True, eq=False)
class Averaged:
    """Detectors by site, and what it cost to get there."""

    detectors: dict[str, Detector]
    ledger: Ledger


_PARTS = ("adaptor", "generator")
_Site = AdaptorSite | GeneratorSite


def average_weights(
    options: WeightOptions,
    config: TrainConfig,
    features: Mapping[str, NormalFeatures],
    extractor: FeatureExtractor,
) -> Averaged:
    """Train the trainable part at every site over `config.rounds` rounds, averaging or alone."""
    config = _of_members(options, config)
    trainers = {
        name: _trainer(options, config, feature, site_seed(config.seed, i))
        for i, (name, feature) in enumerate(sorted(features.items()))
    }
    initial = parameters_of(next(iter(trainers.values())).student)
    ledger = Ledger()
    groups = [[name] for name in trainers] if options.alone else [list(trainers)]
    trained: dict[str, Payload] = {}
    for group in groups:
        phase = weight_phase(
            "",
            {name: trainers[name] for name in group},
            initial,
            options.terms(),
            Schedule(config.rounds, config.participation, config.join, config.seed),
            extractor,
            lambda last, group=group: trained.update(dict.fromkeys(group, last)),  # type: ignore[misc]
            images={name: len(features[name]) for name in group},
            seeds={name: trainers[name].seed for name in group},
        )
        run_phases([phase], [phase.name], ledger=ledger)
    detectors = {
        name: _detector(trainers[name], trained[name], config, extractor) for name in trainers
    }
    if options.alone:  # nothing left a site
        ledger.rounds.clear()
    return Averaged(detectors, ledger)


def _of_members(options: WeightOptions, config: TrainConfig) -> TrainConfig:
    """A site alone is there in each of its rounds, whoever joins a federation late."""
    return config.model_copy(update={"participation": 1.0, "join": {}}) if options.alone else config


def _trainer(
    options: WeightOptions, config: TrainConfig, features: NormalFeatures, seed: int
) -> _Site:
    if options.part == "adaptor":
        adaptor = AdaptorConfig(candidate_bytes=config.candidate_bytes)
        if options.steps:
            adaptor = replace(adaptor, train=replace(adaptor.train, steps=options.steps))
        return AdaptorSite(features, adaptor, seed=seed, start=config.seed)
    dim = features.extractor.grid[2]
    generator = GeneratorConfig(memory=config.memory(dim), loss=config.memory(dim).loss)
    if options.steps:
        generator = replace(generator, train=replace(generator.train, steps=options.steps))
    return GeneratorSite(features, generator, seed=seed)


def _detector(
    trainer: _Site, trained: Payload, config: TrainConfig, extractor: FeatureExtractor
) -> Detector:
    weights = under("weight/", trained.arrays)
    if isinstance(trainer, AdaptorSite):
        detector = AdaptorDetector(
            extractor=extractor, config=trainer.config, scoring=config.scoring()
        )
        return detector.with_parameters(weights)
    load_parameters(trainer.student, weights)
    memory = FedDyMem(extractor=extractor, scoring=config.scoring())
    return memory.with_memory(trainer.bank, trainer.generator)
