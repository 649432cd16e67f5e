"""The JSON result of a run as tables (rows of strings, CSV, Markdown, terminal) and a sentence.

The first row of every table is its header. Figures are written one way everywhere: AUROC and AUPRO
with three decimals, rates in percent, gains with their sign; an en dash stands for what is unknown.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from fedvad.data.files import write_atomically
from fedvad.data.reading import data_table
from fedvad.evaluation.thresholds import promise, promise_in_words

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "neutral_cell",
    "own_normals_table",
    "promises",
    "results_table",
    "rich_data_table",
    "rich_table",
    "rich_tables",
    "sites_table",
    "to_markdown",
    "verdict",
    "write_csv",
]

Results = Mapping[str, Any]
Rows = Sequence[Sequence[str]]

_UNKNOWN = "–"
_EQUAL = 0.0005  # gains smaller than this read as +0.000: neither gain nor loss
_ALONE = "local"
_MOST_NAMES = 8
_NARROW = 12  # characters: columns up to this width keep it in a narrow terminal


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
            "image AUROC pooled",
            "pixel AUROC mean",
            "AUPRO mean",
            "false alarms mean",
            "recall mean",
            f"gain of {name} over it [low, high]",
        ]
    ]
    for method, values in _methods(results, name):
        gain = None if values is results else _at(results, "gain", method, "mean")
        rows.append(
            [
                method,
                _figure(_number(values, "image_auroc", "mean")),
                _figure(_number(values, "image_auroc", "worst")),
                _figure(_number(values, "image_auroc", "pooled")),
                _figure(_number(values, "pixel_auroc", "mean")),
                _figure(_number(values, "aupro", "mean")),
                _percent(_site_mean(values, "fpr")),
                _percent(_site_mean(values, "recall")),
                _gain(gain),
            ]
        )
    return rows


def sites_table(results: Results, *, name: str = "federated") -> list[list[str]]:
    """One row per site: image AUROC of each method, gain over a site alone, threshold, rates.

    The gain is that over "local", or over the first compared method when there is no "local"; its
    column is missing when nothing was compared. Thresholds, false alarms and recall are those of
    this method. "promised" is the rate that the held-out normal images let one promise with 95 %
    confidence; in results of earlier versions a threshold that is a parametric bound says so.
    """
    methods = _methods(results, name)
    baseline = _baseline(results)
    header = ["site", *(f"image AUROC {method}" for method, _ in methods)]
    if baseline is not None:
        header.append(f"gain over {baseline} [low, high]")
    limits = {site: _at(results, "threshold", "sites", site) for site in _sites(results)}
    promised = any(_at(limit, "promise") for limit in limits.values())
    rows = [[*header, "threshold", *["promised"] * promised, "false alarms", "recall"]]
    for site, limit in limits.items():
        row = [site, *(_figure(_number(v, "image_auroc", "sites", site)) for _, v in methods)]
        if baseline is not None:
            row.append(_gain(_at(results, "gain", baseline, "sites", site)))
        row += [
            _threshold(limit),
            *[_at_most(_number(limit, "promise", "rate"))] * promised,
            _percent(_number(results, "threshold", "sites", site, "fpr")),
            _percent(_number(results, "threshold", "sites", site, "recall")),
        ]
        rows.append(row)
    return rows


def own_normals_table(results: Results) -> list[list[str]]:
    """What a site sees without any defect: whether its unseen normals came nearer to memory."""
    head = ["site", "median score alone", "median score federated", "share that came nearer"]
    return [head] + [
        [
            site,
            f"{told['median_alone']:.4g}",
            f"{told['median_federated']:.4g}",
            f"{told['share_nearer']:.0%}",
        ]
        for site, told in (_at(results, "own_normals") or {}).items()
    ]


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows as a CSV file (UTF-8), in one step; raises StorageError when the disk refuses."""
    buffer = StringIO(newline="")
    neutral = [[neutral_cell(cell) for cell in row] for row in rows]
    csv.writer(buffer, lineterminator="\n").writerows(neutral)
    write_atomically(path, buffer.getvalue().encode(errors="backslashreplace"))


