"""The verbs of a run that watches a line, with plain arguments; see `fedvad.api`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import date
from typing import Any

from fedvad.evaluation.change import MOST_STOPPED, Change
from fedvad.evaluation.drift import ALPHA
from fedvad.features.config import Engine
from fedvad.runs.arguments import AnyPath, maybe
from fedvad.runs.config import Reference, as_path
from fedvad.serving.watch.state import drift_state as _drift_state
from fedvad.serving.watch.watch import watch as _watch
from fedvad.serving.watch.week import week as _week

__all__ = ["drift_state", "watch", "week"]


def watch(
    run: AnyPath,
    source: AnyPath | int,
    *,
    out: AnyPath,
    site: str | None = None,
    reference: Reference | None = None,
    threshold: float | None = None,
    target_fpr: float | None = None,
    normals: AnyPath | None = None,
    alpha: float = ALPHA,
    most_stopped: float = MOST_STOPPED,
    every: float = 1.0,
    once: bool = False,
    webhook: str | None = None,
    mqtt: str | None = None,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    stop: threading.Event | None = None,
) -> Iterator[dict[str, Any]]:
    """Score images as they arrive in a folder or from a camera.

    A row is given when it is safely in the log of `out`. Started again with the same `out`, after
    a kill too, it continues: no image is scored twice, and none is lost.

    Parameters
    ----------
    run : path
    source : path, int or str
        Folder that fills with images, number or address of a camera (with the extra `camera`), or
        a video file.
    out : path
        Folder for the log, `results.jsonl` and `results.csv`, and pictures; for this source only.
    site, reference, threshold, target_fpr, weights, engine, device : optional
        As those of `predict`.
    normals : path, optional
        Normal images of now, which pictures are compared with; None takes the first 50 watched.
    alpha : float in (0, 1), default=0.01
        Probability that a change is ever reported without one.
    most_stopped : float in (0, 1), default=0.1
        Share of stopped images that is no change.
    every : float, default=1.0
        Seconds between looks into the folder, in which a file must stay as it is, or between
        frames of a camera.
    once : bool, default=False
        End when all that is there is scored; of a camera, after one frame.
    webhook : str, optional
        URL to which each row is sent with POST, as JSON, again and again until it is taken.
    mqtt : str, optional
        mqtt://[NAME:PASSWORD@]HOST[:PORT]/TOPIC, or mqtts://; with the extra `mqtt`.
    stop : threading.Event, optional
        Ends the watch when it is set.

    Yields
    ------
    dict
        number, time, path, size, modified, site, score, threshold, anomalous, error, reason and
        changed (kinds of change found so far: light, focus, colour, position, product), and looks,
        the figures behind it.

    Raises
    ------
    ConfigError, DataError, ArtefactError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> rows = list(fedvad.watch("run", "plants/alder/test/good", out="line", site="alder",
    ...                          once=True, every=0.01))
    >>> len(rows), rows[0]["anomalous"], rows[0]["changed"]
    (3, False, [])
    """
    return _watch(
        as_path(run, "run"),
        str(source),
        out=as_path(out, "out"),
        site=site,
        reference=reference,
        threshold=threshold,
        target_fpr=target_fpr,
        normals=maybe(normals, "normals"),
        alpha=alpha,
        most_stopped=most_stopped,
        every=every,
        once=once,
        webhook=webhook,
        mqtt=mqtt,
        weights=maybe(weights, "weights"),
        engine=engine,
        device=device,
        stop=stop,
    )


def drift_state(folder: AnyPath) -> Change:
    """What changed at a site that is watched.

    Parameters
    ----------
    folder : path
        That `watch` writes; it may be at work.

    Returns
    -------
    dict
        changed (kinds of change), since (when the first was found), says (a sentence), figures
        (each with its median before and now), images, alpha, needed and missing.

    Raises
    ------
    ArtefactError
        For a folder without a watch, and a damaged one.

    Examples
    --------
    >>> import fedvad
    >>> rows = list(fedvad.watch("run", "plants/alder/test/good", out="line2", site="alder",
    ...                          once=True, every=0.01))
    >>> fedvad.drift_state("line2")["says"]
    'No change in 3 images.'
    """
    return _drift_state(as_path(folder, "folder"))


def week(folder: AnyPath, out: AnyPath, *, until: date | None = None) -> dict[str, Any]:
    """Write one page about the last week of a watch.

    Parameters
    ----------
    folder : path
        That `watch` writes; it may be at work.
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
    ConfigError, ArtefactError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> rows = list(fedvad.watch("run", "plants/alder/test/good", out="line3", site="alder",
    ...                          once=True, every=0.01))
    >>> fedvad.week("line3", "week.pdf")["images"]
    3
    """
    return _week(as_path(folder, "folder"), as_path(out, "out"), until=until)
