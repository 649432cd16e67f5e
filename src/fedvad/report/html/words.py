"""The sentences of a page, made from the numbers alone: verdict, warnings, what left a site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedvad.federation.ledger import Ledger
from fedvad.memory.merge import COVERAGE_WARNING
from fedvad.report.bench_tables import size
from fedvad.report.html.record import Scores
from fedvad.report.tables import promises

__all__ = ["at", "headline", "number", "warnings", "what_left", "what_rows_are"]

Values = Mapping[str, Any]

_EQUAL = 0.0005  # a gain smaller than this reads as 0.000
_ALONE = "local"
_CHANCE = 0.01  # more false alarms than the target brings once in a hundred times are told
_MOST = 40  # warnings
# with any other value an uploaded row is no longer what the backbone made of one patch
_PLAIN = {"reduce": "coreset", "pull": 0.0, "update": "grow", "train_generator": False}


def headline(results: Values) -> str:
    """One sentence on whether federation helped, from `results.json`."""
    scored = at(results, "image_auroc", "sites") or {}
    known = {s: v for s in scored if (v := number(scored, s)) is not None}
    after = number(results, "image_auroc", "mean")
    if not scored:
        return (
            "There were no test images, so how well this detector works, and whether federation "
            "helped, is unknown."
        )
    if after is None or not known:
        return (
            "How well this detector tells defects is unknown: no site has both normal and "
            "anomalous test images."
        )
    over = "at the only site" if len(known) == 1 else f"over {len(known)} sites"
    before = number(results, "compare", _ALONE, "image_auroc", "mean")
    if before is None:
        worst = min(known, key=lambda s: known[s])
        text = f"Mean image AUROC is {after:.3f} {over}"
        if len(known) > 1:
            text += f" (lowest: {worst}, {known[worst]:.3f})"
        return (
            f"{text}; whether federation helped is unknown, because no site was measured alone "
            "(train with --compare local)."
        )
    gains = _gains(results, known)
    mean = number(results, "gain", _ALONE, "mean", "gain")
    change = after - before if mean is None else mean
    if abs(change) < _EQUAL:
        text = (
            f"Federation did not help on average: mean image AUROC is {after:.3f} {over}, "
            f"{before:.3f} with each site alone"
        )
    else:
        verb = "lifted" if change > 0 else "lowered"
        text = f"Federation {verb} the mean image AUROC from {before:.3f} to {after:.3f} {over}"
    interval = _interval(at(results, "gain", _ALONE, "mean"))
    if abs(change) >= _EQUAL and interval is not None and interval[0] <= 0 <= interval[1]:
        text += f", which may be chance (95 % interval {interval[0]:+.3f} to {interval[1]:+.3f})"
    return "; ".join([text, *_who(gains)]) + "."


def _who(gains: Mapping[str, float]) -> list[str]:
    """Who gained most and who lost, where there is more than one site."""
    if len(gains) < 2:
        return []
    best, worst = max(gains, key=lambda s: gains[s]), min(gains, key=lambda s: gains[s])
    lost = sum(gain <= -_EQUAL for gain in gains.values())
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
    return parts


def _gains(results: Values, known: Mapping[str, float]) -> dict[str, float]:
    gains = {}
    for site, after in known.items():
        gain = number(results, "gain", _ALONE, "sites", site, "gain")
        before = number(results, "compare", _ALONE, "image_auroc", "sites", site)
        if gain is None and before is not None:
            gain = after - before
        if gain is not None:
            gains[site] = gain
    return gains


def warnings(
    results: Values, ledger: Ledger, scores: Scores | None, *, weights: bool = False
) -> list[str]:
    """What an operator should know before trusting the numbers; at most 41 sentences.

    weights: sites share the weights of a student, and there is no memory.
    """
    found = []
    for entry in ledger.rounds:
        for site, reason in entry.rejected.items():
            found.append(f"Round {entry.round}: the upload of {site} was refused: {reason}")
        for site, reason in entry.distrusted.items():
            found.append(f"Round {entry.round}: the defence does not trust {site}: {reason}")
        if entry.coverage > COVERAGE_WARNING:
            found.append(
                f"Round {entry.round}: coverage {entry.coverage:.1f} is above "
                f"{COVERAGE_WARNING:.0f}: the global memory misses some normal mode and will raise "
                "false alarms; use more rows (--memory-rows) or --merge concat."
            )
    for site in at(results, "gain", _ALONE, "sites") or {}:
        high = number(results, "gain", _ALONE, "sites", site, "high")
        if high is not None and high < 0:
            better = "a student of its own" if weights else "--reference local"
            found.append(
                f"{site} is worse off than alone, by more than chance; for it {better} "
                "may be the better choice."
            )
    found += _threshold_warnings(results, scores)
    unreadable = results.get("unreadable")
    if isinstance(unreadable, list) and unreadable:
        found.append(
            f"{len(unreadable)} image{'s' * (len(unreadable) > 1)} could not be read and "
            "took no part; results.json names them."
        )
    if len(found) > _MOST:
        found = [*found[:_MOST], f"… and {len(found) - _MOST} more; see ledger.json."]
    return found


def _threshold_warnings(results: Values, scores: Scores | None) -> list[str]:
    found, bounds = [], []
    target = number(results, "threshold", "target_fpr")
    normals = alarms = 0
    for site, told in (at(results, "threshold", "sites") or {}).items():
        if number(told, "threshold") is None:
            found.append(f"{site} has no threshold: fewer than three normal images were held out.")
            continue
        if at(told, "method") not in (None, "conformal") and at(told, "promise") is None:
            bounds.append(site)
        fpr = number(told, "fpr")
        if scores is None or fpr is None or site not in scores.sites:
            continue
        n = scores.sites[site].labels.count(0)
        normals, alarms = normals + n, alarms + round(fpr * n)
        if _too_many(round(fpr * n), n, target):
            broken = _too_many(round(fpr * n), n, number(told, "promise", "rate"))
            unlike = (
                " That is beyond what its held-out normal images promised: its test images are of "
                "another kind than those (light, product, camera?)." if broken else ""
            )  # fmt: skip
            found.append(
                f"{site} alarms too often: {round(fpr * n)} of {n} normal test images ({fpr:.1%}) "
                f"where {target:.1%} were wanted, more than chance brings.{unlike}"
            )
    if _too_many(alarms, normals, target):
        found.append(
            f"All sites together raise {alarms} false alarms in {normals} normal test images "
            f"({alarms / normals:.1%}) where {target:.1%} were wanted, more than chance brings."
        )
    if target is not None and any(
        (number(told, "promise", "rate") or 0) > target
        for told in (at(results, "threshold", "sites") or {}).values()
    ):
        found += promises(results)
    if bounds:
        found.append(
            f"Thresholds of {_list(bounds)} are parametric bounds: there are too few "
            "held-out normal images to count a rank for the wanted false-alarm rate."
        )
    return found


def _too_many(alarms: int, n: int, target: float | None) -> bool:
    """Whether the wanted rate would bring as many alarms less than once in a hundred times."""
    from scipy.stats import binom

    if target is None or not n or alarms <= target * n:
        return False
    return float(binom.sf(alarms - 1, n, target)) < _CHANCE


def what_rows_are(config: Values, dim: int | None) -> str:
    """What one uploaded row is, by the configuration: a real patch's features, or an average."""
    values = "a vector" if dim is None else f"a vector of {dim} numbers"
    precision = config.get("precision", "float16")
    averaged = [
        f"{key} {config.get(key)}"
        for key, plain in _PLAIN.items()
        if config.get(key, plain) != plain
    ]
    text = f"Each row is {values} in {precision}, with a weight and a spread. "
    if averaged:
        return text + (
            f"By the configuration ({', '.join(averaged)}) rows are averages or moved values, not "
            "the features of one patch."
        )
    return text + (
        "It is the feature vector that the backbone computed from one real patch of a normal "
        "training image: not a picture, but not anonymous either, because someone with the same "
        "backbone can tell roughly what such a patch looked like."
    )


