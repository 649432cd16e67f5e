"""`examples/line.py` against the real service and a stand-in for the PLC."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedvad.serving.predictor import Predictor
from tests.serving.service.conftest import Run, Serve

RunLine = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = Path(__file__).parents[3] / "examples/line.py"


class Plc:
    """Confirms every single coil that Modbus TCP writes, and remembers it; `refuse`: says no."""

    def __init__(self) -> None:
        self.coils: list[tuple[int, bool]] = []
        self.refuse = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                message = client.recv(64)
                number, protocol, length, unit, function, coil, value = struct.unpack(
                    ">HHHBBHH", message
                )
                assert (protocol, length, function) == (0, 6, 5)
                if self.refuse:
                    client.sendall(struct.pack(">HHHBBB", number, 0, 3, unit, 0x85, 2))
                    continue
                self.coils.append((coil, value == 0xFF00))
                client.sendall(message)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def plc() -> Iterator[Plc]:
    opened = Plc()
    yield opened
    opened.close()


@pytest.fixture
def run_line(plc: Plc) -> RunLine:
    def run(folder: Path, service: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, PROGRAM, folder, "--service", service, "--plc", "127.0.0.1"]
        more = ["--port", plc.port, "--coil", 7, "--timeout", 20, "--once", *flags]
        return subprocess.run(
            [str(word) for word in command + more],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def test_a_coil_is_written_for_every_part(
    serve: Serve, trained: Run, files: list[Path], plc: Plc, tmp_path: Path, run_line: RunLine
) -> None:
    for index, file in enumerate(files[:2]):
        shutil.copy(file, tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not a part")
    for threshold, rejected in ((1e9, [False, False, True]), (1e-9, [True, True, True])):
        plc.coils.clear()
        with Predictor.load(trained[0], site="birch", threshold=threshold) as scorer:
            done = run_line(tmp_path, serve(scorer))
        assert done.returncode == 0, done.stderr
        assert plc.coils == [(7, reject) for reject in rejected]


def test_a_service_that_is_away_rejects_and_a_plc_that_refuses_ends_it(
    files: list[Path], plc: Plc, tmp_path: Path, run_line: RunLine
) -> None:
    shutil.copy(files[0], tmp_path)
    nobody = "http://127.0.0.1:9"
    done = run_line(tmp_path, nobody)
    assert plc.coils == [(7, True)]
    assert "reject, no decision" in done.stdout
    run_line(tmp_path, nobody, "--on", "pass")
    assert plc.coils == [(7, True), (7, False)]
    plc.refuse = True
    done = run_line(tmp_path, nobody)
    assert "Modbus exception 2" in done.stderr
    assert done.returncode == 1
