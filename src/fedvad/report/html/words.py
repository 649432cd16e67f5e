"""The sentences of a page, made from the numbers alone: warnings, and what left a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedvad.evaluation.results import Results
from fedvad.federation.ledger import Ledger
from fedvad.memory.merge import COVERAGE_WARNING
from fedvad.report.bench_tables import size
from fedvad.report.html.record import Scores
from fedvad.report.verdict import ALONE

Sends = Literal["rows", "weights", "sums"]

_CHANCE = 0.01  # more false alarms than the target brings once in a hundred times are reported
_MOST = 40  # warnings
# with any other value an uploaded row is no longer what the backbone made of one patch
_PLAIN = {"reduce": "coreset", "pull": 0.0, "update": "grow", "train_generator": False}


def warnings(
    results: Results, ledger: Ledger, scores: Scores | None, *, sends: Sends = "rows"
) -> list[str]:
    """What an operator should know before trusting the numbers; at most 41 sentences.

    sends: what sites share; with `weights` there is a student and no memory.
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
                f"{COVERAGE_WARNING:.0f}: some kind of good part is missing from the global "
                "memory, and false alarms will rise. Use more rows (--memory-rows) or "
                "--merge concat."
            )
    over = results.gain.get(ALONE)
    for site, change in ({} if over is None else over.sites).items():
        if change.high < 0:
            better = "a student of its own" if sends == "weights" else "--reference local"
            found.append(
                f"{site} does worse with federation than alone, and chance does not explain it; "
                f"for this site {better} may be the better choice."
            )
    found += _threshold_warnings(results, scores)
    if unread := len(results.unreadable):
        found.append(
            f"{unread} image{'s' * (unread > 1)} could not be read and "
            "took no part; results.json names them."
        )
    if len(found) > _MOST:
        found = [*found[:_MOST], f"… and {len(found) - _MOST} more; see ledger.json."]
    return found


def _threshold_warnings(results: Results, scores: Scores | None) -> list[str]:
    found, bounds = [], []
    target = results.threshold.target_fpr
    normals = alarms = 0
    for site, limit in results.threshold.sites.items():
        if limit.threshold is None:
            found.append(f"{site} has no threshold: fewer than three normal images were held out.")
            continue
        if limit.method not in (None, "conformal") and limit.promise is None:
            bounds.append(site)
        if scores is None or limit.fpr is None or site not in scores.sites:
            continue
        n = scores.sites[site].labels.count(0)
        own = round(limit.fpr * n)
        normals, alarms = normals + n, alarms + own
        if _too_many(own, n, target):
            broken = _too_many(own, n, None if limit.promise is None else limit.promise.rate)
            unlike = (
                " It is also more than its held-out normal images promised: the test images are "
                "probably of another kind (light, product, camera?)." if broken else ""
            )  # fmt: skip
            found.append(
                f"{site} raises too many false alarms: {own} of {n} normal test images "
                f"({limit.fpr:.1%}), where {target:.1%} was wanted. Chance does not explain "
                f"this.{unlike}"
            )
    if _too_many(alarms, normals, target):
        found.append(
            f"All sites together raise {alarms} false alarms in {normals} normal test images "
            f"({alarms / normals:.1%}), where {target:.1%} was wanted. Chance does not explain "
            "this."
        )
    if bounds:
        found.append(
            f"Too few normal images were held out at {_list(bounds)} to count off the wanted "
            "false-alarm rate. The thresholds there are estimated from an assumed distribution."
        )
    return found


def _too_many(alarms: int, n: int, target: float | None) -> bool:
    """Whether the wanted rate would bring as many alarms less than once in a hundred times."""
    from scipy.stats import binom

    if target is None or not n or alarms <= target * n:
        return False
    return float(binom.sf(alarms - 1, n, target)) < _CHANCE


def what_is_sent(config: Mapping[str, object], dim: int | None, sends: Sends) -> str:
    """What one upload is, by the configuration."""
    if sends == "weights":
        return _weights()
    return _sums(config) if sends == "sums" else _rows(config, dim)


def _rows(config: Mapping[str, object], dim: int | None) -> str:
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
            f"With these options ({', '.join(averaged)}) rows are averages or shifted values, not "
            "the features of one patch."
        )
    return text + (
        "It is the feature vector that the backbone computed from one real patch of a normal "
        "training image. It is not a picture, but not anonymous either: someone with the same "
        "backbone can tell roughly what the patch looked like."
    )


def _weights() -> str:
    """What one upload of a student is."""
    return (
        "Each upload is the weights of the site's student network in float32, which the server "
        "averages with those of the other sites. Weights are not pictures, but they may not be "
        "anonymous: what they reveal about single images was not measured."
    )


def _sums(config: Mapping[str, object]) -> str:
    """What one upload of sums is, and what protects it."""
    hidden = (
        "under masks that cancel in the total of all sites, so the server sees only the total"
        if config.get("masks", True)
        else "without masks, so the server sees the sums of each site"
    )
    epsilon = config.get("epsilon")
    noise = (
        "There is no noise, so there is no bound on what the total reveals about single images."
        if epsilon is None
        else f"Noise bounds what they reveal about one image: differential privacy with epsilon "
        f"{epsilon:g} at a delta of {config.get('delta', 1e-5):g}."
    )
    return (
        "A site sends a public key, then sums over all its normal images: first of their patch "
        f"features, then of products of these, {hidden}. No patch and no picture is sent. "
        f"{noise}"
    )


def what_left(
    results: Results, ledger: Ledger, dim: int | None, *, sends: Sends = "rows"
) -> list[tuple[str, str]]:
    """(site, sentence) on what each site sent during training; names in order of first upload."""
    names = dict.fromkeys(s for entry in ledger.rounds for s in entry.sites)
    names |= dict.fromkeys(results.training_images)
    sentences = []
    for site in names:
        sent = [e.bytes_up[site] for e in ledger.rounds if site in e.bytes_up]
        rows = sum(e.rows_up.get(site, 0) for e in ledger.rounds)
        refused = sum(site in e.rejected for e in ledger.rounds)
        if not sent:
            sentences.append((site, "sent nothing: it took part in no round."))
            continue
        times = "once" if len(sent) == 1 else f"{len(sent)} times"
        values = "" if dim is None else f" ({rows * dim:,} values)"
        what = f" {rows:,} rows{values}," if sends == "rows" else ""
        text = f"sent {times}, together{what} {size(sum(sent))}"
        images = results.training_images.get(site)
        if images is not None:
            text += f"; its {images} training images stayed"
        if refused:
            text += f"; {refused} of its uploads refused"
        sentences.append((site, text + "."))
    return sentences


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more sites"
