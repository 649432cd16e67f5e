"""`update`: new normal images join a trained run; those that trained it are not read again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.contents import normals, once
from fedvad.data.folders import holds_sets
from fedvad.data.inputs import read_images
from fedvad.data.locks import only_one
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import held_out_scores
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.site import MemorySite
from fedvad.errors import ConfigError, join_names
from fedvad.features.config import Engine
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.memory.negatives import more_like
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import Reference, TrainConfig, as_path
from fedvad.runs.data import load_sites
from fedvad.runs.known_images import unlike_known
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.opening import open_memory_run
from fedvad.runs.plan import site_seed, split_held_out
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.renewal import (
    bounded,
    check_growing,
    check_origin,
    last_round,
    merge_again,
    merged_memory,
    renew_thresholds,
    replace_run,
    take_back,
)

log = logging.getLogger(__name__)


def update(
    run: AnyPath,
    data: AnyPath,
    *,
    site: str | None = None,
    dry_run: bool = False,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: AnyCache | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Add new normal images to a run, without reading the old ones.

    The site's memory gains those new patches that it represents worst, and is reduced to as many
    rows as in training. The memories of all sites are then merged as the server merges them.
    Thresholds use the scores that the run keeps of its earlier images, and those of the new images.
    A new image that nearly repeats an earlier one does not count.

    Parameters
    ----------
    run : path
        Run folder.
    data : path
        Folder of normal images of one site, or of sites as `train` reads them.
    site : str, optional
        Site that the images belong to: one of the run, or a new one. Not needed if `data` has
        sites, or the run has only one.
    dry_run : bool, default=False
        Only report what would change.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        What changed: rows, thresholds and alarms on the new images, before and now. `undo_update`
        undoes it.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> result = fedvad.update("run", "plants/birch/test/good", site="birch", dry_run=True)
    >>> result["sites"]["birch"]["images"], result["dry_run"]
    (3, True)
    """
    progress = progress or no_progress
    run_folder, data = as_path(run, "run"), as_path(data, "data")
    with only_one(run_folder):
        trained, config, extractor = open_memory_run(
            run_folder, weights=maybe(weights, "weights"), engine=engine, device=device,
            cache=cache_at(cache),
        )  # fmt: skip
        check_growing(config, run_folder)
        check_origin(trained, run_folder)
        images, known = _new_images(trained, config, data, site, extractor, progress)
        fitting, held_out = split_held_out(images, config)
        held_out = unlike_known(trained, held_out)
        before = _alarms(trained, held_out, extractor, progress)
        updated = merge_again(_grown(trained, config, fitting), config)
        scores = _scores(updated, config, held_out, extractor, progress)
        renew_thresholds(updated, config, scores)
        kept = None if dry_run else replace_run(run_folder, updated)
    limits = {name: updated.limit(name) for name in images}
    now = {
        name: None if limit is None else int((scores[name][updated.reference] > limit).sum())
        for name, limit in limits.items()
    }
    return {
        "run": str(run_folder),
        "dry_run": dry_run,
        "memory_rows": {"before": len(trained.memory), "now": len(updated.memory)},
        "undo": None if kept is None else str(kept),
        "sites": {
            name: {
                "images": len(images[name]),
                "known_images": known[name],
                "rows": {
                    "before": len(trained.sites[name].bank) if name in trained.sites else 0,
                    "now": len(updated.sites[name].bank),
                },
                "scored": len(held_out[name]),
                "alarms": {"before": before[name], "now": now[name]},
                "threshold": {
                    "before": trained.limit(name) if name in trained.sites else None,
                    "now": updated.limit(name),
                },
            }
            for name in images
        },
    }


def undo_update(run: AnyPath) -> dict[str, Any]:
    """Put a run back as it was before the last `update`.

    Parameters
    ----------
    run : path
        Run folder.

    Returns
    -------
    dict
        `run` and `undone`.

    Raises
    ------
    ConfigError
        See `fedvad.errors`.

    Examples
    --------
    >>> import shutil
    >>> import fedvad
    >>> grown = shutil.copytree("run", "grown")
    >>> result = fedvad.update(grown, "plants/birch/test/good", site="birch")
    >>> fedvad.undo_update(grown)["undone"]
    True
    """
    run_folder = as_path(run, "run")
    with only_one(run_folder):
        take_back(run_folder)
    return {"run": str(run_folder), "undone": True}


def _new_images(
    run: TrainedRun,
    config: TrainConfig,
    data: Path,
    site: str | None,
    extractor: FeatureExtractor,
    progress: Progress,
) -> tuple[dict[str, NormalFeatures], dict[str, int]]:
    """By site, features of its images that did not train yet, and how many others there are."""
    paths = {name: once(own) for name, own in _paths(run, config, data, site).items()}
    stage = Stage(progress, "features", sum(map(len, paths.values())))
    found, known = {}, {}
    for name, own in paths.items():
        features = NormalFeatures(extractor, own, max_bad=config.max_bad, where=name)
        features.warm_up(stage)
        trained = _digests(run.sites[name].bank) if name in run.sites else set()
        defects = _defects(run.sites[name]) if name in run.sites else set()
        if defects & set(features.digests):
            log.warning("%s: images that were confirmed to be defective stay out", name)
        new = [i for i, d in enumerate(features.digests) if d not in trained | defects]
        known[name] = len(trained & set(features.digests))
        if known[name]:
            log.warning("%s: %d images trained the run already", name, known[name])
        if new:
            found[name] = features.subset(new)
    if not found:
        raise ConfigError(
            f"{data} holds no new normal image: all of them trained the run, or were confirmed to "
            "be defective"
        )
    return found, known


