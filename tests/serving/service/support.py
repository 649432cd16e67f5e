"""Uploads, and predictors that are slow or broken."""

from __future__ import annotations

import struct
import threading
import zlib
from typing import Any

from fedvad.serving.predictor import Prediction, Predictor


def upload(*contents: bytes, name: str = "image.png") -> list[tuple[str, tuple[str, bytes]]]:
    """The argument `files` of a client's post."""
    return [("files", (name, content)) for content in contents]


def png_of_size(width: int, height: int) -> bytes:
    """A tiny PNG file whose header claims width x height pixels, all black: a bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min((width + 1) * height, 50_000_000)), 9)
    ended = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ended


class Stub:
    """Stands for a predictor: waits for `go`, or fails."""

    def __init__(self, predictor: Predictor, *, fails: bool = False) -> None:
        self.go = threading.Event()
        self.began = threading.Semaphore(0)
        self.fails = fails
        self.calls = 0
        self._real = predictor
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def predict(self, images: Any, *, names: Any = None) -> list[Prediction]:
        with self._lock:
            self.calls += 1
        self.began.release()
        if self.fails:
            raise RuntimeError("secret reason")
        assert self.go.wait(30)
        return self._real.predict(images, names=names)
