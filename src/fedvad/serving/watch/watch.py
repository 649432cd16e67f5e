"""`watch`: scores what arrives in a folder or from a camera, until it is stopped."""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedvad.data.inputs import read_images
from fedvad.data.locks import only_one
from fedvad.data.outputs import guard_folder, real
from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.change import MOST_STOPPED
from fedvad.evaluation.drift import ALPHA
from fedvad.features.config import Engine
from fedvad.runs.arguments import AnyPath, maybe
from fedvad.runs.config import Reference, as_path
from fedvad.runs.guards import check_order, guard_run_folder
from fedvad.serving.predictor import Predictor
from fedvad.serving.watch.camera import CameraSource, VideoSource
from fedvad.serving.watch.outbox import mqtt as mqtt_sender
from fedvad.serving.watch.outbox import webhook as webhook_sender
from fedvad.serving.watch.recorder import LEAST_NORMALS, Recorder
from fedvad.serving.watch.sources import FolderSource, Source
from fedvad.serving.watch.state import Settings

log = logging.getLogger(__name__)

_CHUNK = 16  # images scored before their rows are written


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

    Each row is yielded once it is safely in the log of `out`. A watch that is started again with
    the same `out` continues, also after a kill: no image is scored twice, and none is lost. The
    call itself checks everything.

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
        Recent normal images to compare with, for changes of the picture. None takes the first 50
        images of the watch.
    alpha : float in (0, 1), default=0.01
        Probability of ever reporting a change although there is none.
    most_stopped : float in (0, 1), default=0.1
        Share of stopped images up to which no change is reported.
    every : float, default=1.0
        Seconds between two looks into the folder, or between two frames of a camera. A file is
        read once it has not changed for this time.
    once : bool, default=False
        End when everything in the folder is scored; for a camera, after one frame.
    webhook : str, optional
        URL to which each row is sent with POST, as JSON, until it is accepted.
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
    run, source, out = as_path(run, "run"), str(source), as_path(out, "out")
    normals, weights = maybe(normals, "normals"), maybe(weights, "weights")
    check_order(run, [Path(source)], "watch RUN SOURCE")
    guard_run_folder(out, "--out")
    for name, value in (("alpha", alpha), ("most_stopped", most_stopped)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value}; it must lie between 0 and 1")
    if not 0 < every < 86400:
        raise ConfigError(f"every is {every}; it must be a number of seconds, above 0")
    usual = () if normals is None else read_images([normals])
    if normals is not None and len(usual) < LEAST_NORMALS:
        raise DataError(
            f"--normals {normals} holds {len(usual)} images: give {LEAST_NORMALS} or more, or "
            "omit it, and the first images of the watch take their place"
        )
    with ExitStack() as stack:
        stack.enter_context(only_one(out))
        predictor = stack.enter_context(
            Predictor.load(
                run, site=site, reference=reference, threshold=threshold, target_fpr=target_fpr,
                weights=weights, engine=engine, device=device,
            )
        )  # fmt: skip
        if predictor.site is None:
            log.warning("no --site given: the median of all sites' thresholds decides")
        images = _source(source, out, every, once)
        stack.callback(images.close)
        deliveries = []
        if webhook is not None:
            deliveries.append(("webhook", webhook_sender(webhook)))
        if mqtt is not None:
            deliver, end = mqtt_sender(mqtt)
            stack.callback(end)
            deliveries.append(("mqtt", deliver))
        limit = predictor.threshold
        settings = Settings(
            id=uuid.uuid4().hex,
            source=images.name,
            site=predictor.site,
            limit=None if limit is None else limit.value,
            scores=() if limit is None else limit.scores,
            normals=None if normals is None else str(real(normals)),
            alpha=alpha,
            most_stopped=most_stopped,
        )  # fmt: skip
        working = Recorder(out, predictor, images, settings, usual)
        stack.callback(working.close)
        for name, deliver in deliveries:
            working.send(name, deliver)
        kept = stack.pop_all()
    rows = _rows(working, kept, stop or threading.Event())
    weakref.finalize(rows, kept.close)  # of rows that nobody asks for, too
    return rows


def _rows(working: Recorder, kept: ExitStack, stop: threading.Event) -> Iterator[dict[str, Any]]:
    with kept:
        while not stop.is_set():
            arrived = working.source.poll(working.done)
            for start in range(0, len(arrived), _CHUNK):
                yield from working.score(arrived[start : start + _CHUNK])
                if stop.is_set():
                    return
            if not arrived and working.source.ended:
                return
            stop.wait(working.source.pause)


def _source(source: str, out: Path, every: float, once: bool) -> Source:
    path = Path(source)
    if path.is_dir():
        place = real(out)
        guard_folder(out, "--out", folders=[real(path)])
        if real(path) in place.parents:
            raise ConfigError(
                f"--out {out} lies in the folder that is watched: choose a place outside"
            )
        return FolderSource(path, settle=every, once=once)
    if path.is_file():
        return VideoSource(path, every=every)
    if source.isdecimal() or "://" in source or path.is_char_device():
        return CameraSource(source, every=every, once=once)
    raise DataError(f"{source}: no such folder, video file or camera")