def _paths(
    run: TrainedRun, config: TrainConfig, data: Path, site: str | None
) -> dict[str, Sequence[Path]]:
    names = config.label_names()
    if not (data.is_dir() and holds_sets(data, names)):
        return {_one_site(run, site): read_images([data], cubes=names.cubes)}
    sites = load_sites(
        data, None, config.seed, names, image_size=config.features().view,
        max_pixels=config.max_pixels,
    )  # fmt: skip
    if len(sites) > 1 and site is not None:
        raise ConfigError(f"{data} holds {len(sites)} sites: omit --site, or give the one's folder")
    if len(sites) == 1 and (site is not None or len(run.sites) == 1):
        return {site or next(iter(run.sites)): normals(sites[0].train)}
    return {found.name: normals(found.train) for found in sites}


def _one_site(run: TrainedRun, site: str | None) -> str:
    if site is None and len(run.sites) > 1:
        raise ConfigError(
            f"name the site whose images these are: --site, of {join_names(run.sites)}"
        )
    return site or next(iter(run.sites))


def _digests(bank: MemoryBank) -> set[str]:
    return set() if bank.origin is None else {s.image for s in bank.origin.sources if s.image}


def _defects(site: SiteMemory) -> set[str]:
    given = [answer.values for answer in site.answers]
    return {t.image for t in given if t.verdict == "defect" and not t.undone}


def _grown(
    run: TrainedRun, config: TrainConfig, images: Mapping[str, NormalFeatures]
) -> TrainedRun:
    """With the sites' memories after as many rounds on the new images as a training has."""
    first, dim = last_round(run) + 1, run.memory.dim
    order = [*sorted(run.sites), *sorted(set(images) - set(run.sites))]
    members, news = {}, {}
    defects = {name: run.defects_at(name) for name in images if name in run.sites}
    for name, features in images.items():
        seed = site_seed(config.seed, order.index(name))
        members[name] = MemorySite(features, config.memory(dim), seed=seed, rounds=config.rounds)
        if name in run.sites:
            members[name].bank = run.sites[name].bank
        news[name] = MemoryBank.empty(dim)
    grown = run
    for round_ in range(first, first + config.rounds):
        for name, member in members.items():
            new = member.update(round_, grown.memory)
            if name in run.sites:
                known = concatenate([run.memory, run.sites[name].bank])
                new = new.take(~more_like(defects[name], known.vectors, new.vectors))
            if new.origin is not None:  # else there was no news
                news[name] = concatenate([news[name], new])
        sites = {n: _joined(run, n, member, news[n]) for n, member in members.items()}
        grown = replace(run, sites={**run.sites, **sites})
        grown = replace(grown, memory=merged_memory(grown, config))
    most = config.rows(dim) * config.rounds
    sites = {
        name: replace(site, bank=bounded(site.bank, most, members[name].seed))
        if name in members
        else site
        for name, site in grown.sites.items()
    }
    # thresholds of the run as it was must not change with those of the new one
    return replace(
        run, sites={n: replace(s, thresholds=dict(s.thresholds)) for n, s in sites.items()}
    )


def _joined(run: TrainedRun, name: str, member: MemorySite, new: MemoryBank) -> SiteMemory:
    """A site with rows of new images: old and new ones weigh as many patches as there are."""
    before = run.sites.get(name) or SiteMemory(
        MemoryBank.empty(run.memory.dim), Generator.identity(run.memory.dim)
    )
    count = before.n_images + len(member.features)
    bank = concatenate([before.bank, new.rescaled(float(member.n_patches))])
    bank = bank.rescaled(float(count * member.patches_per_image))
    return replace(before, bank=bank, n_images=count)


def _alarms(
    run: TrainedRun,
    held_out: Mapping[str, NormalFeatures],
    extractor: FeatureExtractor,
    progress: Progress,
) -> dict[str, int | None]:
    """How many of the new images the run as it is calls defective, by site."""
    found: dict[str, int | None] = {}
    stage = Stage(progress, "alarms before", sum(map(len, held_out.values())))
    shared = run.detector(None, extractor)
    for name, features in held_out.items():
        model, limit = run.sites.get(name), run.limit(name)
        same = model is None or (run.reference == "global" and run.same_for_all(name))
        detector = shared if same else run.detector(name, extractor)
        scores = detector.score(features.paths, stage).image if len(features) else np.empty(0)
        found[name] = None if limit is None else int((scores > limit).sum())
    return found


def _scores(
    run: TrainedRun,
    config: TrainConfig,
    held_out: Mapping[str, NormalFeatures],
    extractor: FeatureExtractor,
    progress: Progress,
) -> dict[str, dict[Reference, npt.NDArray[np.float64]]]:
    """Scores of the new images as if they had not trained the run, by site and reference."""
    references: dict[Reference, None] = dict.fromkeys((run.reference, "local", "global"))
    stage = Stage(progress, "thresholds", len(references) * sum(map(len, held_out.values())))
    # one index for all sites that differ by nothing
    shared = run.detector(None, extractor, "global").scorer
    found: dict[str, dict[Reference, npt.NDArray[np.float64]]] = {name: {} for name in held_out}
    for name, features in held_out.items():
        model = run.sites[name]
        for reference in references:
            same = reference == "global" and run.same_for_all(name)
            own = held_out_scores(
                features,
                shared if same else run.detector(name, extractor, reference).scorer,
                model.generator,
                leave_one_out=config.calibration_mode == "leave-one-out",
                stored=config.stored_form(),
                on_image=stage,
            )
            found[name][reference] = np.asarray(own)
    return found
