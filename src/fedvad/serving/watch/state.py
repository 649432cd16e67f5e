"""What a watch folder says: its settings, what changed, and the rows of a week. Nothing is written.

For pages and reports; all of it can be read while the watch continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedvad.data.checked import Stored, parse_values
from fedvad.data.sealed import read_sealed, write_sealed
from fedvad.errors import ArtefactError
from fedvad.evaluation.change import Change, ChangeWatch, Normals
from fedvad.report.week_sheet import minute
from fedvad.runs.arguments import AnyPath
from fedvad.runs.config import as_path
from fedvad.serving.watch.log import read_log, shown

_SETTINGS, _NORMALS = "watch.json", "normals.json"
CHANGED_FILE = "changed.png"
WEEK = 7  # days


class Settings(Stored):
    """What a watch was started with.

    id: in messages to others. limit, scores: threshold, and the held-out normal scores behind it.
    normals: folder of images that pictures are compared with, None for the first ones. since:
    number of the first row that is compared; others came before the run changed.
    """

    id: str
    source: str
    site: str | None
    limit: float | None
    scores: tuple[float, ...]
    normals: str | None
    alpha: Annotated[float, Field(gt=0, lt=1)]
    most_stopped: Annotated[float, Field(gt=0, lt=1)]
    since: Annotated[int, Field(ge=1)] = 1

    def write(self, folder: Path) -> None:
        """Raises `StorageError`."""
        write_sealed(folder / _SETTINGS, self.model_dump())


class _Kept(Stored):
    looks: dict[str, list[float]]
    mean: list[list[float]]


def read_settings(folder: Path) -> Settings:
    """The settings of a watch folder; raises `ArtefactError`."""
    if not holds_watch(folder):
        raise ArtefactError(
            f"{folder} holds no {_SETTINGS}: give the folder that `fedvad watch --out` wrote"
        )
    return parse_values(Settings, read_sealed(folder / _SETTINGS), folder / _SETTINGS)


def holds_watch(folder: Path) -> bool:
    """Whether a watch has begun to write into a folder."""
    return (folder / _SETTINGS).exists()


def write_normals(folder: Path, normals: Normals) -> None:
    """Keep what pictures are compared with; raises `StorageError`."""
    write_sealed(folder / _NORMALS, {"looks": normals.looks, "mean": normals.mean.tolist()})


def change_watch(folder: Path, settings: Settings) -> ChangeWatch:
    """What compares the images of a watch, before the first of them."""
    normals = None
    if settings.normals is not None:
        kept = parse_values(_Kept, read_sealed(folder / _NORMALS), folder / _NORMALS)
        normals = Normals(kept.looks, np.array(kept.mean))
    return ChangeWatch(
        settings.limit, settings.scores, normals,
        alpha=settings.alpha, most_stopped=settings.most_stopped,
    )  # fmt: skip


def replay(watch: ChangeWatch, settings: Settings, rows: Iterable[dict[str, Any]]) -> None:
    """Let `watch` see rows of a log; raises `ArtefactError` for one that is damaged."""
    for row in rows:
        if row["score"] is not None and row["number"] >= settings.since:
            try:
                watch.add(row["score"], row, minute(row))
            except (KeyError, TypeError, ValueError) as error:
                raise ArtefactError(
                    f"row {row['number']} of the watch's log is damaged ({error!r}): restore the "
                    "log from a copy, or watch into another folder"
                ) from error


def drift_state(folder: AnyPath) -> Change:
    """Say what has changed at a site that is watched.

    Parameters
    ----------
    folder : path
        Folder of a watch, which may still be running.

    Returns
    -------
    dict
        changed (kinds of change), since (when the first was found), says (a sentence), figures
        (each with its median before and now), images, alpha, needed and missing.

    Raises
    ------
    ArtefactError
        If the folder holds no watch, or a damaged one.

    Examples
    --------
    >>> import fedvad
    >>> rows = list(fedvad.watch("run", "plants/alder/test/good", out="line2", site="alder",
    ...                          once=True, every=0.01))
    >>> fedvad.drift_state("line2")["says"]
    'No change in 3 images.'
    """
    folder = as_path(folder, "folder")
    settings = read_settings(folder)
    watch = change_watch(folder, settings)
    replay(watch, settings, read_log(folder))
    return watch.change()


def week_rows(folder: Path, until: date | None = None) -> list[dict[str, Any]]:
    """The rows of the seven days that end with `until`, or with the last row's day.

    Parameters
    ----------
    folder : Path
    until : date, optional

    Returns
    -------
    list of dict
        number, time, path, site, score, threshold, anomalous, reason, error, changed, and day, in
        the time of the machine that watched.

    Raises
    ------
    ArtefactError
        If the folder holds no watch, or a damaged one.
    """
    read_settings(folder)
    kept: deque[dict[str, Any]] = deque()
    for row in read_log(folder):
        row["day"] = date.fromisoformat(row["time"][:10])
        if until is not None and row["day"] > until:
            break
        kept.append({k: value for k, value in shown(row).items() if k not in ("size", "modified")})
        last = until or row["day"]
        while kept and kept[0]["day"] <= last - timedelta(WEEK):
            kept.popleft()
    return list(kept)