def neutral_cell(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text with = + - @ in front gets a quote.

    So does text that begins with a tab or line break. Numbers stay, also written as text.
    """
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def to_markdown(rows: Rows) -> str:
    """Rows as a Markdown table, numbers to the right; "" for no rows."""
    if not rows:
        return ""
    header, *body = ([_cell(text) for text in row] for row in rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_tables(results: Results, *, name: str = "federated") -> list[Table]:
    """The tables per method and per site for the terminal, readable from 80 columns on; where
    no test image tells how good it is, that of each site's own normal images.
    """
    methods = rich_table("Methods", results_table(results, name=name))
    tables = [methods, rich_table("Sites", sites_table(results, name=name))]
    moved = own_normals_table(results)
    if len(moved) > 1 and _number(results, "image_auroc", "mean") is None:
        tables.append(rich_table("Own normal images", moved))
    data = _at(results, "data")
    if data and not data.get("complete"):
        tables.append(rich_data_table(data))
    return tables


def rich_data_table(data: Mapping[str, Any]) -> Table:
    """What was read of a data folder and what was not, for the terminal."""
    return rich_table("Data", data_table(data), numbers=1)


def rich_table(title: str, rows: Rows, *, numbers: int | None = None) -> Table:
    """A table for the terminal; headings wrap to the figures below, only long cells wrap.

    numbers: the only column that is aligned to the right; None for all but the first.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    for index, heading in enumerate(rows[0]):
        longest = max(map(len, [*heading.split(), *(row[index] for row in rows[1:])]))
        table.add_column(
            Text("\n".join(wrap(heading, longest))),
            justify="right" if index == numbers or (numbers is None and index) else "left",
            no_wrap=longest <= _NARROW,
            overflow="fold",
        )
    for row in rows[1:]:
        table.add_row(*map(Text, row))  # Text: a site called "[red]" is a name, not markup
    return table


def verdict(results: Results) -> str:
    """What federation gained or lost in image AUROC, and what its thresholds promise.

    From the numbers alone: one sentence on the gain over "local" (each site alone), or the first
    compared method, which says so when the mean or a site lost, and when an interval includes zero
    (gains below 0.0005 count as none); one sentence on false alarms for each kind of site.
    """
    return " ".join([_auroc_verdict(results), *promises(results)])


def promises(results: Results) -> list[str]:
    """One sentence for all sites whose held-out normal images let one promise the same rate."""
    target = _number(results, "threshold", "target_fpr")
    groups: dict[tuple[int, int], list[str]] = {}
    for site in _sites(results):
        promised = _at(results, "threshold", "sites", site, "promise")
        above, images = _number(promised, "above"), _number(promised, "images")
        if above is not None and images is not None:
            groups.setdefault((int(above), int(images)), []).append(site)
    if target is None or not 0 < target <= 0.5:
        return []
    return [
        f"{_names(sites)}: {promise_in_words(promise(images, above), target)}"
        for (above, images), sites in groups.items()
        if 0 <= above <= images
    ]


def _names(sites: Sequence[str]) -> str:
    if len(sites) <= _MOST_NAMES:
        return ", ".join(sites)
    return f"{', '.join(sites[:_MOST_NAMES])} and {len(sites) - _MOST_NAMES} more"


def _auroc_verdict(results: Results) -> str:
    mean = _number(results, "image_auroc", "mean")
    if mean is None:
        return "Image AUROC is unknown: no site has both normal and anomalous test images."
    baseline = _baseline(results)
    other = None if baseline is None else _at(results, "compare", baseline)
    before = _number(other, "image_auroc", "mean")
    if baseline is None or before is None:
        parts = [f"Mean image AUROC is {mean:.3f}", _worst_alone(results)]
        parts.append("with nothing to compare it with")
        return _sentence(parts, ", ")
    gains = _site_gains(results, baseline)
    parts = [
        _mean_clause(results, baseline, before, mean),
        _worst_clause(other, results),
        _sites_clause(gains, _certain_sites(results, baseline)),
        _extremes_clause(gains),
    ]
    return _sentence(parts, "; ")


def _mean_clause(results: Results, baseline: str, before: float, after: float) -> str:
    gain = _number(results, "gain", baseline, "mean", "gain")
    change = after - before if gain is None else gain
    if abs(change) < _EQUAL:
        who = "each site alone" if baseline == _ALONE else baseline
        text = f"Mean image AUROC is {after:.3f}, as good as {before:.3f} with {who}"
    elif baseline == _ALONE:
        verb = "lifted" if change > 0 else "lowered"
        text = (
            f"Federation {verb} mean image AUROC from {before:.3f} (each site alone) to {after:.3f}"
        )
    else:
        side = "above" if change > 0 else "below"
        text = (
            f"Mean image AUROC is {after:.3f}, {abs(change):.3f} {side} {baseline} ({before:.3f})"
        )
    interval = _interval(_at(results, "gain", baseline, "mean"))
    if interval is not None and interval[0] <= 0 <= interval[1]:
        text += f", but the interval [{interval[0]:+.3f}, {interval[1]:+.3f}] includes zero"
    return text


def _worst_clause(before: Results | None, after: Results) -> str:
    old, new = _number(before, "image_auroc", "worst"), _number(after, "image_auroc", "worst")
    if old is None or new is None:
        return ""
    return f"worst site {old:.3f} to {new:.3f}"  # each method's own worst, maybe another site


def _worst_alone(results: Results) -> str:
    worst = _number(results, "image_auroc", "worst")
    return "" if worst is None else f"{worst:.3f} at the worst site"


def _sites_clause(gains: Mapping[str, float], certain: Mapping[str, bool]) -> str:
    """How many sites gained, and for how many that may be chance."""
    if not gains:
        return ""
    won = sum(gain >= _EQUAL for gain in gains.values())
    lost = sum(gain <= -_EQUAL for gain in gains.values())
    if len(gains) == 1:
        text = "the only site " + ("gained" if won else "lost" if lost else "stayed equal")
    elif won == len(gains):
        text = "every site gained"
    elif lost == len(gains):
        text = "every site lost"
    elif not won and not lost:
        text = "no site gained or lost"
    else:
        text = f"{won} of {len(gains)} sites gained, {lost} lost"
    doubtful = sum(not sure for sure in certain.values())
    if not doubtful:
        return text
    if len(certain) == 1:
        return f"{text}, its interval includes zero"
    which = "all of them" if doubtful == len(certain) else f"{doubtful} of {len(certain)}"
    return f"{text}, the interval includes zero at {which}"


def _extremes_clause(gains: Mapping[str, float]) -> str:
    """Who gained most, and who lost most when somebody lost."""
    if len(gains) < 2:
        return ""
    best, worst = max(gains, key=lambda site: gains[site]), min(gains, key=lambda s: gains[s])
    parts = []
    if gains[best] >= _EQUAL:
        parts.append(f"{best} gained most ({gains[best]:+.3f})")
    if gains[worst] <= -_EQUAL:
        parts.append(f"{worst} lost most ({gains[worst]:+.3f})")
    return ", ".join(parts)


def _sentence(parts: Sequence[str], separator: str) -> str:
    return separator.join(part for part in parts if part) + "."


def _site_gains(results: Results, baseline: str) -> dict[str, float]:
    """Gain per site: as measured with its interval, else the difference of the two AUROCs."""
    gains = {}
    for site in _sites(results):
        gain = _number(results, "gain", baseline, "sites", site, "gain")
        old = _number(results, "compare", baseline, "image_auroc", "sites", site)
        new = _number(results, "image_auroc", "sites", site)
        if gain is None and old is not None and new is not None:
            gain = new - old
        if gain is not None:
            gains[site] = gain
    return gains


def _certain_sites(results: Results, baseline: str) -> dict[str, bool]:
    """Whether a site's interval excludes zero, for the sites that have one."""
    certain = {}
    for site in _sites(results):
        interval = _interval(_at(results, "gain", baseline, "sites", site))
        if interval is not None:
            certain[site] = not interval[0] <= 0 <= interval[1]
    return certain


def _methods(results: Results, name: str) -> list[tuple[str, Results]]:
    compared = _at(results, "compare") or {}
    return [(name, results), *((method, values or {}) for method, values in compared.items())]


def _baseline(results: Results) -> str | None:
    compared = _at(results, "compare") or {}
    return _ALONE if _ALONE in compared else next(iter(compared), None)


def _sites(results: Results) -> list[str]:
    """Every site named anywhere, in the order of first mention."""
    groups = [_at(results, "image_auroc", "sites"), _at(results, "threshold", "sites")]
    for values in (_at(results, "compare") or {}).values():
        groups.append(_at(values, "image_auroc", "sites"))
    return list(dict.fromkeys(site for group in groups for site in group or {}))


def _at(values: Any, *keys: str) -> Any:
    """What lies under the keys; None where anything on the way is null or missing."""
    for key in keys:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def _number(values: Any, *keys: str) -> float | None:
    found = _at(values, *keys)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def _interval(gain: Any) -> tuple[float, float] | None:
    low, high = _number(gain, "low"), _number(gain, "high")
    return None if low is None or high is None else (low, high)


def _site_mean(values: Any, key: str) -> float | None:
    rates = [_number(site, key) for site in (_at(values, "threshold", "sites") or {}).values()]
    known = [rate for rate in rates if rate is not None]
    return sum(known) / len(known) if known else None


def _figure(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.1f} %"


def _gain(gain: Any) -> str:
    value, interval = _number(gain, "gain"), _interval(gain)
    if value is None:
        return _UNKNOWN
    return f"{value:+.3f}" + (f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else "")


def _threshold(found: Any) -> str:
    value = _number(found, "threshold")
    if value is None:
        return _UNKNOWN
    method = _at(found, "method")
    # A bound from an assumed shape of the scores must not pass for a counted rank.
    rough = method not in (None, "conformal") and _at(found, "promise") is None
    note = f" ({method})" if rough else ""
    return f"{value:.4g}{note}"


def _at_most(rate: float | None) -> str:
    return _UNKNOWN if rate is None else f"≤ {_percent(rate)}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
