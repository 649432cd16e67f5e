"""Students trained at sites and averaged: the weights' counterpart of a memory's rounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedvad.data.folders import ImageSet, Site
from fedvad.detectors.registry import detector_class
from fedvad.detectors.student import StudentDetector
from fedvad.detectors.student_site import StudentSite
from fedvad.distill.parameters import load_parameters, parameters_of, under
from fedvad.errors import ConfigError
from fedvad.evaluation.histograms import count
from fedvad.evaluation.sites import SiteResult, site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.runners.inprocess import Schedule
from fedvad.federation.runners.state import load_state
from fedvad.pipeline.averaging import average_rounds
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.fitted import Fitted, Job
from fedvad.pipeline.plan import robust, site_seed
from fedvad.pipeline.progress import Progress, Stage, silent
from fedvad.pipeline.run_folder import write_config
from fedvad.pipeline.scoring import ANY_SHARE, score_with
from fedvad.pipeline.student_run import StudentRun
from fedvad.pipeline.thresholds import find_thresholds, share_threshold

__all__ = ["averaged", "fit_students", "make_student", "prepare_sites"]

log = logging.getLogger(__name__)


def fit_students(job: Job) -> Fitted:
    """Train each site's student and average them over all rounds; see `train`.

    Raises `ConfigError`, `DataError`, `FederationError`.
    """
    config, extractor, ledger = job.config, job.extractor, job.ledger
    images = {site.name: site.train for site in job.sites}
    with ledger.phase("features"):
        members = prepare_sites(images, config, extractor, job.progress)
    for member in members.values():
        job.stack.callback(member.close)
    write_config(job.out, config)
    ledger.images_computed = sum(member.n_images for member in members.values())
    stage = Stage(job.progress, "rounds", _all_rounds(config) * len(members))
    detectors = averaged(
        members,
        config,
        extractor,
        ledger=ledger,
        state_dir=job.out / "state",
        resume=job.resume,
        stage=stage,
    )
    n_images = {name: member.n_images for name, member in members.items()}
    run = StudentRun.of(detectors, n_images, method=config.method, data=job.data)
    with ledger.phase("calibrate"):
        scores = {
            name: detector.score(members[name].unseen).image for name, detector in detectors.items()
        }
        found = find_thresholds(scores, config.target_fpr, config.threshold_rule)
        for name, model in run.sites.items():
            if name in found:
                model.thresholds["global"] = found[name]
            else:
                log.warning("%s: too few normal images for a threshold", name)
        if config.shared_threshold:
            summed = sum((count(own) for own in scores.values()), count([]))
            share_threshold(run.sites, {"global": summed}, config.target_fpr)
    return Fitted(
        run=run,
        n_images=n_images,
        unreadable=[reason for member in members.values() for reason in member.bad],
        compare=lambda results: _compare(job.sites, config, extractor, members, job.progress),
    )


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


def _kind(config: TrainConfig) -> type[StudentDetector]:
    kind = detector_class(config.method)
    assert issubclass(kind, StudentDetector)  # or its method were not one of students
    return kind


def _all_rounds(config: TrainConfig) -> int:
    return sum(_rounds(part, config) for part in _kind(config).parts)


def _rounds(part: str, config: TrainConfig) -> int:
    return config.rounds if part == "student" else config.student.amplify_rounds


def make_student(config: TrainConfig, extractor: FeatureExtractor) -> StudentDetector:
    """The untrained detector that a configuration asks for; raises `ConfigError`."""
    options = config.student
    kind = _kind(config)
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
        if config.method == "paste":
            more["bootstrap"] = options.bootstrap
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


def _compare(
    sites: Sequence[Site],
    config: TrainConfig,
    extractor: FeatureExtractor,
    members: Mapping[str, StudentSite],
    progress: Progress,
) -> dict[str, list[SiteResult]]:
    """Results of each baseline in `config.compare`: alone, and one student of all images.

    The pooled student takes as many steps as all sites together.
    """
    results: dict[str, list[SiteResult]] = {}
    free = config.model_copy(update={"participation": 1.0, "join": {}, "defence": "none"})
    for name in config.compare:
        rounds = _all_rounds(config) * (len(members) if name == "local" else 1)
        stage = Stage(progress, f"rounds {name}", rounds)
        found: dict[str, tuple[StudentDetector, Threshold | None]] = {}
        if name == "local":
            for site in sites:
                found[site.name] = _alone(site, members[site.name], free, extractor, stage)
        else:
            pooled = _pooled(sites, free, extractor, len(members), stage)
            found = dict.fromkeys(members, pooled)
        results[name] = score_with(
            lambda site, found=found: found[site],  # type: ignore[misc]
            sites, extractor, f"scoring {name}", ANY_SHARE, progress,
        )  # fmt: skip
    return results


def _alone(
    site: Site,
    member: StudentSite,
    config: TrainConfig,
    extractor: FeatureExtractor,
    stage: Stage,
) -> tuple[StudentDetector, Threshold | None]:
    used = member
    if len(_kind(config).parts) > 1:
        # an earlier part of the federation's has changed what the site's student learns from
        used = prepare_sites({site.name: site.train}, config, extractor)[site.name]
        used.seed = member.seed
    try:
        found = averaged({site.name: used}, config, extractor, ledger=Ledger(), stage=stage)
        return found[site.name], _threshold(found[site.name], used, config)
    finally:
        if used is not member:
            used.close()


def _pooled(
    sites: Sequence[Site],
    config: TrainConfig,
    extractor: FeatureExtractor,
    work: int,
    stage: Stage,
) -> tuple[StudentDetector, Threshold | None]:
    options = config.student
    if options.steps is not None:
        options = options.model_copy(update={"steps": options.steps * work})
    config = config.model_copy(update={"student": options})
    everything = ImageSet(tuple(item for site in sites for item in site.train))
    whole = prepare_sites({"all": everything}, config, extractor)["all"]
    try:
        detector = averaged({"all": whole}, config, extractor, ledger=Ledger(), stage=stage)["all"]
        return detector, _threshold(detector, whole, config)
    finally:
        whole.close()


def _threshold(
    detector: StudentDetector, site: StudentSite, config: TrainConfig
) -> Threshold | None:
    return site_threshold(detector.score(site.unseen).image.tolist(), config.target_fpr)
