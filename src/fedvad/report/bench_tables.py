"""A bench summary as tables: Markdown for people, rows for CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedvad.report.tables import UNKNOWN, rich_table, spread, to_markdown

if TYPE_CHECKING:
    from rich.table import Table

_HEAD = [
    "method",
    "seeds",
    "image AUROC mean",
    "worst site",
    "pixel AUROC",
    "AUPRO",
    "memory rows",
    "up per site",
    "down per site",
    "s train",
    "ms per image",
    "peak MB",
    "front",
]
_BRIEF = (0, 2, 3, 7, 12)  # columns that fit a terminal


def bench_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Every set and method in one table of plain figures, its header first."""
    head = ["set", *_CSV, "gain_over", "gain", "gain_low", "gain_high"]
    rows = [head]
    for set_, methods in summary["sets"].items():
        for name, row in methods.items():
            plain = [set_, *(_plain(f(name, row)) for f in _CSV.values())]
            gains = row["gain"] or {"": None}
            for other, gain in gains.items():
                found = gain or {}
                rows.append(
                    [*plain, other, *(_plain(found.get(k)) for k in ("gain", "low", "high"))]
                )
    return rows


_CSV: dict[str, Any] = {
    "method": lambda name, row: name,
    "seeds": lambda name, row: row["seeds"],
    "image_auroc": lambda name, row: row["image_auroc"]["mean"],
    "image_auroc_sd": lambda name, row: row["image_auroc"]["sd"],
    "worst_site": lambda name, row: row["image_auroc"]["worst"],
    "lowest_site_and_seed": lambda name, row: row["image_auroc"]["lowest"],
    "average_precision": lambda name, row: row["average_precision"]["mean"],
    "pixel_auroc": lambda name, row: row["pixel_auroc"]["mean"],
    "aupro": lambda name, row: row["aupro"]["mean"],
    "memory_rows": lambda name, row: row["costs"]["memory_rows"],
    "bytes_up_per_site": lambda name, row: row["costs"]["bytes_up"],
    "bytes_down_per_site": lambda name, row: row["costs"]["bytes_down"],
    "rounds": lambda name, row: row["costs"]["rounds"],
    "seconds_train": lambda name, row: _training_seconds(row),
    "ms_per_test_image": lambda name, row: row["costs"]["ms_per_test_image"],
    "peak_rss_mb": lambda name, row: row["costs"]["peak_rss_mb"],
    "macs_forward": lambda name, row: row["costs"]["macs_forward"],
    "macs_search": lambda name, row: row["costs"]["macs_search"],
    "pareto": lambda name, row: int(row["pareto"]),
}


def bench_markdown(summary: Mapping[str, Any]) -> str:
    """The whole report of a bench."""
    parts = [f"# Bench `{summary['suite']}`", "", summary["title"], ""]
    parts += [f"Backbone: {', '.join(summary['backbones'])}. {_PREAMBLE}", ""]
    parts += [f"- {sentence}" for sentence in summary["statements"]]
    for set_, methods in summary["sets"].items():
        parts += ["", f"## {set_}", "", to_markdown(_set_table(methods))]
        gains = _gain_table(methods)
        if len(gains) > 1:
            parts += ["", to_markdown(gains)]
        if set_ in summary["trivial"]:
            parts += ["", to_markdown(_trivial_table(summary["trivial"][set_]))]
        if warning := confounding(summary, set_):
            parts += ["", f"**{warning}**"]
    if len(summary["sets"]) > 1 and summary["ranks"]:
        ranks = sorted(summary["ranks"].items(), key=lambda item: item[1])
        rows = [["method", "mean rank over sets"], *([n, f"{r:.2f}"] for n, r in ranks)]
        parts += ["", "## Ranks by image AUROC", "", to_markdown(rows)]
    for kind in ("skipped", "failed"):
        if summary[kind]:
            parts += ["", f"## {kind.capitalize()}", ""]
            parts += [f"- {name}: {reason}" for name, reason in summary[kind].items()]
    return "\n".join(parts) + "\n"


_PREAMBLE = (
    "Figures are the mean over sites, as mean ± standard deviation over seeds. Bytes are those of "
    "all messages of a run, for the site that sends or receives most; pooling sends the image "
    "files. Seconds do not include the backbone, whose features are cached. Nor do ms per image, "
    "which are memory search and metrics; for students and without a cache they include "
    "everything, from reading the file on. `front`: no other method sends less and scores better. "
    "Gains have 95 % intervals from paired bootstraps over test images."
)


def _set_table(methods: Mapping[str, Any]) -> list[list[str]]:
    return [_HEAD] + [
        [
            name,
            str(row["seeds"]),
            spread(row["image_auroc"], ".4f"),
            _figure(row["image_auroc"]["worst"]),
            spread(row["pixel_auroc"], ".4f"),
            spread(row["aupro"], ".4f"),
            str(row["costs"]["memory_rows"]),
            size(row["costs"]["bytes_up"]),
            size(row["costs"]["bytes_down"]),
            f"{_training_seconds(row):.1f}",
            f"{row['costs']['ms_per_test_image']:.0f}",
            _figure(row["costs"]["peak_rss_mb"], ".0f"),
            "yes" if row["pareto"] else "",
        ]
        for name, row in methods.items()
    ]


def _gain_table(methods: Mapping[str, Any]) -> list[list[str]]:
    others = list(dict.fromkeys(o for row in methods.values() for o in row["gain"]))
    rows = [["gain in image AUROC of", *(f"over {other}" for other in others)]]
    for name, row in methods.items():
        if row["gain"]:
            rows.append([name, *(_gain(row["gain"].get(other)) for other in others)])
    return rows


def _trivial_table(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["trivial statistic as score", "image AUROC mean", "lowest site", "highest site"]]
    for name, figures in found["statistics"].items():
        values = list(figures["sites"].values()) or [None]
        rows.append([name, _figure(figures["mean"]), _figure(min(values)), _figure(max(values))])
    return rows


def confounding(summary: Mapping[str, Any], set_: str) -> str:
    """A sentence of warning where trivial statistics order the test images of a set; else ''."""
    found = summary["trivial"].get(set_, {})
    names = found.get("confounded", [])
    if not names:
        return ""
    shown = ", ".join(f"{name} {_figure(found['statistics'][name]['mean'])}" for name in names)
    return (
        f"{set_} is confounded: image AUROC of {shown} alone. A detector's figure may measure "
        "this rather than the defects."
    )


def bench_rich(summary: Mapping[str, Any]) -> list[Table]:
    """What fits a terminal, one table per set."""
    tables = []
    for set_, methods in summary["sets"].items():
        rows = [[row[index] for index in _BRIEF] for row in _set_table(methods)]
        table = rich_table(f"{set_} ({', '.join(summary['backbones'])})", rows)
        table.caption = confounding(summary, set_) or None
        table.caption_justify = "left"
        tables.append(table)
    return tables


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _training_seconds(row: Mapping[str, Any]) -> float:
    seconds: Mapping[str, float] = row["costs"]["seconds"]
    return sum(seconds.get(phase, 0.0) for phase in ("local", "merge"))


def _figure(value: float | None, form: str = ".4f") -> str:
    return UNKNOWN if value is None else format(value, form)


def _gain(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return UNKNOWN
    return f"{gain['gain']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
