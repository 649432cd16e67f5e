"""Where watched images come from: a camera, a stream, or a video file."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from fedvad.data.outputs import real
from fedvad.errors import ConfigError, DataError
from fedvad.serving.watch.seen import Key
from fedvad.serving.watch.sources import Arrived

log = logging.getLogger(__name__)
_AGAIN = 5.0  # seconds until a camera that went away is tried again


def plain_name(source: str) -> str:
    """A camera's address without the name and password in it."""
    parts = urlsplit(source)
    if "@" not in parts.netloc:
        return source
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class VideoSource:
    """Frames of a video file, one for every `every` seconds of it, each in turn."""

    def __init__(self, file: Path, *, every: float) -> None:
        """Raises `ConfigError` without OpenCV, `DataError` for no video."""
        self.name, self.pause, self.ended = str(real(file)), 0.0, False
        found = file.stat()
        self._stamp = found.st_size, found.st_mtime_ns
        self._video = _opened(self.name, self.name)
        rate = float(self._video.get(_cv2().CAP_PROP_FPS)) or 25.0
        self._step = max(1, round(every * rate))
        self._number = 0

    def poll(self, done: Container[Key]) -> list[Arrived]:
        """The next frame that is not in `done`; none at the end."""
        while True:
            if not self._video.grab():
                self.ended = True
                return []
            self._number += 1
            name = f"{self.name}#{self._number}"
            if (self._number - 1) % self._step or (name, *self._stamp) in done:
                continue
            good, frame = self._video.retrieve()
            if good:
                return [Arrived(name, *self._stamp, _rgb(frame))]
            log.warning("%s cannot be decoded and is left out", name)

    def still(self, arrived: Arrived) -> bool:
        """A frame is whole."""
        return True

    def close(self) -> None:
        """Let go of the file."""
        self._video.release()


class CameraSource:
    """The newest frame of a camera or stream, `every` seconds after the one before.

    A thread takes all frames off the camera, so that none is old when it is scored. A camera that
    goes away is tried again every five seconds. With `once` it ends after one frame.
    """

    pause = 0.05

    def __init__(self, source: str, *, every: float, once: bool = False) -> None:
        """Raises `ConfigError` without OpenCV, `DataError` when it cannot be opened at first."""
        self._source, self.name, self._every = source, plain_name(source), every
        self.ended, self._once = False, once
        self._frame: npt.NDArray[np.uint8] | None = None
        self._last = -every
        self._lock, self._end = threading.Lock(), threading.Event()
        camera = _opened(int(source) if source.isdecimal() else source, self.name)
        self._thread = threading.Thread(target=self._read, args=(camera,), daemon=True)
        self._thread.start()

    def poll(self, done: Container[Key]) -> list[Arrived]:
        """The newest frame, if it is time for one."""
        now = time.monotonic()
        with self._lock:
            if self.ended or self._frame is None or now - self._last < self._every:
                return []
            frame, self._frame = self._frame, None
        self._last, self.ended = now, self._once
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        return [Arrived(f"{self.name}@{when}", 0, 0, _rgb(frame))]

    def still(self, arrived: Arrived) -> bool:
        """A frame is whole."""
        return True

    def close(self) -> None:
        """End the thread and let go of the camera."""
        self._end.set()
        self._thread.join(timeout=10)

    def _read(self, camera: Any) -> None:
        while not self._end.is_set():
            try:
                good, frame = camera.read()
            except Exception:  # as no frame; OpenCV's errors have no base that is known here
                good = False
            if good:
                with self._lock:
                    self._frame = frame
                continue
            log.warning("%s gives no frames: trying again", self.name)
            camera.release()
            self._end.wait(_AGAIN)
            camera = _cv2().VideoCapture(
                int(self._source) if self._source.isdecimal() else self._source
            )
        camera.release()


def _opened(source: str | int, name: str) -> Any:
    camera = _cv2().VideoCapture(source)
    if not camera.isOpened():
        raise DataError(f"{name}: no camera, stream or video can be opened there")
    return camera


def _rgb(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """OpenCV's order of colours turned round; grey frames get three."""
    if frame.ndim == 2:
        return np.repeat(frame[:, :, None], 3, axis=2)
    return np.ascontiguousarray(frame[:, :, 2::-1])


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ConfigError("cameras and videos need OpenCV: pip install 'fedvad[camera]'") from error
    return cv2
