"""The verdict on a run in sentences that people count, for terminal, tables and page alike.

Fitness for use comes first (good images stopped, defects caught), then what federation gained, then
what would improve it. Everything follows from the figures in the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedvad.evaluation.learning import still_falling
from fedvad.evaluation.results import Counts, Gain, LearningCurve, MethodResults, Promised, Results
from fedvad.evaluation.thresholds import images_needed
from fedvad.features.names import BUNDLED
from fedvad.mergeable import merge_states

ALONE = "local"
_EQUAL = 0.0005  # a smaller gain reads as +0.000: neither gain nor loss
_CATCHES = 0.9  # below this share of caught defects there is advice
_SMALL = (BUNDLED, "filterbank")
_MOST_NAMES = 8
_FEW = 20  # good test images, of which one is 5 % already
_WHOSE = {ALONE: "each site alone", "pooled": "all images in one place"}


def verdict(results: Results) -> str:
    """All that `fitness`, `gain` and `advice` say, in this order."""
    return " ".join(part for part in [fitness(results), gain(results), *advice(results)] if part)


def fitness(results: Results) -> str:
    """What the thresholds stop and catch of the test images; "" where no test image is judged.

    In images; results of earlier versions hold only rates, which are then given in percent.
    """
    counted = _counted(results)
    rates = [
        (mean_rate(results, "fpr"), "stop {} of the good images"),
        (mean_rate(results, "recall"), "catch {} of the defects"),
    ]
    if not counted:
        known = [text.format(percent(rate)) for rate, text in rates if rate is not None]
        return f"At the sites' own thresholds they {' and '.join(known)}." if known else ""
    whole = total(results)
    one = len(counted) == 1
    who = f"At its own threshold {next(iter(counted))}" if one else (
        f"At their own thresholds the {len(counted)} sites"
    )  # fmt: skip
    s = "s" * one
    parts = []
    if whole.good:
        parts.append(f"stop{s} {whole.stopped} of {_images(whole.good, 'good image')}")
    if whole.defects:
        parts.append(f"catch{'es' * one} {whole.caught} of {_images(whole.defects, 'defect')}")
    text = f"{who} {' and '.join(parts)}"
    caught = {site: found for site, found in counted.items() if found.defects}
    if len(caught) > 1 and whole.caught < whole.defects:
        worst = next(site for site in worst_first(results) if site in caught)
        text += f" (lowest share at {worst}: {caught[worst].caught} of {caught[worst].defects})"
    if not whole.defects:
        text += "; no defect was tested"
    if 0 < whole.good < _FEW:
        text += f"; {_images(whole.good, 'good image')} say{'s' * (whole.good == 1)} little about "
        text += "false alarms"
    if whole.caught < whole.defects / 2:
        text += f". It misses {whole.defects - whole.caught} of {whole.defects} defects: an image "
        text += "that is not flagged may still show a defect"
    return f"{text}."


def advice(results: Results) -> list[str]:
    """What would make the detector fitter for use, as far as the figures say; [] for nothing."""
    found = unfinished(results.learning)
    target = results.threshold.target_fpr
    promises = {
        site: limit.promise
        for site, limit in results.threshold.sites.items()
        if limit.promise is not None
        and limit.method != "given"  # given by hand: no rate was wanted
    }
    short = {site: found for site, found in promises.items() if target and found.rate > target}
    if target is not None and short:
        found += _images_wanted(short, target)
    caught = total(results)
    recall = caught.caught / caught.defects if caught.defects else mean_rate(results, "recall")
    if recall is not None and recall < _CATCHES:
        ways = ["larger images (--image-size)"]
        if results.backbone in _SMALL:
            ways.insert(
                0,
                "a stronger backbone (--backbone resnet18, whose weights are a file of their own)",
            )
        if short:
            ways.insert(0, "more good images")
        if results.privacy is not None and results.privacy.epsilon is not None:
            ways.insert(0, "less noise (--epsilon, or --noise)")
        last = ways.pop()
        ways = [f"{', '.join(ways)} or {last}"] if ways else [last]
        found.append(
            f"To catch more, train with {ways[0]}; or accept more false alarms (--target-fpr)."
        )
    return found


def unfinished(curves: Mapping[str, LearningCurve]) -> list[str]:
    """One sentence where the held-out loss of a site is still falling; [] where all have settled.

    Curves by site; test images have no part in it.
    """
    falls = {name: still_falling(curve.at, curve.held_out) for name, curve in curves.items()}
    found = {name: fall for name, fall in falls.items() if fall is not None}
    if not found:
        return []
    most = max(found, key=lambda name: found[name])
    where = most if len(found) == 1 else f"{len(found)} sites, most at {most}"
    return [
        f"Unfinished: the held-out loss is still falling at {where} (by {100 * found[most]:.0f} % "
        "over the second half of the training). Train longer (--student-steps)."
    ]


def gain(results: Results) -> str:
    """What federation gained in image AUROC over each site alone, and whether that may be chance.

    Over the first compared method where no site was measured alone; what is unknown is said.
    """
    known = {s: v for s, v in results.image_auroc.sites.items() if v is not None}
    mean = results.image_auroc.mean
    if not results.image_auroc.sites:
        return (
            "There were no test images. Whether this detector works well, and whether federation "
            "helped, is unknown."
        )
    if mean is None or not known:
        return (
            "How well this detector recognises defects is unknown: no site has test images of both "
            "good parts and defects."
        )
    baseline = baseline_of(results)
    before = None if baseline is None else results.compare[baseline].image_auroc.mean
    if baseline is None or before is None:
        return _alone(results, known, mean)
    counted = _counts_of(results, baseline)
    if min(before, mean) >= 1 - _EQUAL:
        return (
            f"{counted}With federation and with {_whose(baseline)} every test image is ranked "
            "correctly (image AUROC 1.000): this test is too easy, or too small, to show a "
            "difference."
        )
    over = results.gain.get(baseline)
    parts = [_mean(baseline, before, mean, None if over is None else over.mean)]
    parts += _measured(results, known)
    if len(known) > 1:
        parts += _who(_site_gains(results, baseline), {} if over is None else over.sites)
    return counted + "; ".join(parts) + "."


def baseline_of(results: Results) -> str | None:
    """What the gain is over: "local", else the first compared method, else None."""
    return ALONE if ALONE in results.compare else next(iter(results.compare), None)


def total(results: MethodResults) -> Counts:
    """Counts summed over the sites that judged test images."""
    return merge_states([Counts(), *_counted(results).values()])


def mean_rate(results: MethodResults, which: Literal["fpr", "recall"]) -> float | None:
    """Mean of a rate over the sites that have it."""
    rates = [getattr(limit, which) for limit in results.threshold.sites.values()]
    known = [rate for rate in rates if rate is not None]
    return sum(known) / len(known) if known else None


def worst_first(results: Results) -> list[str]:
    """Sites by the share of defects that they catch, then by image AUROC; unknown ones last."""

    def rank(site: str) -> tuple[float, float]:
        limit = results.threshold.sites.get(site)
        recall = None if limit is None else limit.recall
        auroc = results.image_auroc.sites.get(site)
        return (2.0 if recall is None else recall, 2.0 if auroc is None else auroc)

    return sorted(results.all_sites, key=rank)


def percent(rate: float) -> str:
    """A rate in [0, 1] as every table writes it."""
    return f"{100 * rate:.1f} %"


def _images_wanted(short: Mapping[str, Promised], target: float) -> list[str]:
    """What these sites' images can promise, and how many a promise of `target` takes.

    Nothing where there are enough for `target` on average.
    """
    least = min(short, key=lambda site: short[site].images)
    found = short[least]
    needed, certain = images_needed(target), images_needed(target, found.confidence)
    if found.images >= needed:
        return []
    wanted, sure = _plain_percent(target), f"{100 * found.confidence:.0f} % sure"
    others = {one.images for one in short.values()}
    who = "Each site" if len(short) > 1 and others == {found.images} else least
    return [
        f"{who} has only {_images(found.images, 'good image')}: its false-alarm rate may be as "
        f"high as {_plain_percent(found.rate)}. To be {sure} of {wanted}, collect {certain}; "
        f"{needed} give {wanted} on average."
    ]


def _plain_percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _alone(results: Results, known: Mapping[str, float], mean: float) -> str:
    text = f"Mean image AUROC is {mean:.3f}" if len(known) > 1 else f"Image AUROC is {mean:.3f}"
    if len(known) > 1:
        worst = min(known, key=lambda s: known[s])
        text += f" over {len(known)} sites"
        if known[worst] < mean - _EQUAL:
            text += f" (lowest: {worst}, {known[worst]:.3f})"
    text = "; ".join([text, *_measured(results, known)])
    if results.reference is None and len(results.training_images) > 1:
        text += (
            "; whether federation helped is unknown, because no site was measured alone (train "
            "with --compare local)"
        )
    return f"{text}."


def _measured(results: Results, known: Mapping[str, float]) -> list[str]:
    """Where it was measured, if not everywhere."""
    others = [site for site in [*results.all_sites, *results.training_images] if site not in known]
    others = list(dict.fromkeys(others))
    if not others:
        return []
    lack = "lacks" if len(others) == 1 else "lack"
    return [
        f"measured at {_names(list(known))} only: {_names(others)} {lack} test images of good "
        "parts or of defects"
    ]


def _counts_of(results: Results, baseline: str) -> str:
    """What the baseline catches and stops, as a sentence with a space after it; "" if unknown."""
    theirs = total(results.compare[baseline])
    parts = []
    if theirs.defects:
        parts.append(f"{theirs.caught} of {_images(theirs.defects, 'defect')} caught")
    if theirs.good:
        parts.append(f"{theirs.stopped} of {_images(theirs.good, 'good image')} stopped")
    whose = _whose(baseline)
    return f"{whose[0].upper()}{whose[1:]}: {', '.join(parts)}. " if parts else ""


def _whose(baseline: str) -> str:
    return _WHOSE.get(baseline, baseline)


def _mean(baseline: str, before: float, after: float, found: Gain | None) -> str:
    change = after - before if found is None else found.gain
    whose = _whose(baseline)
    if abs(change) < _EQUAL:
        text = f"Mean image AUROC is {after:.3f} with federation, as with {whose} ({before:.3f})"
    elif baseline == ALONE:
        verb = "lifted" if change > 0 else "lowered"
        text = f"Federation {verb} mean image AUROC from {before:.3f} ({whose}) to {after:.3f}"
    else:
        side = "above" if change > 0 else "below"
        text = f"Mean image AUROC is {after:.3f}, {abs(change):.3f} {side} {whose} ({before:.3f})"
    if found is None:
        return text
    interval = f"95 % interval of the difference: {found.low:.3f} to {found.high:.3f}"
    if found.includes_zero and abs(change) >= _EQUAL:
        return f"{text}, which may be chance ({interval})"
    return f"{text} ({interval})"


def _who(gains: Mapping[str, float], intervals: Mapping[str, Gain]) -> list[str]:
    """Who gained most, who lost, and for how many that may be chance."""
    if not gains or all(abs(change) < _EQUAL for change in gains.values()):
        return []
    best, worst = max(gains, key=lambda s: gains[s]), min(gains, key=lambda s: gains[s])
    lost = sum(change <= -_EQUAL for change in gains.values())
    parts = []
    if gains[best] >= _EQUAL:
        parts.append(f"{best} gained most ({gains[best]:+.3f})")
    else:
        parts.append("no site gained")
    if not lost:
        parts.append("no site lost")
    elif lost == 1:
        parts.append(f"{worst} lost ({gains[worst]:+.3f})")
    else:
        parts.append(f"{lost} sites lost, {worst} most ({gains[worst]:+.3f})")
    doubtful = sum(found.includes_zero for found in intervals.values())
    if doubtful:
        which = "every site" if doubtful == len(intervals) else (
            f"{doubtful} of {len(intervals)} sites"
        )  # fmt: skip
        parts.append(f"at {which} the difference may be chance")
    return parts


def _site_gains(results: Results, baseline: str) -> dict[str, float]:
    """Gain per site: as measured with its interval, else the difference of the two AUROCs."""
    measured = results.gain.get(baseline)
    found = {}
    for site, after in results.image_auroc.sites.items():
        before = results.compare[baseline].image_auroc.sites.get(site)
        if measured is not None and site in measured.sites:
            found[site] = measured.sites[site].gain
        elif before is not None and after is not None:
            found[site] = after - before
    return found


def _counted(results: MethodResults) -> dict[str, Counts]:
    """Counts of the sites that judged at least one test image."""
    every = {site: limit.counts for site, limit in results.threshold.sites.items()}
    return {s: c for s, c in every.items() if c is not None and c.good + c.defects}


def _images(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _names(sites: list[str]) -> str:
    if len(sites) > _MOST_NAMES:
        return f"{', '.join(sites[:_MOST_NAMES])} and {len(sites) - _MOST_NAMES} more"
    return " and ".join(filter(None, [", ".join(sites[:-1]), sites[-1]]))
