"""`calibrate`: a site's thresholds found again from normal images, without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedvad.data.contents import described, once
from fedvad.data.inputs import read_images
from fedvad.data.locks import only_one
from fedvad.data.sealed import read_sealed, write_sealed
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.evaluation.sites import MIN_HELD_OUT
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import Engine
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe, paths_of
from fedvad.runs.config import Reference, as_path
from fedvad.runs.decision import check_threshold_options, choose_threshold
from fedvad.runs.guards import check_order
from fedvad.runs.method import make_method
from fedvad.runs.opening import open_run
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run import Run, threshold_from
from fedvad.runs.run_folder import EARLIER_THRESHOLDS_FILE, read_config
from fedvad.runs.thresholds import find_thresholds

__all__ = ["calibrate"]

_SUSPICIOUS = 1.5  # times the present threshold; resampled good images move it by a fifth at most


def calibrate(
    run: AnyPath,
    normals: AnyPath | Iterable[AnyPath] = (),
    *,
    site: str | None = None,
    target_fpr: float | None = None,
    force: bool = False,
    undo: bool = False,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: AnyCache | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find a site's thresholds again from images of good parts, and keep them in the run.

    The rule is that of the training: with `threshold_rule` federated, the scores that the run
    keeps of other sites count as well. Results and reports in the folder are not changed; they
    show the earlier thresholds. `normals` may contain training images only if memory rows are real
    patches (see `TrainConfig.keeps_patches`); otherwise the threshold would be too low.

    Parameters
    ----------
    run : path
    normals : path, or several
        Files or folders of at least three different images of good parts, no defect among them.
    site : str, optional
        Whose images these are; may be omitted where the run has one site only.
    target_fpr : float in [1e-6, 0.5], optional
        Wanted false-alarm rate; None takes that of the training.
    force : bool, default=False
        Accept a threshold more than 1.5 times the present one. Otherwise it is refused, because a
        defect among the images would raise the threshold and let defects pass.
    undo : bool, default=False
        Restore the site's thresholds from before its last calibration; without `normals`.
    weights : path, optional
        File of the backbone's weights, if it was moved since the training.
    engine : {"openvino", "openvino-bf16", "torch"}, optional
        What computes the backbone; None takes that of the training.
    device : {"cpu", "cuda", "mps"}, optional
        None takes that of the training.
    max_pixels : int, optional
        An image of more pixels counts as unreadable; None takes the limit of the training.
    cache, progress : optional
        As those of `train`.

    Returns
    -------
    dict
        site, reference, thresholds (before, now and method by reference) and, unless undone,
        images, target_fpr, promised (a sentence) and above_before (images above the earlier
        threshold, highest first).

    Raises
    ------
    ConfigError, DataError, ArtefactError
        See `fedvad.errors`; a suspicious threshold is a `DataError`. The run stays as it was.

    Examples
    --------
    >>> import fedvad
    >>> answer = fedvad.calibrate("run", "plants/alder/train/good", site="alder", target_fpr=0.05)
    >>> answer["images"], answer["promised"][:54]
    (6, '6 normal images promise at most 39.3 % false alarms wi')
    >>> fedvad.calibrate("run", undo=True, site="alder")["site"]
    'alder'
    """
    progress = progress or no_progress
    run_folder = as_path(run, "run")
    files = paths_of(normals, "normals")
    if undo:
        if files or target_fpr is not None or force:
            raise ConfigError("undo takes no images, no target_fpr and no force: omit these")
        return _undo(run_folder, site)
    check_threshold_options(None, target_fpr)
    check_order(run_folder, files, "calibrate RUN NORMALS")
    if not files:
        raise ConfigError("give images of good parts (files or folders), or --undo (undo=True)")
    given = read_images(files, cubes=read_config(run_folder).label_names().cubes)
    paths = once(given)
    if len(paths) < MIN_HELD_OUT:
        raise DataError(
            f"a threshold needs at least {MIN_HELD_OUT} different normal images, here is "
            f"{described(given)}"
        )
    with only_one(run_folder):
        trained, config, extractor = open_run(
            run_folder, weights=maybe(weights, "weights"), engine=engine, device=device,
            max_pixels=max_pixels, cache=cache_at(cache),
        )  # fmt: skip
        if config.shared_threshold:
            raise ConfigError(
                f"{run_folder} has one threshold for all sites (shared_threshold), which no site "
                "finds alone: give predict or serve --target-fpr, or train again"
            )
        target = config.target_fpr if target_fpr is None else target_fpr
        name = _site(sorted(trained.sites), site)
        before = dict(trained.sites[name].thresholds)
        # what has a threshold at a site after the training
        references: dict[Reference, None] = dict.fromkeys((trained.reference, "global"))
        if "local" in before:
            references["local"] = None
        method = make_method(config, extractor)
        stage = Stage(progress, "thresholds", len(references) * len(paths))
        found: dict[str, Threshold] = {}
        above: list[dict[str, Any]] = []
        for reference in references:
            detector = trained.detector(name, extractor, reference)
            own = method.unseen_scores(detector, paths, name, stage)
            kept = {
                other: np.asarray(model.thresholds[reference].scores)
                for other, model in trained.sites.items()
                if reference in model.thresholds and model.thresholds[reference].scores
            }
            rule = "own" if reference == "local" else config.threshold_rule
            new = find_thresholds(kept | {name: own}, target, rule).get(name)
            if new is None:
                raise DataError(f"only {len(own)} of the {len(paths)} images could be scored")
            found[reference] = new
            if reference == trained.reference and len(own) == len(paths):
                above = _above(before.get(reference), dict(zip(paths, own.tolist(), strict=True)))
        if not force:
            _check_rise(trained, name, found[trained.reference], target, len(paths), above)
        _remember(run_folder, trained, name, before)
        trained.sites[name].thresholds.update(found)
        trained.save(run_folder)
    answer = _changed(trained, name, before, found)
    decides = found[trained.reference]
    return answer | {
        "images": len(paths),
        "target_fpr": target,
        "promised": decides.promised,
        "above_before": above,
    }


