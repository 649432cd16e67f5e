"""One page about the last week of a watch, for whoever runs the plant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from html import escape
from io import BytesIO
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedvad._version import __version__
from fedvad.evaluation.change import Change
from fedvad.report.sheet import LARGE, MARGIN, QUIET, SMALL, TEXT, WIDTH, Sheet, pdf_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "fedvad week"
_STOPPED, _LET = "#c62828", "#5a8f98"
_PICTURES, _A_ROW, _UNREADABLE = 6, 3, 6
_POINTS = 20_000  # of the chart; beyond these, dots lie upon one another anyway


@dataclass(frozen=True)
class Week:
    """What the page says.

    rows: of `week_rows`, those of seven days. change: of `drift_state`. pictures: (H, W, 3) of the
    rows with the highest scores, by number. changed: picture of before and now.
    """

    site: str | None
    source: str
    first: date
    last: date
    rows: Sequence[Mapping[str, Any]]
    change: Change
    pictures: Mapping[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    changed: npt.NDArray[np.uint8] | None = None

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images, those stopped, and those that could not be read."""
        return _counts(self.rows)


def week_pdf(week: Week) -> bytes:
    """A PDF file of one A4 page; the same week gives the same bytes."""
    return pdf_of(drawn(week), TITLE)


def week_html(week: Week) -> bytes:
    """The same page as one HTML file, whose text can be selected and read aloud."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedvad"}):
        drawn(week).savefig(buffer, format="svg", metadata={"Date": None, "Title": TITLE})
    svg = buffer.getvalue().decode()
    drawing = svg[svg.index("<svg ") :]  # without what only a file of its own begins with
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(_title(week))}'
        f'</title><meta name="generator" content="fedvad {__version__}">'
        "<style>body{margin:0 auto;max-width:70rem;background:#fff}svg{width:100%;height:auto}"
        f"</style><body>{drawing}</body></html>"
    ).encode()


def drawn(week: Week) -> Figure:
    """The page as a figure, not yet written."""
    sheet = Sheet()
    sheet.line(_title(week), LARGE, bold=True)
    sheet.line(f"{week.source} · fedvad {__version__}", TEXT, colour=QUIET)
    sheet.paragraph(_summary(week))
    sheet.heading("What changed")
    sheet.paragraph(week.change["says"])
    if begun := _begun(week):
        sheet.paragraph(f"During the week the watch reported: {begun}.")
    if week.change["missing"]:
        sheet.paragraph(f"Light, focus and position are compared after {week.change['missing']} "
                        "more images.")  # fmt: skip
    if week.changed is not None and week.change["changed"]:
        sheet.pictures([(week.changed, ("",))], WIDTH - 2 * MARGIN, height=110)
    sheet.heading("Images and share stopped by day")
    sheet.table([["day", "images", "stopped", "share", "unreadable"], *_days(week)])
    sheet.heading("Scores over the week; the line is the threshold")
    _scores(sheet, week)
    broken = [row for row in week.rows if row["error"] is not None]
    if broken:
        sheet.heading("Unreadable")
        for row in broken[:_UNREADABLE]:
            sheet.line(str(row["error"])[:150], SMALL)
        if len(broken) > _UNREADABLE:
            sheet.line(f"{len(broken) - _UNREADABLE} more: see the log.", SMALL)
    shown = [row for row in _highest(week) if row["number"] in week.pictures][:_PICTURES]
    if shown:
        sheet.heading("Highest scores: photograph and heat map")
        side = (WIDTH - 2 * MARGIN - 6 * (_A_ROW - 1)) / _A_ROW
        for at in range(0, len(shown), _A_ROW):
            sheet.pictures(
                [
                    (week.pictures[row["number"]], _caption(row))
                    for row in shown[at : at + _A_ROW]
                ],
                side, height=side * 0.6,
            )  # fmt: skip
    sheet.foot(["Reviewed by, date, signature:"])
    return sheet.figure


def _title(week: Week) -> str:
    return f"{week.site or 'Watch'}, {week.first} to {week.last}"


def _summary(week: Week) -> str:
    images, stopped, unreadable = week.counts
    if not images:
        return "No images came in during this week."
    return (
        f"{images} images came in; {stopped} were stopped ({stopped / images:.1%}), {unreadable} "
        "could not be read."
    )


def _counts(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    return (
        len(rows),
        sum(bool(row["anomalous"]) for row in rows),
        sum(row["error"] is not None for row in rows),
    )


def _begun(week: Week) -> str:
    """What the watch reported as changed, each with the time of its first report."""
    first: dict[str, str] = {}
    for row in week.rows:
        for what in row.get("changed") or ():
            first.setdefault(what, minute(row))
    return ", ".join(f"{what} (since {when})" for what, when in first.items())


def _days(week: Week) -> list[list[str]]:
    found = []
    for after in range((week.last - week.first).days + 1):
        day = week.first + timedelta(days=after)
        images, stopped, unreadable = _counts([row for row in week.rows if row["day"] == day])
        share = f"{stopped / images:.1%}" if images else ""
        found.append([f"{day:%a} {day}", str(images), str(stopped), share, str(unreadable)])
    return found


def _highest(week: Week) -> list[Mapping[str, Any]]:
    scored = [row for row in week.rows if row["score"] is not None]
    return sorted(scored, key=lambda row: -row["score"])


def _caption(row: Mapping[str, Any]) -> tuple[str, str]:
    """When it came with its score, and the end of its name."""
    return f"{minute(row)}, score {row['score']:.4g}", PurePath(row["path"]).name


def minute(row: Mapping[str, Any]) -> str:
    """When an image came, for people."""
    return str(row["time"])[:16].replace("T", " ")


def _scores(sheet: Sheet, week: Week) -> None:
    from matplotlib.dates import DateFormatter, DayLocator, date2num

    scored = [row for row in week.rows if row["score"] is not None]
    axes = sheet.chart(130)
    kept = scored[:: max(1, len(scored) // _POINTS)]
    when = date2num([datetime.fromisoformat(row["time"]).replace(tzinfo=None) for row in kept])
    colours = [_STOPPED if row["anomalous"] else _LET for row in kept]
    axes.scatter(
        when, [row["score"] for row in kept], s=4, c=colours, linewidths=0, rasterized=True
    )
    begin = float(date2num(week.first))
    end = begin + (week.last - week.first).days + 1
    limits = [np.nan if row["threshold"] is None else row["threshold"] for row in kept]
    if kept:
        axes.step([*when, end], [*limits, limits[-1]], where="post", color=QUIET, linewidth=0.8)
    axes.set_xlim(begin, end)
    axes.xaxis.set_major_locator(DayLocator())
    axes.xaxis.set_major_formatter(DateFormatter("%a"))
