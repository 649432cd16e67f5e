"""`calibrate`: a site's thresholds found again from normal images, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvad.data.contents import described, once
from fedvad.data.inputs import read_images
from fedvad.data.locks import only_one
from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.sites import MIN_HELD_OUT
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import Engine
from fedvad.runs.config import Reference
from fedvad.runs.decision import check_threshold_options
from fedvad.runs.method import make_method
from fedvad.runs.opening import open_run
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.thresholds import find_thresholds

__all__ = ["recalibrate"]


def recalibrate(
    run_folder: Path,
    normals: Sequence[Path],
    *,
    site: str | None = None,
    target_fpr: float | None = None,
    weights: Path | str | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    max_pixels: int | None = None,
    cache: DescriptorCache | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Find a site's thresholds from the images below `normals`, and keep them in the run.

    The rule is that of the training: with `threshold_rule` federated, the scores that the run
    keeps of other sites count as well. site: may be left out where the run has only one.
    target_fpr: wanted false-alarm rate in (0, 0.5]; None takes that of the training. Others: see
    `open_run`. Images that trained may be among these only where memory rows are real patches
    (see `TrainConfig.keeps_patches`); elsewhere the threshold would be too low.

    Results and reports in the folder stay those of the thresholds before. Raises `ConfigError`,
    also while another process works on the run, `DataError` for fewer than three different
    images, and what `open_run` raises.
    """
    check_threshold_options(None, target_fpr)
    given = read_images(normals)
    paths = once(given)
    if len(paths) < MIN_HELD_OUT:
        raise DataError(
            f"a threshold needs at least {MIN_HELD_OUT} different normal images, here is "
            f"{described(given)}"
        )
    with only_one(run_folder):
        run, config, extractor = open_run(
            run_folder, weights=weights, engine=engine, device=device, max_pixels=max_pixels,
            cache=cache,
        )  # fmt: skip
        if config.shared_threshold:
            raise ConfigError(
                f"{run_folder} has one threshold for all sites (shared_threshold), which no site "
                "finds alone: give predict or serve --target-fpr, or train again"
            )
        target = config.target_fpr if target_fpr is None else target_fpr
        name = _site(sorted(run.sites), site)
        before = dict(run.sites[name].thresholds)
        # what has a threshold at a site after the training
        references: dict[Reference, None] = dict.fromkeys((run.reference, "global"))
        if "local" in before:
            references["local"] = None
        method = make_method(config, extractor)
        stage = Stage(progress, "thresholds", len(references) * len(paths))
        found: dict[str, Threshold] = {}
        for reference in references:
            detector = run.detector(name, extractor, reference)
            own = method.unseen_scores(detector, paths, name, stage)
            kept = {
                other: np.asarray(model.thresholds[reference].scores)
                for other, model in run.sites.items()
                if reference in model.thresholds and model.thresholds[reference].scores
            }
            rule = "own" if reference == "local" else config.threshold_rule
            new = find_thresholds(kept | {name: own}, target, rule).get(name)
            if new is None:
                raise DataError(f"only {len(own)} of the {len(paths)} images could be scored")
            found[reference] = new
        run.sites[name].thresholds.update(found)
        run.save(run_folder)
    return {
        "site": name,
        "images": len(paths),
        "target_fpr": target,
        "reference": run.reference,
        "thresholds": {
            reference: {
                "before": before[reference].value if reference in before else None,
                "now": threshold.value,
                "method": threshold.method,
            }
            for reference, threshold in found.items()
        },
    }


def _site(known: Sequence[str], site: str | None) -> str:
    if site in known:
        return str(site)
    if site is None and len(known) == 1:
        return known[0]
    said = "name the site whose images these are" if site is None else f"there is no site {site!r}"
    raise ConfigError(f"{said}: --site, one of {', '.join(known)}")
