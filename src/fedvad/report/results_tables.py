"""The results of a run as tables: rows of strings with the header first.

Figures are written one way everywhere: AUROC and AUPRO with three decimals, images as counts, rates
in percent, gains with their sign; an en dash stands for what is unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedvad.evaluation.results import Gain, MethodResults, Results, SiteThreshold
from fedvad.report.tables import INTERVAL, UNKNOWN, rich_data_table, rich_table, without_empty
from fedvad.report.verdict import baseline_of, mean_rate, percent

if TYPE_CHECKING:
    from rich.table import Table

_INTERVAL_HEAD = " (95 % interval)"
_AT_MOST = "false alarms, at most (95 % sure)"


def results_table(results: Results, *, name: str = "federated") -> list[list[str]]:
    """One row per method: this one, called `name`, then those it was compared with.

    The last column is the gain of this method in mean image AUROC over the row's method, with its
    interval. False alarms and recall are means over the sites that have them.
    """
    rows = [
        [
            "method",
            "image AUROC mean",
            "image AUROC worst",
            "image AUROC all images together",
            "pixel AUROC mean",
            "AUPRO mean",
            "false alarms mean",
            "recall mean",
            f"gain of {name} over this method{_INTERVAL_HEAD}",
        ]
    ]
    for method, values in _methods(results, name):
        over = results.gain.get(method)
        rows.append(
            [
                method,
                _figure(values.image_auroc.mean),
                _figure(values.image_auroc.worst),
                _figure(values.image_auroc.pooled),
                _figure(values.pixel_auroc.mean),
                _figure(values.aupro.mean),
                _rate(mean_rate(values, "fpr")),
                _rate(mean_rate(values, "recall")),
                _gain(None if over is None or values is results else over.mean),
            ]
        )
    return rows


def sites_table(
    results: Results, *, name: str = "federated", brief: bool = False
) -> list[list[str]]:
    """One row per site: what its threshold stops and catches, image AUROC of each method, gain.

    Good images stopped and defects caught are counts, or rates in results of earlier versions.
    "false alarms, at most" is the rate that the held-out normal images promise with 95 %
    confidence; where they promise none, a threshold that is a parametric bound says so. The gain is
    that over "local", or over the first compared method when there is no "local"; its column is
    missing when nothing was compared. brief: without the image AUROC of other methods.
    """
    baseline = baseline_of(results)
    methods = [
        (method, values)
        for method, values in _methods(results, name)
        if not brief or values is results or method == baseline
    ]
    over = None if baseline is None else results.gain.get(baseline)
    limits = {
        site: results.threshold.sites.get(site, SiteThreshold()) for site in results.all_sites
    }
    promised = any(limit.promise is not None for limit in limits.values())
    header = ["site", "good stopped", "defects caught", "threshold", *[_AT_MOST] * promised]
    header += [f"image AUROC {method}" for method, _ in methods]
    if baseline is not None:
        header.append(f"gain over {baseline}{_INTERVAL_HEAD}")
    rows = [header]
    for site, limit in limits.items():
        n = limit.counts
        row = [
            site,
            f"{n.stopped} of {n.good}" if n and n.good else _rate(limit.fpr),
            f"{n.caught} of {n.defects}" if n and n.defects else _rate(limit.recall),
            _threshold(limit),
        ]
        if promised:
            row.append(UNKNOWN if limit.promise is None else f"≤ {percent(limit.promise.rate)}")
        row += [_figure(values.image_auroc.sites.get(site)) for _, values in methods]
        if baseline is not None:
            row.append(_gain(None if over is None else over.sites.get(site)))
        rows.append(row)
    return rows


def tradeoff_table(results: Results) -> list[list[str]]:
    """One row per wanted false-alarm rate: what all sites together would stop and catch."""
    rows = [["false alarms wanted", "good stopped", "defects caught"]]
    for at in results.tradeoff:
        n = at.counts
        rows.append(
            [
                f"{100 * at.target_fpr:g} %",
                f"{n.stopped} of {n.good}" if n.good else UNKNOWN,
                f"{n.caught} of {n.defects}" if n.defects else UNKNOWN,
            ]
        )
    return rows


def own_normals_table(results: Results) -> list[list[str]]:
    """What a site sees without any defect: whether its unseen normal images score lower."""
    head = ["site", "median score alone", "median score federated", "share with a lower score"]
    return [head] + [
        [site, f"{own.median_alone:.4g}", f"{own.median_federated:.4g}", f"{own.share_nearer:.0%}"]
        for site, own in results.own_normals.items()
    ]


def rich_tables(results: Results) -> list[Table]:
    """The tables for the terminal, without empty columns, readable from 80 columns on.

    The intervals of sites and the ranking of all images together are left to the report.
    Each site's own normal images only where no test image tells how good the detector is; what was
    read of the data only where something was guessed or omitted, and then only that.
    """
    sites = [
        [INTERVAL.sub("", cell).removesuffix(_INTERVAL_HEAD) for cell in row]
        for row in sites_table(results, brief=True)
    ]
    tables = [rich_table("Sites", without_empty(sites))]
    every = results_table(results)
    methods = without_empty([row[:3] + row[4:] for row in every])
    if len(methods[0]) > 1:
        tables.append(rich_table("Methods", methods))
    moved = own_normals_table(results)
    if len(moved) > 1 and results.image_auroc.mean is None:
        tables.append(rich_table("Own normal images", moved))
    if results.data is not None and not results.data.complete:
        tables.append(rich_data_table(results.data.to_dict(), guesses_only=True))
    return tables


def _methods(results: Results, name: str) -> list[tuple[str, MethodResults]]:
    return [(name, results), *results.compare.items()]


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else percent(value)


def _gain(found: Gain | None) -> str:
    if found is None:
        return UNKNOWN
    return f"{found.gain:+.3f} ({found.low:.3f} to {found.high:.3f})"


def _threshold(found: SiteThreshold) -> str:
    if found.threshold is None:
        return UNKNOWN
    # A bound from an assumed shape of the scores must not pass for a counted rank.
    rough = found.method not in (None, "conformal") and found.promise is None
    return f"{found.threshold:.4g}" + (f" ({found.method})" if rough else "")
