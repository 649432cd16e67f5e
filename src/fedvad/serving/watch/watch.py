"""`watch`: scores what arrives in a folder or from a camera, until it is stopped."""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.arrays import to_rgb
from fedvad.data.bounds import ANY_SIZE
from fedvad.data.frames import split_frame
from fedvad.data.images import decode_rgb, read_bytes, read_rgb
from fedvad.data.inputs import read_images
from fedvad.data.locks import only_one
from fedvad.data.outputs import guard_folder, real
from fedvad.errors import ConfigError, DataError, ImageError
from fedvad.evaluation.change import MOST_STOPPED, normals_from
from fedvad.evaluation.drift import ALPHA
from fedvad.features.config import Engine
from fedvad.report.week_sheet import minute
from fedvad.runs.arguments import AnyPath, maybe
from fedvad.runs.config import Reference, as_path
from fedvad.runs.guards import check_order, guard_run_folder
from fedvad.serving.predictor import Prediction, Predictor
from fedvad.serving.watch.camera import CameraSource, VideoSource
from fedvad.serving.watch.log import WatchLog, read_log
from fedvad.serving.watch.outbox import Deliver, Outbox
from fedvad.serving.watch.pictures import DayPictures, Recent
from fedvad.serving.watch.seen import Seen
from fedvad.serving.watch.senders import mqtt as mqtt_sender
from fedvad.serving.watch.senders import webhook as webhook_sender
from fedvad.serving.watch.sources import Arrived, FolderSource, Source, file_of, renamed
from fedvad.serving.watch.state import (
    CHANGED_FILE,
    Settings,
    change_watch,
    holds_watch,
    read_settings,
    replay,
    write_normals,
)

log = logging.getLogger(__name__)

_CHUNK = 16  # images scored before their rows are written
_LEAST_NORMALS = 30  # of fewer, half of which make the mean picture, nothing can be said
_LAST_WAIT = 10.0  # seconds that rows may take to be delivered at the end

