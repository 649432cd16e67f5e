"""Students trained at sites and averaged: the weights' counterpart of a memory's rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fedvad.data.folders import ImageSet
from fedvad.detectors.registry import detector_class
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.detectors.student.site import StudentSite
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.averages import average_class
from fedvad.federation.exchange.weights import WeightSite
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule
from fedvad.federation.payload import Payload
from fedvad.runs.config import TrainConfig
from fedvad.runs.phases import Phase, run_phases
from fedvad.runs.plan import robust, site_seed
from fedvad.runs.progress import Progress, Stage, no_progress


def prepare_sites(
    images: Mapping[str, ImageSet],
    config: TrainConfig,
    extractor: FeatureExtractor,
    progress: Progress = no_progress,
    *,
    first: int = 0,
) -> dict[str, StudentSite]:
    """Sites by name with all that is frozen computed; whoever calls closes them.

    All start from the same student; each draws its images in an order of its own, by its position,
    which is `first` for the first of them. Raises `ConfigError`, `DataError`.
    """
    stage = Stage(progress, "features", len(images))
    prepared: dict[str, StudentSite] = {}
    try:
        for index, name in enumerate(sorted(images), first):
            prepared[name] = make_student(config, extractor).prepare(images[name])
            prepared[name].seed = site_seed(config.seed, index)
            prepared[name].choose = False  # a round ends where its last step ends, at every site
            stage()
    except BaseException:
        for site in prepared.values():
            site.close()
        raise
    return prepared


def student_phases(
    sites: Mapping[str, StudentSite], config: TrainConfig, extractor: FeatureExtractor
) -> Iterator[Phase]:
    """The rounds of each part of a student; all sites begin with the same."""
    terms, (height, width, _) = config.student.terms(), extractor.grid
    before = 0
    for part, start in make_student(config, extractor).starts().items():
        rounds = _rounds(part, config)

        def end(merged: Payload, part: str = part) -> None:
            for site in sites.values():
                load_parameters(site.part(part).student, under("weight/", merged.arrays))
                site.end(part)

        members = {
            name: WeightSite(
                name,
                site.part(part),
                n_images=site.n_images,
                n_patches=site.n_images * height * width,
                seed=site.seed,
                first=before + 1,
            )
            for name, site in sites.items()
        }
        exchange = average_class(terms.algorithm)(
            features=extractor.config.key(), initial=parameters_of(start), config=terms,
            sites=len(sites), defence=robust(config),
        )  # fmt: skip
        schedule = Schedule(
            rounds, config.participation, config.join, config.seed, first=before + 1
        )
        yield Phase(part, exchange, members, schedule, end)
        before += rounds


def averaged(
    sites: Mapping[str, StudentSite],
    config: TrainConfig,
    extractor: FeatureExtractor,
    *,
    ledger: Ledger,
    stage: Stage | None = None,
) -> dict[str, StudentDetector]:
    """Detectors by site after all rounds; a site alone is a federation of one."""
    phases = student_phases(sites, config, extractor)
    run_phases(phases, student_class(config).parts, ledger=ledger, stage=stage)
    return student_detectors(sites, config, extractor)


def student_detectors(
    sites: Mapping[str, StudentSite], config: TrainConfig, extractor: FeatureExtractor
) -> dict[str, StudentDetector]:
    """Detectors by site of the students as they are now, each with its own batch statistics."""
    return {
        name: make_student(config, extractor).with_net(site.net, site.unseen, site.log)
        for name, site in sites.items()
    }


def student_class(config: TrainConfig) -> type[StudentDetector]:
    """What a configuration of a student trains."""
    kind = detector_class(config.method)
    assert issubclass(kind, StudentDetector)  # or its method were not one of students
    return kind


def all_rounds(config: TrainConfig) -> int:
    """Rounds of all parts of a student, one after another."""
    return sum(_rounds(part, config) for part in student_class(config).parts)


def _rounds(part: str, config: TrainConfig) -> int:
    return config.rounds if part == "student" else config.student.amplify_rounds


def make_student(config: TrainConfig, extractor: FeatureExtractor) -> StudentDetector:
    """The untrained detector that a configuration asks for; raises `ConfigError`."""
    options = config.student
    kind = student_class(config)
    own = {"batch", "learning_rate", "warmup", "decay", "mixed_precision"}
    given = options.model_dump(include=own, exclude_none=True)
    training = replace(kind.round_training(), **given)
    if options.algorithm == "scaffold":
        if training.optimiser != "sgd":
            raise ConfigError(
                f"scaffold corrects plain SGD, and {config.method} trains with "
                f"{training.optimiser}: choose fedavg, fedprox or moon"
            )
        # its control is the mean gradient, which momentum would count ten times
        training = replace(training, momentum=0.0)
    training = training.in_rounds(config.rounds, kind.recipe["student"], options.steps)
    try:
        table = {name: getattr(options, name) for name in kind.own_options} | options.options
        more = kind.round_options(table, training, options.steps)
        if options.combine is not None:
            more["combine"] = options.combine
        return kind(
            extractor=extractor,
            layers=extractor.config.layers,
            train=training,
            held_out=config.holdout,
            smooth=config.smooth,
            top=config.top,
            jitter=options.jitter,
            cache_bytes=options.cache_bytes,
            seed=config.seed,
            max_bad=config.max_bad,
            **more,
        )
    except TypeError as error:
        raise ConfigError(f"student.options do not fit {config.method}: {error}") from error