def _above(before: Threshold | None, scores: Mapping[Path, float]) -> list[dict[str, Any]]:
    """Images whose score is above the present threshold, the highest first."""
    if before is None:
        return []
    high = [(path, score) for path, score in scores.items() if score > before.value]
    high.sort(key=lambda item: -item[1])
    return [{"path": str(path), "score": score} for path, score in high]


def _check_rise(
    run: Run, name: str, new: Threshold, target: float, images: int, above: Sequence[dict[str, Any]]
) -> None:
    """Raise `DataError` for a threshold far above the present one at the same rate."""
    present = run.sites[name].thresholds.get(run.reference)
    if present is None:
        return
    limit = present.value
    if present.scores:  # a lower rate has a higher threshold, and rightly so
        same_rate = choose_threshold(run, name, run.reference, target_fpr=target)
        limit = max(limit, present.value if same_rate is None else same_rate.value)
    if not 0 < limit * _SUSPICIOUS < new.value:
        return
    which = (
        f"; {len(above)} of the {images} images score above the present one, highest "
        f"{above[0]['path']} ({above[0]['score']:.4g})" if above else ""
    )  # fmt: skip
    raise DataError(
        f"nothing was changed: the threshold of {name} would rise from {limit:.4g} to "
        f"{new.value:.4g}, and defects would pass{which}. Remove images of defects from the "
        "folder; if all parts are good (another lamp or product), add --force (force=True)"
    )


def _remember(folder: Path, run: Run, site: str, thresholds: Mapping[str, Threshold]) -> None:
    entry = {
        "site": site,
        "shared": run.shared_hash(),
        "thresholds": {ref: asdict(t) for ref, t in thresholds.items()},
    }
    write_sealed(folder / EARLIER_THRESHOLDS_FILE, {"calibrations": [*_remembered(folder), entry]})


def _remembered(folder: Path) -> list[dict[str, Any]]:
    path = folder / EARLIER_THRESHOLDS_FILE
    if not path.exists():
        return []
    entries = read_sealed(path).get("calibrations")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ArtefactError(f"{path} is damaged: remove it; earlier thresholds are then lost")
    return entries


def _undo(folder: Path, site: str | None) -> dict[str, Any]:
    run = Run.load(folder)
    name = _site(sorted(run.sites), site)
    with only_one(folder):
        run, entries = Run.load(folder), _remembered(folder)
        last = next((e for e in reversed(entries) if e.get("site") == name), None)
        if last is None:
            raise ConfigError(f"{folder} keeps no earlier thresholds of {name}: nothing to undo")
        if last.get("shared", run.shared_hash()) != run.shared_hash():  # earlier files do not say
            raise ConfigError(
                f"the earlier thresholds of {name} in {folder / EARLIER_THRESHOLDS_FILE} are of "
                "another memory or student: the run was updated since, or the file is another "
                "run's. Find the thresholds again: fedvad calibrate RUN NORMALS"
            )
        before = dict(run.sites[name].thresholds)
        earlier = {str(ref): threshold_from(t) for ref, t in dict(last["thresholds"]).items()}
        run.sites[name].thresholds.clear()
        run.sites[name].thresholds.update(earlier)
        run.save(folder)
        entries.remove(last)
        write_sealed(folder / EARLIER_THRESHOLDS_FILE, {"calibrations": entries})
    return _changed(run, name, before, earlier)


def _changed(
    run: Run, name: str, before: Mapping[str, Threshold], now: Mapping[str, Threshold]
) -> dict[str, Any]:
    return {
        "site": name,
        "reference": run.reference,
        "thresholds": {
            reference: {
                "before": before[reference].value if reference in before else None,
                "now": threshold.value,
                "method": threshold.method,
            }
            for reference, threshold in now.items()
        },
    }


def _site(known: Sequence[str], site: str | None) -> str:
    if site in known:
        return str(site)
    if site is None and len(known) == 1:
        return known[0]
    said = "name the site" if site is None else f"there is no site {site!r}"
    raise ConfigError(f"{said}: --site, one of {', '.join(known)}")
