"""Students trained at sites and averaged: the weights' counterpart of a memory's rounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedvad.data.folders import ImageSet
from fedvad.detectors.registry import detector_class
from fedvad.detectors.student import StudentDetector
from fedvad.detectors.student_site import StudentSite
from fedvad.distill.parameters import load_parameters, parameters_of, under
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.runners.inprocess import Schedule
from fedvad.federation.runners.state import load_state
from fedvad.pipeline.averaging import average_rounds
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.plan import robust, site_seed
from fedvad.pipeline.progress import Progress, Stage, silent

__all__ = ["all_rounds", "averaged", "make_student", "prepare_sites", "student_class"]

log = logging.getLogger(__name__)


def prepare_sites(
    images: Mapping[str, ImageSet],
    config: TrainConfig,
    extractor: FeatureExtractor,
    progress: Progress = silent,
) -> dict[str, StudentSite]:
    """Sites by name with all that is frozen computed; whoever calls closes them.

    All start from the same student; each draws its images in an order of its own. Raises
    `ConfigError`, `DataError`.
    """
    stage = Stage(progress, "features", len(images))
    prepared: dict[str, StudentSite] = {}
    try:
        for index, name in enumerate(sorted(images)):
            prepared[name] = make_student(config, extractor).prepare(images[name])
            prepared[name].seed = site_seed(config.seed, index)
            prepared[name].choose = False  # a round ends where its last step ends, at every site
            stage()
    except BaseException:
        for site in prepared.values():
            site.close()
        raise
    return prepared


def averaged(
    sites: Mapping[str, StudentSite],
    config: TrainConfig,
    extractor: FeatureExtractor,
    *,
    ledger: Ledger,
    state_dir: Path | None = None,
    resume: bool = False,
    stage: Stage | None = None,
) -> dict[str, StudentDetector]:
    """Detectors by site after all rounds: one student, with each site's own batch statistics.

    A site alone is a federation of one. Raises as `run_rounds` does.
    """
    starts = make_student(config, extractor).starts()
    folders = {part: None if state_dir is None else state_dir / part for part in starts}
    begun = [p for p, folder in folders.items() if folder is not None and folder.is_dir()]
    before = 0
    for part, start in starts.items():
        rounds = _rounds(part, config)
        folder = folders[part]
        over = load_state(folder) if resume and folder and part in begun[:-1] else None
        if over is not None:  # its costs are in the state of the part that came next
            merged = over.merged
        else:
            merged = average_rounds(
                {name: site.part(part) for name, site in sites.items()},
                parameters_of(start),
                config.student.terms(),
                Schedule(rounds, config.participation, config.join, config.seed, first=before + 1),
                extractor,
                images={name: site.n_images for name, site in sites.items()},
                seeds={name: site.seed for name, site in sites.items()},
                ledger=ledger,
                defence=robust(config),
                state_dir=folder,
                resume=resume and part in begun,
                stage=stage,
            )
        before += rounds
        weights = under("weight/", merged.arrays)
        for site in sites.values():
            load_parameters(site.part(part).student, weights)
            site.end(part)
    return {
        name: make_student(config, extractor).with_net(site.net, site.unseen)
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
    own = {"batch", "learning_rate", "warmup", "mixed_precision"}
    given = options.model_dump(include=own, exclude_none=True)
    training = replace(kind.round_training(options.steps), **given)
    if options.algorithm == "scaffold":
        if training.optimiser != "sgd":
            raise ConfigError(
                f"scaffold corrects plain SGD, and {config.method} trains with "
                f"{training.optimiser}: choose fedavg, fedprox or moon"
            )
        # its control is the mean gradient, which momentum would count ten times
        training = replace(training, momentum=0.0)
    try:
        more = kind.round_options(options.options, training)
        if options.combine is not None:
            more["combine"] = options.combine
        more |= {name: getattr(options, name) for name in kind.own_options}
        return kind(
            extractor=extractor,
            layers=extractor.config.layers,
            train=training,
            held_out=config.holdout,
            smooth=config.smooth,
            top=config.top,
            cache_bytes=options.cache_bytes,
            seed=config.seed,
            max_bad=config.max_bad,
            **more,
        )
    except TypeError as error:
        raise ConfigError(f"student.options do not fit {config.method}: {error}") from error