Pixels = npt.NDArray[np.uint8]


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
    a kill too, it continues: no image is scored twice, and none is lost. Everything is checked
    before it returns.

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
    if normals is not None and len(usual) < _LEAST_NORMALS:
        raise DataError(
            f"--normals {normals} holds {len(usual)} images: give {_LEAST_NORMALS} or more, or "
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
        working = _Watch(out, predictor, images, settings, usual)
        stack.callback(working.close)
        for name, deliver in deliveries:
            working.send(name, deliver)
        kept = stack.pop_all()
    rows = _rows(working, kept, stop or threading.Event())
    weakref.finalize(rows, kept.close)  # of rows that nobody asks for, too
    return rows


def _rows(working: _Watch, kept: ExitStack, stop: threading.Event) -> Iterator[dict[str, Any]]:
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


class _Watch:
    """What a watch holds while it works."""

    def __init__(
        self, out: Path, predictor: Predictor, source: Source, settings: Settings,
        normals: Sequence[Path],
    ) -> None:  # fmt: skip
        self.source = source
        self._out, self._predictor = out, predictor
        self._log = WatchLog(out)
        self.done = Seen()
        self._boxes: list[Outbox] = []
        self._pictures, self._recent = DayPictures(out), Recent(out)
        self._number = 0
        for row in read_log(out):
            self._number = row["number"]
            self.done.add((row["path"], row["size"], row["modified"]))
            if file := row.get("file"):  # rows of earlier versions have none
                self._scored(row["size"], row["modified"], file)
            if row["score"] is not None:
                self._pictures.add(row["number"], row["time"][:10], row["score"])
        self.settings = self._settled(settings, normals)
        self._change = change_watch(out, self.settings)
        replay(self._change, self.settings, read_log(out))
        for path in [*out.glob("pictures/*.png"), *out.glob("frames/*.png")]:
            if int(path.stem) > self._number:  # a kill came before its row
                path.unlink()
        self._known = self._change.change()["changed"]
        if self._known:
            log.warning("%s", self._change.change()["says"])

    def send(self, name: str, deliver: Deliver) -> None:
        """Deliver every row of the log, those of earlier starts first."""
        box = Outbox(self._out, name, self.settings.id, deliver)
        self._boxes.append(box)
        box.ready(self._log.size)

    def score(self, arrived: Sequence[Arrived]) -> list[dict[str, Any]]:
        """Score images; their rows are in the log when this returns."""
        read = [self._read(one) for one in arrived]
        pixels = [image for image, _ in read]
        good = [one for one in pixels if not isinstance(one, str)]
        names = [one.name for one, p in zip(arrived, pixels, strict=True) if not isinstance(p, str)]
        found = iter(self._predictor.predict(good, names=names))
        rows = []
        for one, (image, file) in zip(arrived, read, strict=True):
            given = None if isinstance(image, str) else next(found)
            if not self.source.still(one):
                log.warning("%s was changed while it was read: it is read again", one.name)
                continue
            rows.append(self._row(one, file, image, given))
            self.done.add(one.key)
            if file:
                self._scored(one.size, one.modified, file)
        if rows:
            self._log.append(rows)
            for box in self._boxes:
                box.ready(self._log.size)
        return rows

    def close(self) -> None:
        """Deliver what can be, and close the log."""
        for box in self._boxes:
            box.close(_LAST_WAIT)
        self._log.close()

    def _scored(self, size: int, modified: int, file: str) -> None:
        """Know a file again when it is renamed; and that one of its size and time was scored."""
        for mark in (file, ""):
            self.done.add(renamed(size, modified, mark))

    def _row(
        self, one: Arrived, file: str, image: Pixels | str, given: Prediction | None
    ) -> dict[str, Any]:
        self._number += 1
        limit = self.settings.limit
        error = image if isinstance(image, str) else given.error if given else None
        row: dict[str, Any] = {
            "number": self._number,
            "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "path": one.name,
            "size": one.size,
            "modified": one.modified,
            "file": file,
            "site": self.settings.site,
            "score": None,
            "threshold": limit,
            "anomalous": None,
            "error": error,
            "reason": "no threshold: give --threshold" if limit is None else None,
            "changed": self._known,
        }
        if given is None or given.score is None or given.map is None or isinstance(image, str):
            return row
        row |= {"score": given.score, "anomalous": given.anomalous} | self._change.look(image)
        self._change.add(given.score, row, minute(row))
        self._recent.add(image)
        if self._pictures.add(self._number, row["time"][:10], given.score):
            self._pictures.keep(
                self._number, one, image, given.map, given.score, limit, self.settings.site
            )
        now = self._change.change()
        if now["changed"] != self._known:
            self._known = now["changed"]
            self._recent.sheet(self._out / CHANGED_FILE, now["says"])
            log.warning("%s Picture: %s", now["says"], self._out / CHANGED_FILE)
        row["changed"] = self._known
        return row

    def _read(self, one: Arrived) -> tuple[Pixels | str, str]:
        """The pixels of an image, or why there are none; and its `file_of`, from one reading."""
        most, file = self._predictor.max_pixels, ""
        try:
            if not isinstance(one.image, Path):
                return to_rgb(one.image, one.name, max_pixels=most), file
            data = read_bytes(one.image)
            file = file_of(one.name, data)
            frame = split_frame(one.image)[1]
            return decode_rgb(data, one.name, frame=frame, max_pixels=most), file
        except ImageError as error:
            return str(error), file

    def _settled(self, settings: Settings, normals: Sequence[Path]) -> Settings:
        """The settings to continue with; raises `ConfigError` for those of another watch."""
        if holds_watch(self._out):
            before = read_settings(self._out)
            for name in ("source", "site"):
                if getattr(before, name) != getattr(settings, name):
                    raise ConfigError(
                        f"--out {self._out} holds the watch of {name} {getattr(before, name)}: "
                        "choose another folder"
                    )
            kept = settings.model_copy(update={"id": before.id, "since": before.since})
            if kept == before:
                return before
            log.warning("the run or the options changed: the comparison begins again")
            settings = kept.model_copy(update={"since": self._number + 1})
        if normals:
            refused: dict[Path, str] = {}
            found = normals_from(_readable(normals, refused))
            write_normals(self._out, found)
            first = [path for path in normals if path not in refused][:6]
            self._recent.before([read_rgb(path, max_pixels=ANY_SIZE) for path in first])
        settings.write(self._out)
        return settings


def _readable(paths: Sequence[Path], refused: dict[Path, str]) -> Iterator[Pixels]:
    """The pixels of `--normals`; those that cannot be read go into `refused`, with the reason.

    Warns of them at the end; raises `DataError` where too few are left.
    """
    for path in paths:
        try:
            yield read_rgb(path, max_pixels=ANY_SIZE)
        except ImageError as error:
            refused[path] = str(error)
    if refused:
        first = "; ".join(list(refused.values())[:2])
        what = f"{len(refused)} of {len(paths)} images of --normals cannot be read: {first}"
        if len(paths) - len(refused) < _LEAST_NORMALS:
            raise DataError(f"{what}\nMend or replace them: {_LEAST_NORMALS} or more are needed")
        log.warning("%s; pictures are compared with the others", what)


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
