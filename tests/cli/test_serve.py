"""`fedvad serve`: it starts, answers and ends; what it refuses, and what it warns of."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fedvad.cli import serve as module
from tests.helpers import run_main

Run = tuple[Path, dict[str, Any]]
TOKEN = "correct-horse-battery"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[FastAPI]:
    """The applications that would have been served."""
    apps: list[FastAPI] = []
    monkeypatch.setattr(module, "_run", lambda app, listener: apps.append(app))
    return apps


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(trained: Run, plants: Path) -> None:
    command = [sys.executable, "-m", "fedvad", "serve", str(trained[0]), "--port", "0"]
    image = plants / "alder/test/good/000.png"
    with subprocess.Popen(
        [*command, "--site", "alder"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split(" at ")[1].split()[0]
            answer = httpx.post(
                f"{address}/v1/predict", files={"files": image.read_bytes()}, timeout=60
            )
            assert answer.json()["results"][0]["score"] > 0
            assert answer.json()["site"] == "alder"
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out == "stopped\n"
    assert errors == ""


def test_a_missing_extra_is_named(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_main(monkeypatch, "serve", trained[0]) == 2
    assert "uvicorn: pip install 'fedvad[serve]'" in capsys.readouterr().err


def test_a_taken_port_is_reported(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_main(monkeypatch, "serve", trained[0], "--port", port) == 2
    assert f"port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        (("--site", "oak"), "oak"),
        (("--engine", "tpu"), "openvino-bf16 or torch"),
        (("--reference", "mine"), "global, local or union"),
        (("--token-file", "none"), "cannot read the token"),
        (("--host", "no.such.host.invalid"), "cannot listen"),
        (("--device", "warp"), "device 'warp' is not available"),
    ],
)
def test_wrong_options_are_usage_errors(
    options: tuple[str, str],
    reported: str,
    trained: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, "serve", trained[0], "--port", 0, *options) == 2
    assert reported in capsys.readouterr().err


def test_answers_need_a_token_where_others_reach_the_service(
    trained: Run, served: list[FastAPI], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    call = ("serve", trained[0], "--port", 0, "--feedback")
    assert run_main(monkeypatch, *call, "--host", "0.0.0.0") == 2
    assert "--token-file" in capsys.readouterr().err
    assert run_main(monkeypatch, *call) == 0
    client = TestClient(served[0], base_url="http://127.0.0.1")
    assert client.get("/v1/info").json()["feedback"] is True


def test_a_folder_that_is_no_run_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "serve", tmp_path, "--port", 0) == 3
    assert "detector.safetensors" in capsys.readouterr().err


def test_by_default_only_this_machine_is_answered(
    trained: Run,
    served: list[FastAPI],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, "serve", trained[0], "--port", 0, "--allow-host", "line4") == 0
    output = capsys.readouterr()
    assert "http://127.0.0.1:" in output.out
    assert output.err == ""
    client = TestClient(served[0])
    for host, status in (("localhost", 200), ("[::1]:80", 200), ("line4", 200), ("evil", 400)):
        assert client.get("/v1/health", headers={"Host": host}).status_code == status
    info = client.get("/v1/info", headers={"Host": "localhost"}).json()
    assert info["name"] == trained[0].name
    assert info["limits"] == {
        "max_file_bytes": 20_000_000,
        "max_files": 16,
        "max_total_bytes": 64_000_000,
        "max_pixels": 25_000_000,
    }
    assert len(client.get("/v1/samples", headers={"Host": "localhost"}).json()) == 12


def test_an_open_door_without_a_token_is_warned_of(
    trained: Run,
    served: list[FastAPI],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    start = ("serve", trained[0], "--port", 0, "--host", "0.0.0.0")
    assert run_main(monkeypatch, *start) == 0
    assert "whoever reaches 0.0.0.0" in capsys.readouterr().err
    (tmp_path / "token").write_text(TOKEN)
    limits = ("--max-mb", "0.5", "--max-megapixels", "2", "--no-samples")
    assert run_main(monkeypatch, *start, "--token-file", tmp_path / "token", *limits) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert TOKEN not in output.out
    client = TestClient(served[1])
    assert client.get("/v1/info").status_code == 401
    headers = {"Authorization": f"Bearer {TOKEN}"}
    found = client.get("/v1/info", headers=headers).json()["limits"]
    assert (found["max_file_bytes"], found["max_pixels"]) == (500_000, 2_000_000)
    assert client.get("/v1/samples", headers=headers).json() == []
