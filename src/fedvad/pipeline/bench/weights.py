"""Cells that average weights instead of merging memories: the alternatives a table must show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedvad.data.folders import ImageItem, ImageSet
from fedvad.detectors.adaptor import AdaptorConfig, AdaptorDetector, AdaptorSite
from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.feddymem import FedDyMem
from fedvad.detectors.generator_site import GeneratorConfig, GeneratorSite
from fedvad.detectors.registry import create
from fedvad.detectors.student import StudentDetector
from fedvad.detectors.student_site import StudentSite
from fedvad.distill.parameters import load_parameters, parameters_of, under
from fedvad.distill.scope import Fusion, WSAConfig
from fedvad.distill.training import TrainConfig as StudentTraining
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.terms import Algorithm, WeightConfig
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.federation.runners.inprocess import Schedule, run_rounds
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.plan import site_seed

__all__ = ["Averaged", "WeightOptions", "average_weights"]


class WeightOptions(BaseModel):
    """What a `weights` row of a suite says.

    part: `adaptor`, a distillation student of the descriptors; `generator`, FedDyMem's, each site
    scoring with its own memory; `stfpm` or `paste`, a student of the backbone's layers, each site
    with the batch statistics of its own images. bootstrap: last layer that `paste` shares. alone:
    each site keeps its own weights, nothing is sent. wsa: strength of weight-scope alignment, 0
    for none. steps: per site and round.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Literal["adaptor", "generator", "stfpm", "paste"] = "adaptor"
    bootstrap: int | None = None
    algorithm: Algorithm = "fedavg"
    alone: bool = False
    prox: float = Field(default=0.01, ge=0)
    moon: float = Field(default=1.0, ge=0)
    wsa: float = Field(default=0.0, ge=0)
    fusion: Fusion = "average"
    steps: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, eq=False)
class Averaged:
    """Detectors by site, and what it cost to get there."""

    detectors: dict[str, Detector]
    ledger: Ledger
    rows: int


_Site = AdaptorSite | GeneratorSite | StudentSite
_STUDENT = StudentTraining(steps=20, warmup=5, patience=None)


def average_weights(
    options: WeightOptions,
    config: TrainConfig,
    features: Mapping[str, NormalFeatures],
    extractor: FeatureExtractor,
) -> Averaged:
    """Train the trainable part at every site over `config.rounds` rounds, averaging or alone."""
    trainers = {
        name: _trainer(options, config, feature, site_seed(config.seed, i))
        for i, (name, feature) in enumerate(sorted(features.items()))
    }
    height, width, _ = extractor.grid
    sites = {
        name: WeightSite(
            name,
            trainer,
            n_images=len(features[name]),
            n_patches=len(features[name]) * height * width,
            seed=trainer.seed,
        )
        for name, trainer in trainers.items()
    }
    ledger = Ledger()
    exchange_of = _exchange_maker(options, config, extractor, trainers)
    groups = [[name] for name in sites] if options.alone else [list(sites)]
    trained: dict[str, Payload] = {}
    for group in groups:
        members = {name: sites[name] for name in group}
        schedule = Schedule(rounds=config.rounds, seed=config.seed)
        last = run_rounds(exchange_of(len(group)), members, schedule, ledger=ledger, jobs=1)
        trained |= dict.fromkeys(group, last)
    if options.alone:  # nothing left a site
        ledger.rounds.clear()
    detectors = {
        name: _detector(options, trainers[name], trained[name], config, extractor) for name in sites
    }
    for trainer in trainers.values():
        if isinstance(trainer, StudentSite):
            trainer.close()
    banks = [t.bank for t in trainers.values() if isinstance(t, GeneratorSite)]
    return Averaged(detectors, ledger, max((len(bank) for bank in banks), default=0))


def _exchange_maker(
    options: WeightOptions,
    config: TrainConfig,
    extractor: FeatureExtractor,
    trainers: Mapping[str, _Site],
) -> Callable[[int], WeightExchange]:
    settings = WeightConfig(
        algorithm=options.algorithm,
        prox=options.prox,
        moon=options.moon,
        wsa=WSAConfig(strength=options.wsa, fusion=options.fusion) if options.wsa else None,
    )
    initial = parameters_of(next(iter(trainers.values())).student)
    return lambda sites: WeightExchange(
        features=extractor.config.key(), initial=initial, config=settings, sites=sites
    )


def _trainer(
    options: WeightOptions, config: TrainConfig, features: NormalFeatures, seed: int
) -> _Site:
    if options.part == "adaptor":
        adaptor = AdaptorConfig(candidate_bytes=config.candidate_bytes)
        if options.steps:
            adaptor = replace(adaptor, train=replace(adaptor.train, steps=options.steps))
        return AdaptorSite(features, adaptor, seed=seed, start=config.seed)
    if options.part in ("stfpm", "paste"):
        normal = ImageSet(tuple(ImageItem(path, 0, "good", None) for path in features.paths))
        site = _student(options, config, features.extractor).prepare(normal)
        site.seed = seed  # the start is everybody's, the order of the images is not
        return site
    dim = features.extractor.grid[2]
    generator = GeneratorConfig(memory=config.memory(dim), loss=config.memory(dim).loss)
    if options.steps:
        generator = replace(generator, train=replace(generator.train, steps=options.steps))
    return GeneratorSite(features, generator, seed=seed)


def _student(
    options: WeightOptions, config: TrainConfig, extractor: FeatureExtractor
) -> StudentDetector:
    scoring = config.scoring()
    more = {} if options.part == "stfpm" else {"bootstrap": options.bootstrap}
    made = create(
        options.part,
        extractor=extractor,
        layers=config.layers,
        train=replace(_STUDENT, steps=options.steps or _STUDENT.steps),
        smooth=scoring.smooth,
        top=scoring.top,
        seed=config.seed,
        max_bad=config.max_bad,
        **more,
    )
    assert isinstance(made, StudentDetector)
    return made


def _detector(
    options: WeightOptions,
    trainer: _Site,
    trained: Payload,
    config: TrainConfig,
    extractor: FeatureExtractor,
) -> Detector:
    weights = under("weight/", trained.arrays)
    if isinstance(trainer, AdaptorSite):
        detector = AdaptorDetector(
            extractor=extractor, config=trainer.config, scoring=config.scoring()
        )
        return detector.with_parameters(weights)
    load_parameters(trainer.student, weights)
    if isinstance(trainer, StudentSite):
        trainer.settle()
        return _student(options, config, extractor).with_net(trainer.net, trainer.unseen)
    memory = FedDyMem(extractor=extractor, scoring=config.scoring())
    return memory.with_memory(trainer.bank, trainer.generator)
