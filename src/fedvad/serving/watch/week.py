"""`week`: one page about the last week of a watch, as PDF or HTML."""

from __future__ import annotations

import heapq
from datetime import date, timedelta
from typing import Any

from fedvad.data.files import write_atomically
from fedvad.data.outputs import guard_file
from fedvad.errors import ConfigError, DataError
from fedvad.report.week_sheet import Week, week_html, week_pdf
from fedvad.runs.arguments import AnyPath
from fedvad.runs.config import as_path
from fedvad.serving.watch.pictures import picture_of, read_kept
from fedvad.serving.watch.state import CHANGED_FILE, drift_state, read_settings, week_rows

_SHOWN = 8  # a few more than the page shows


def week(folder: AnyPath, out: AnyPath, *, until: date | None = None) -> dict[str, Any]:
    """Write one page about the last week of a watch.

    Parameters
    ----------
    folder : path
        Folder of a watch, which may still be running.
    out : path
        File to write, .pdf or .html.
    until : date, optional
        Last of the seven days; None takes that of the last image.

    Returns
    -------
    dict
        path, first and last (days), images, stopped, unreadable and changed.

    Raises
    ------
    ConfigError, ArtefactError, DataError, StorageError
        See `fedvad.errors`; also if `out` has another suffix, or the week has no image.

    Examples
    --------
    >>> import fedvad
    >>> rows = list(fedvad.watch("run", "plants/alder/test/good", out="line3", site="alder",
    ...                          once=True, every=0.01))
    >>> fedvad.week("line3", "week.pdf")["images"]
    3
    """
    folder, out = as_path(folder, "folder"), as_path(out, "out")
    kinds = {".pdf": (week_pdf, b"%PDF"), ".html": (week_html, b"fedvad")}
    if out.suffix.lower() not in kinds:
        raise ConfigError(f"--out {out} must end in .pdf or .html")
    settings = read_settings(folder)
    rows = week_rows(folder, until)
    # a file that was looked at while somebody still wrote it is counted once it could be read
    read = {row["path"] for row in rows if row["error"] is None}
    rows = [row for row in rows if row["error"] is None or row["path"] not in read]
    if not rows:
        raise DataError(f"{folder}: no image came in that week")
    last = until or rows[-1]["day"]
    make, own = kinds[out.suffix.lower()]
    guard_file(out, "--out", own=own)
    highest = heapq.nlargest(
        _SHOWN, (row for row in rows if row["score"] is not None), key=lambda row: row["score"]
    )
    pictures = {row["number"]: read_kept(picture_of(folder, row["number"])) for row in highest}
    found = Week(
        site=settings.site,
        source=settings.source,
        first=last - timedelta(days=6),
        last=last,
        rows=rows,
        change=drift_state(folder),
        pictures={number: picture for number, picture in pictures.items() if picture is not None},
        changed=read_kept(folder / CHANGED_FILE),
    )
    write_atomically(out, make(found))
    images, stopped, unreadable = found.counts
    return {
        "path": str(out),
        "first": str(found.first),
        "last": str(found.last),
        "images": images,
        "stopped": stopped,
        "unreadable": unreadable,
        "changed": found.change["changed"],
    }
