"""The threshold that decides: a run's own, one for another target, or one that the user gives."""

from __future__ import annotations

import logging
import math
from numbers import Real

from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.sites import MIN_HELD_OUT
from fedvad.evaluation.thresholds import Threshold, check_target, images_needed, promise
from fedvad.runs.config import Reference
from fedvad.runs.families import method_class
from fedvad.runs.run import Run, middle
from fedvad.runs.thresholds import retarget

log = logging.getLogger(__name__)

_MOST_NAMES = 6


def check_threshold_options(threshold: float | None, target_fpr: float | None) -> None:
    """Raise `ConfigError` for both at once, no finite number, or a rate outside (0, 0.5]."""
    if threshold is not None and target_fpr is not None:
        raise ConfigError("give a threshold or a target false-alarm rate, not both")
    given: dict[str, object] = {"threshold": threshold, "target_fpr": target_fpr}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real):  # of NumPy, too
            raise ConfigError(f"{name} is {value!r}; it must be a number")
        if not math.isfinite(float(value)):
            raise ConfigError(f"{name} is {value}; it must be a finite number")
    if target_fpr is not None:
        check_target(target_fpr)


def choose_threshold(
    run: Run,
    site: str | None,
    reference: Reference | None = None,
    *,
    threshold: float | None = None,
    target_fpr: float | None = None,
) -> Threshold | None:
    """What a site's scores are compared with; None where the run has no threshold.

    threshold: a value in place of the run's. Its method is "given"; its target is the share of the
    held-out normal scores above it, where the run keeps these, else NaN.
    target_fpr: another wanted false-alarm rate; the threshold is found again, without training,
    from the scores of held-out normal images that the run keeps with it (without a site: the
    median of the sites' new ones).

    Raises `ConfigError` for unfit options (see `check_threshold_options`) or a target for which
    no scores are kept, `ArtefactError` for a run whose threshold is no finite number.
    """
    check_threshold_options(threshold, target_fpr)
    found = run.threshold(site, reference)
    if threshold is not None:
        scores = () if found is None else found.scores
        above = sum(score > threshold for score in scores) / len(scores) if scores else math.nan
        return Threshold(
            value=float(threshold), n=len(scores), method="given", target_fpr=above, scores=scores
        )
    if target_fpr is not None:
        found = _retargeted(run, site, reference, target_fpr)
    if found is not None and not math.isfinite(found.value):
        raise ArtefactError(
            f"the threshold of {site or 'this run'} is {found.value}, so that nothing can be "
            "decided: the run is damaged; give --threshold, or train again"
        )
    return found


def warn_of_threshold(
    run: Run, site: str | None, limit: Threshold | None, target_fpr: float | None = None
) -> None:
    """Log what whoever decides by `limit` must know.

    Without a site that it is the median of several sites' thresholds, and with a wanted
    false-alarm rate that the good images of the site are too few to promise it.
    """
    if limit is None or limit.method == "given":
        return
    if site is None and len(run.sites) > 1:
        names = sorted(run.sites)
        whose = f"{len(names)} sites" if len(names) > _MOST_NAMES else ", ".join(names)
        log.warning(
            "no --site given: deciding by %.4g, the median of %s; --site %s takes that site's own "
            "threshold", limit.value, whose, names[0],
        )  # fmt: skip
    if target_fpr is None or not limit.scores:
        return
    best = promise(len(limit.scores))
    if best.rate > target_fpr:
        log.warning(
            "%s has %d good images, which can promise at most %.3g %% false alarms, not %g %%: "
            "that takes %d good images", "a site of this run" if site is None else site,
            best.images, 100 * best.rate, 100 * target_fpr,
            images_needed(target_fpr, best.confidence),
        )  # fmt: skip


def why_no_threshold(run: Run, site: str | None) -> str:
    """The reason, for people, why a run has no threshold."""
    if site is None or site not in run.sites:
        return "no threshold: no site of the run has one; give --threshold"
    count = run.sites[site].n_images
    held = " among the fifth that is held out" * method_class(run.method).sends_weights
    return (
        f"no threshold: training had {count} normal image{'s' * (count != 1)}, and at least "
        f"{MIN_HELD_OUT} different ones{held} are needed; give --threshold"
    )


def _retargeted(
    run: Run,
    site: str | None,
    reference: Reference | None,
    target_fpr: float,
) -> Threshold:
    """By the rule of the training, which the method of the run's own thresholds names."""
    wanted = reference
    if site not in run.sites and reference in (None, "union"):
        wanted = "global"
    new = retarget({name: run.threshold(name, wanted) for name in run.sites}, target_fpr)
    known = site is not None and site in run.sites
    chosen = new.get(str(site)) if known else middle(list(new.values()))
    if chosen is None:
        raise ConfigError(
            "this run keeps no scores of normal images to find a threshold for target_fpr "
            f"{target_fpr:g} from: give --threshold, or train again"
        )
    return chosen
