"""doctor(): all is well where it is, and each thing that is wrong is named with its mend."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.deploy.keys import make_authority
from fedvad.verbs import doctor as verb
from tests.helpers import run_main

Run = tuple[Path, dict[str, Any]]


@pytest.fixture
def examine(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    # a full disk of the machine that tests is not what is tested
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=9 << 30))

    def call(path: Path | None = None, **options: Any) -> dict[str, Any]:
        found = fedvad.doctor(path, cache=shared_cache, engine="torch", **options)
        checks = {check["name"]: check for check in found["checks"]}
        assert found["ok"] is not any(check["state"] == "wrong" for check in checks.values())
        return {**checks, "ok": found["ok"]}

    return call


def test_all_is_well_with_a_run_and_its_images(
    examine: Callable[..., dict[str, Any]], trained: Run, plants: Path
) -> None:
    found = examine(trained[0])
    assert found["ok"] is True
    assert "filterbank with torch on cpu" in found["run"]["says"]
    assert "3 sites" in found["run"]["says"]
    assert found["torch"]["state"] == "ok"
    assert examine(plants)["data"]["state"] == "ok"


def test_a_damaged_run_and_an_interrupted_one_are_named(
    examine: Callable[..., dict[str, Any]], trained: Run, tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    file = tmp_path / "run/detector.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (tmp_path / "run/state").mkdir()
    found = examine(tmp_path / "run")
    assert found["run"]["state"] == "wrong"
    assert "damaged" in found["run"]["says"]
    assert "--resume" in found["training"]["mend"]


def test_unreadable_images_are_named(
    examine: Callable[..., dict[str, Any]], plants: Path, tmp_path: Path
) -> None:
    shutil.copytree(plants / "alder", tmp_path / "alder")
    (tmp_path / "alder/train/good/000.png").write_bytes(b"no image")
    found = examine(tmp_path / "alder")["data"]
    assert found["state"] == "wrong"
    assert "000.png" in found["says"]


def test_cubes_of_bands_are_read_as_such(
    examine: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "belt" / "train" / "good"
    folder.mkdir(parents=True)
    for number in range(3):
        np.save(folder / f"{number}.npy", np.full((6, 7, 5), 10.0 + number))
    assert examine(tmp_path)["data"] == {
        "name": "data", "state": "ok", "says": "1 sites; nothing to note", "mend": ""
    }  # fmt: skip
    np.save(folder / "3.npy", np.full((6, 7, 5), np.nan))
    found = examine(tmp_path)["data"]
    assert found["state"] == "wrong"
    assert "3.npy" in found["says"]


def test_certificates_keys_and_the_clock(
    examine: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_authority(tmp_path)
    certificate = str(tmp_path / "ca.crt")
    assert examine(tmp_path)[certificate]["state"] == "ok"
    (tmp_path / "ca.key").chmod(0o644)
    assert "chmod 600" in examine(tmp_path)[str(tmp_path / "ca.key")]["mend"]

    class Later(datetime):
        shift = timedelta(days=3640)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) + cls.shift

    monkeypatch.setattr(verb, "datetime", Later)
    assert "valid until" in examine(tmp_path)[certificate]["says"]
    assert examine(tmp_path)[certificate]["state"] == "warning"
    Later.shift = timedelta(days=3660)
    assert examine(tmp_path)[certificate]["says"].startswith("expired")
    future = datetime.now(UTC).timestamp() + 7200
    os.utime(tmp_path / "ca.crt", (future, future))
    assert examine(tmp_path)["clock"]["state"] == "wrong"


def test_a_full_disk_and_a_taken_port(
    examine: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1 << 20))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = examine(port=port)
    assert found["disk of the cache"]["state"] == "wrong"
    assert found["port"]["state"] == "warning"
    assert f"--port {port + 1}" in found["port"]["mend"]


def test_missing_weights_and_packages(
    examine: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_NEEDED", ("numpy", "no_such_package"))
    found = examine(weights=tmp_path / "none.safetensors")
    assert found["backbone"]["state"] == "wrong"
    assert "none.safetensors" in found["backbone"]["says"]
    assert "pip install" in found["no_such_package"]["mend"]


def test_the_command(
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=9 << 30))
    assert run_main(monkeypatch, "doctor", trained[0], "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert run_main(monkeypatch, "doctor", tmp_path, "--engine", "torch") == 1
    out = capsys.readouterr().out
    assert "WRONG    data" in out
    assert "something is wrong" in out
