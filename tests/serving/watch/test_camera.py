"""Frames of a video and of a camera are scored like images, each once."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.errors import ConfigError, DataError
from fedvad.serving.watch import camera
from fedvad.serving.watch.camera import CameraSource, VideoSource, plain_name

Trained = tuple[Path, dict[str, Any]]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Two seconds at 10 frames a second; frame n is as bright as 10 n, and red."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for n in range(20):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[:, :, 2] = 10 * n
        writer.write(frame)
    writer.release()
    return path


def test_frames_of_a_video_are_scored_once_each(
    trained: Trained, video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"out": out, "site": "alder", "every": 0.5}
    rows = fedvad.watch(trained[0], video, **options)
    first = next(rows)
    rows.close()
    rest = list(fedvad.watch(trained[0], video, **options))
    names = [row["path"] for row in (first, *rest)]
    assert names == [f"{video}#{n}" for n in (1, 6, 11, 16)]
    assert len(list((out / "frames").glob("*.png"))) == 4
    source = VideoSource(video, every=1.0)
    source.poll(set())
    (frame,) = source.poll(set())
    assert np.abs(np.asarray(frame.image).mean(axis=(0, 1)) - [100, 0, 0]).max() < 12  # RGB
    source.close()


class _Camera:
    """Gives a new frame every 5 ms."""

    opened = True

    def __init__(self, source: object) -> None:
        self.source = source

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, np.ndarray]:
        time.sleep(0.005)
        return True, np.full((8, 8), 7, np.uint8)

    def release(self) -> None:
        pass


def test_of_a_camera_the_newest_frame_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "_cv2", lambda: type("cv2", (), {"VideoCapture": _Camera}))
    source = CameraSource("rtsp://name:secret@host/stream", every=0.05)
    found = []
    while len(found) < 3:
        found += source.poll(set())
        time.sleep(0.001)
    source.close()
    assert all(one.name.startswith("rtsp://host/stream@20") for one in found)
    assert np.shape(found[0].image) == (8, 8, 3)
    assert not source.ended
    source = CameraSource("0", every=0.001, once=True)
    found = []
    while not source.ended:
        found += source.poll(set())
    assert source.poll(set()) == []
    assert len(found) == 1
    source.close()
    monkeypatch.setattr(_Camera, "opened", False)
    with pytest.raises(DataError, match="rtsp://host/x: no camera"):
        CameraSource("rtsp://me:secret@host/x", every=1)


def test_a_camera_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(_Camera):
        reads = 0

        def read(self) -> tuple[bool, np.ndarray]:
            type(self).reads += 1
            if type(self).reads == 1:
                raise RuntimeError("error: (-215:Assertion failed)")
            return super().read()

    monkeypatch.setattr(camera, "_AGAIN", 0.01)
    monkeypatch.setattr(camera, "_cv2", lambda: type("cv2", (), {"VideoCapture": Failing}))
    source = CameraSource("0", every=0.001, once=True)
    end = time.monotonic() + 10
    while not source.ended and time.monotonic() < end:
        source.poll(set())
    source.close()
    assert source.ended


def test_a_frame_that_cannot_be_decoded_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Video(_Camera):
        number = 0

        def get(self, _: int) -> float:
            return 1.0

        def grab(self) -> bool:
            self.number += 1
            return self.number < 4

        def retrieve(self) -> tuple[bool, np.ndarray | None]:
            return (False, None) if self.number == 2 else (True, np.zeros((8, 8), np.uint8))

    kinds = {"VideoCapture": Video, "CAP_PROP_FPS": 5}
    monkeypatch.setattr(camera, "_cv2", lambda: type("cv2", (), kinds))
    (tmp_path / "a.avi").touch()
    source = VideoSource(tmp_path / "a.avi", every=1.0)
    found = [one.name.rpartition("#")[2] for _ in range(2) for one in source.poll(set())]
    assert found == ["1", "3"]
    assert "a.avi#2 cannot be decoded" in caplog.text


def test_a_password_is_nowhere_in_the_name() -> None:
    assert plain_name("rtsp://me:secret@host:554/x?y=1") == "rtsp://host:554/x?y=1"
    assert plain_name("/dev/video0") == "/dev/video0"


def test_without_opencv_the_message_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ConfigError, match=r"pip install 'fedvad\[camera\]'"):
        VideoSource(tmp_path / "a.mp4", every=1)
