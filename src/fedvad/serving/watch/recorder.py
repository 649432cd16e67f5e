"""What a watch does with an image: read it, score it, record it, and look for changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.arrays import to_rgb
from fedvad.data.bounds import ANY_SIZE
from fedvad.data.frames import split_frame
from fedvad.data.images import decode_rgb, read_bytes, read_rgb
from fedvad.errors import ArtefactError, ConfigError, DataError, ImageError
from fedvad.evaluation.change import normals_from
from fedvad.report.week_sheet import minute
from fedvad.serving.predictor import Prediction, Predictor
from fedvad.serving.watch.log import WatchLog, read_log
from fedvad.serving.watch.outbox import Deliver, Outbox
from fedvad.serving.watch.pictures import DayPictures, Recent
from fedvad.serving.watch.seen import Seen
from fedvad.serving.watch.sources import Arrived, Source, file_of, renamed
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

LEAST_NORMALS = 30  # of fewer, half of which make the mean picture, nothing can be said
_LAST_WAIT = 10.0  # seconds that rows may take to be delivered at the end

Pixels = npt.NDArray[np.uint8]


class Recorder:
    """Scores the images of a watch and records them; begins where its folder ends."""

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
            # of a kill that came before its row
            if path.stem.isdecimal() and int(path.stem) > self._number:
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
        elif self._number:
            raise ArtefactError(
                f"--out {self._out} holds the log of a watch and no watch.json: restore that "
                "from a copy, or watch into another folder"
            )
        first: list[Pixels] = []
        if normals:
            readable = _readable(normals)
            first = list(islice(readable, 6))
            write_normals(self._out, normals_from(chain(first, readable)))
        self._recent.begin(first)
        settings.write(self._out)
        return settings


def _readable(paths: Sequence[Path]) -> Iterator[Pixels]:
    """The pixels of those `--normals` that can be read.

    Warns of the others at the end; raises `DataError` where too few are left.
    """
    refused = []
    for path in paths:
        try:
            yield read_rgb(path, max_pixels=ANY_SIZE)
        except ImageError as error:
            refused.append(str(error))
    if refused:
        first = "; ".join(refused[:2])
        what = f"{len(refused)} of {len(paths)} images of --normals cannot be read: {first}"
        if len(paths) - len(refused) < LEAST_NORMALS:
            raise DataError(f"{what}\nMend or replace them: {LEAST_NORMALS} or more are needed")
        log.warning("%s; pictures are compared with the others", what)
