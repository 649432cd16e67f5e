"""The verdict on a run in sentences that people count, for terminal, tables and page alike.

Fitness for use comes first (good images stopped, defects caught), then what would improve it, then
what federation gained. Everything follows from the figures in the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedvad.evaluation.results import Counts, Gain, MethodResults, Promised, Results
from fedvad.evaluation.thresholds import images_needed
from fedvad.features.names import BUNDLED

__all__ = [
    "ALONE",
    "advice",
    "baseline_of",
    "fitness",
    "gain",
    "mean_rate",
    "percent",
    "total",
    "verdict",
    "worst_first",
]

ALONE = "local"
_EQUAL = 0.0005  # a smaller gain reads as +0.000: neither gain nor loss
_CATCHES = 0.9  # below this share of caught defects there is advice
_SMALL = (BUNDLED, "filterbank")
_MOST_NAMES = 8


def verdict(results: Results) -> str:
    """All that `fitness`, `advice` and `gain` say, in this order."""
    return " ".join(part for part in [fitness(results), *advice(results), gain(results)] if part)


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
        told = [text.format(percent(rate)) for rate, text in rates if rate is not None]
        return f"At the sites' own thresholds they {' and '.join(told)}." if told else ""
    whole = total(results)
    one = len(counted) == 1
    who = f"At its own threshold {next(iter(counted))}" if one else (
        f"At their own thresholds the {len(counted)} sites"
    )  # fmt: skip
    s = "s" * one
    told = []
    if whole.good:
        told.append(f"stop{s} {whole.stopped} of {_images(whole.good, 'good image')}")
    if whole.defects:
        told.append(f"catch{'es' * one} {whole.caught} of {_images(whole.defects, 'defect')}")
    text = f"{who} {' and '.join(told)}"
    caught = {site: found for site, found in counted.items() if found.defects}
    if len(caught) > 1:
        worst = next(site for site in worst_first(results) if site in caught)
        text += f" (fewest at {worst}: {caught[worst].caught} of {caught[worst].defects})"
    if not whole.defects:
        text += "; no defect was tested"
    return f"{text}."


def advice(results: Results) -> list[str]:
    """What would make the detector fitter for use, as far as the figures say; [] for nothing."""
    found = []
    target = results.threshold.target_fpr
    promises = {
        site: limit.promise
        for site, limit in results.threshold.sites.items()
        if limit.promise is not None
        and limit.method != "given"  # given by hand: no rate was wanted
    }
    short = {site: told for site, told in promises.items() if target and told.rate > target}
    if target is not None and short:
        found.append(_images_wanted(short, target))
    caught = total(results)
    recall = caught.caught / caught.defects if caught.defects else mean_rate(results, "recall")
    if recall is not None and recall < _CATCHES:
        ways = ["larger images (--image-size)"]
        if results.backbone in _SMALL:
            ways.insert(0, "a stronger backbone (--backbone resnet18)")
        if short:
            ways.insert(0, "more normal images")
        last = ways.pop()
        ways = [f"{', '.join(ways)} or {last}"] if ways else [last]
        found.append(f"To catch more, train with {ways[0]}.")
    return found


def gain(results: Results) -> str:
    """What federation gained in image AUROC over each site alone, and whether that may be chance.

    Over the first compared method where no site was measured alone; what is unknown is said.
    """
    known = {s: v for s, v in results.image_auroc.sites.items() if v is not None}
    mean = results.image_auroc.mean
    if not results.image_auroc.sites:
        return (
            "There were no test images, so how well this detector works, and whether federation "
            "helped, is unknown."
        )
    if mean is None or not known:
        return (
            "How well this detector tells defects is unknown: no site has both normal and "
            "anomalous test images."
        )
    baseline = baseline_of(results)
    before = None if baseline is None else results.compare[baseline].image_auroc.mean
    if baseline is None or before is None:
        return _alone(results, known, mean)
    over = results.gain.get(baseline)
    parts = [_mean(baseline, before, mean, None if over is None else over.mean)]
    if len(known) > 1:
        parts += _who(_site_gains(results, baseline), {} if over is None else over.sites)
    return "; ".join(parts) + "."


def baseline_of(results: Results) -> str | None:
    """What the gain is over: "local", else the first compared method, else None."""
    return ALONE if ALONE in results.compare else next(iter(results.compare), None)


def total(results: MethodResults) -> Counts:
    """Counts summed over the sites that judged test images."""
    every = _counted(results).values()
    return Counts(
        good=sum(one.good for one in every),
        stopped=sum(one.stopped for one in every),
        defects=sum(one.defects for one in every),
        caught=sum(one.caught for one in every),
    )


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


def _images_wanted(short: Mapping[str, Promised], target: float) -> str:
    """How many normal images a promise of `target` takes, and how many these sites have."""
    least = min(short, key=lambda site: short[site].images)
    told = short[least]
    if len({one.images for one in short.values()}) > 1:
        has = f"{least} has the fewest, {told.images}"
    elif len(short) > 1:
        has = f"{_names(list(short))} have {told.images} each"
    else:
        has = f"{least} has {told.images}"
    sure = f"with {told.confidence:.0%} confidence".replace("%", " %")
    wanted = f"are needed to promise {_plain_percent(target)} false alarms"
    needed = images_needed(target)
    certain = images_needed(target, told.confidence)
    if told.images < needed:
        text = f"{needed} normal images per site {wanted} on average, {certain} {sure}"
    else:
        text = f"{certain} normal images per site {wanted} {sure}"
    return f"{text}: {has}, which promise at most {_plain_percent(told.rate)} {sure}."


def _plain_percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _alone(results: Results, known: Mapping[str, float], mean: float) -> str:
    over = "at the only site" if len(known) == 1 else f"over {len(known)} sites"
    text = f"Mean image AUROC is {mean:.3f} {over}"
    if len(known) > 1:
        worst = min(known, key=lambda s: known[s])
        text += f" (lowest: {worst}, {known[worst]:.3f})"
    if results.reference is None and len(results.training_images) > 1:
        text += (
            "; whether federation helped is unknown, because no site was measured alone (train "
            "with --compare local)"
        )
    return f"{text}."


def _mean(baseline: str, before: float, after: float, found: Gain | None) -> str:
    change = after - before if found is None else found.gain
    whose = "each site alone" if baseline == ALONE else baseline
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
    interval = f"[{found.low:+.3f}, {found.high:+.3f}]"
    if found.includes_zero:
        return f"{text}, but the interval {interval} of the difference includes zero"
    return f"{text} (interval of the difference {interval})"


def _who(gains: Mapping[str, float], intervals: Mapping[str, Gain]) -> list[str]:
    """Who gained most, who lost, and for how many that may be chance."""
    if not gains:
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
        which = "all of them" if doubtful == len(intervals) else f"{doubtful} of {len(intervals)}"
        parts.append(f"the interval includes zero at {which}")
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