def what_weights_are() -> str:
    """What one upload of a student is."""
    return (
        "Each upload is the weights of the site's student network in float32, which the server "
        "averages with those of the other sites. Weights are not anonymous for being no picture: "
        "what they tell about single images was not measured."
    )


def what_left(
    results: Values, ledger: Ledger, dim: int | None, *, weights: bool = False
) -> list[tuple[str, str]]:
    """(site, sentence) on what each site sent during training; names in order of first upload."""
    names = dict.fromkeys(s for entry in ledger.rounds for s in entry.sites)
    names |= dict.fromkeys(at(results, "training_images") or {})
    told = []
    for site in names:
        sent = [e.bytes_up[site] for e in ledger.rounds if site in e.bytes_up]
        rows = sum(e.rows_up.get(site, 0) for e in ledger.rounds)
        refused = sum(site in e.rejected for e in ledger.rounds)
        if not sent:
            told.append((site, "sent nothing: it took part in no round."))
            continue
        times = "once" if len(sent) == 1 else f"{len(sent)} times"
        values = "" if dim is None else f" ({rows * dim:,} values)"
        what = "" if weights else f" {rows:,} rows{values},"
        text = f"sent {times}, together{what} {size(sum(sent))}"
        images = number(results, "training_images", site)
        if images is not None:
            text += f"; its {images:.0f} training images stayed"
        if refused:
            text += f"; {refused} of its uploads refused"
        told.append((site, text + "."))
    return told


def at(values: Any, *keys: str) -> Any:
    """What lies under the keys; None where anything on the way is null or missing."""
    for key in keys:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def number(values: Any, *keys: str) -> float | None:
    """The finite number under the keys, else None."""
    found = at(values, *keys)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def _interval(gain: Any) -> tuple[float, float] | None:
    low, high = number(gain, "low"), number(gain, "high")
    return None if low is None or high is None else (low, high)


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more sites"
