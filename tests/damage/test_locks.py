"""One process at a time works on a folder, and what a killed one left is swept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import fedvad
from fedvad.data.locks import LOCK_FILE, only_one
from fedvad.deploy.sharing import KEY, take
from fedvad.errors import ConfigError, InUseError, StorageError
from fedvad.runs.site_scores import THRESHOLDS, adopt
from tests.helpers import FLAGS, OPTIONS, run_main

_HOLDER = """
import sys, time
from pathlib import Path
from fedvad.data.locks import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path) -> Any:
    """A folder that another process works on, and that process."""
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield folder, holder
        holder.kill()


def test_the_second_process_is_refused_until_the_first_is_dead(held: Any) -> None:
    folder, holder = held
    with (
        pytest.raises(ConfigError, match=f"in use: process {holder.pid}"),
        only_one(folder),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / LOCK_FILE).exists()  # a lock is not the file of that name
    with only_one(folder):
        pass
    assert not folder.exists() or not (folder / LOCK_FILE).exists()


def test_every_command_that_writes_a_folder_is_refused(
    held: Any, plants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, _ = held
    data = plants / "alder"
    assert run_main(monkeypatch, "bank", "keygen", "--out", tmp_path, "--name", "k") == 0
    (tmp_path / "suite.toml").write_text(
        'name = "x"\nseeds = [0]\n[[sets]]\nname = "demo"\n[[methods]]\nname = "a"\n'
    )
    commands: list[tuple[object, ...]] = [
        ("train", plants, "--out", folder, *FLAGS),
        ("train", plants, "--out", folder, "--resume", *FLAGS),
        ("bank", "export", data, "--state", folder, "--key", tmp_path / "k.key",
         "--out", tmp_path / "a.fedvad", "--site-index", 0, *FLAGS),
        ("bank", "import", tmp_path / "none", "--state", folder, "--trust", tmp_path / "k.pub"),
        ("bank", "merge", tmp_path / "none", "--state", folder, "--trust", tmp_path / "k.pub",
         "--key", tmp_path / "k.key", "--out", tmp_path / "g.fedvad"),
    ]  # fmt: skip
    before = sorted(p.name for p in folder.iterdir())
    for command in commands:
        capsys.readouterr()
        assert run_main(monkeypatch, *command) == 2, command
        assert "is in use" in capsys.readouterr().err.replace("\n", " ")
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("verb", "name"),
    [("bench", "quick"), ("run_stream", "demo"), ("distill_backbone", "quick")],
)
def test_experiments_lock_their_folder_first(verb: str, name: str, held: Any) -> None:
    with pytest.raises(ConfigError, match="in use"):
        getattr(fedvad, verb)(name, held[0])


def test_thresholds_of_all_sites_are_refused_while_the_run_is_written(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """An answer that was being given would be lost, or bring the old thresholds back."""
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    before = (run / "detector.safetensors").read_bytes()
    found = {THRESHOLDS: {"global": {"value": 2.5, "method": "federated"}}}
    counts = {KEY: {"global": [[10, 3], [20, 5]]}}
    with only_one(run):
        with pytest.raises(InUseError, match="in use"):
            adopt(run, "alder", found)
        with pytest.raises(InUseError, match="in use"):
            take(run, counts, 0.1)
    assert (run / "detector.safetensors").read_bytes() == before
    adopt(run, "alder", found)
    assert fedvad.load(run).limit("alder") == 2.5


def test_two_trainings_at_once_leave_the_run_of_one(
    plants: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look before either writes, which today's check then act would let pass."""
    out = tmp_path / "run"
    inside, leave = threading.Event(), threading.Event()
    ended: list[dict[str, Any]] = []

    def wait(stage: str, done: int, total: int) -> None:
        inside.set()
        leave.wait(60)

    def first() -> None:
        ended.append(
            fedvad.train(plants, out, cache=shared_cache, progress=wait, seed=0, **OPTIONS)
        )

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ConfigError, match="in use"):
        fedvad.train(plants, out, cache=shared_cache, seed=1, **OPTIONS)
    leave.set()
    thread.join(120)
    assert json.loads((out / "config.json").read_text())["seed"] == ended[0]["seed"] == 0
    assert not (out / LOCK_FILE).exists()


def test_only_what_is_ours_and_unfinished_is_swept(tmp_path: Path) -> None:
    ours = [tmp_path / ".0123456789ab.tmp", tmp_path / "state" / "round-0001" / ".ba9876543210.tmp"]
    others = [tmp_path / name for name in (".mine.tmp", "0123456789ab.tmp", ".0123456789AB.tmp")]
    (tmp_path / "state" / "round-0001").mkdir(parents=True)
    for path in (*ours, *others):
        path.write_bytes(b"half")
    (tmp_path / ".00112233aabb.tmp").symlink_to(others[0])
    with only_one(tmp_path):
        assert not any(path.exists() for path in ours)
        assert all(path.exists() for path in others)
        assert (tmp_path / ".00112233aabb.tmp").is_symlink()


def test_a_folder_that_nothing_came_into_goes(tmp_path: Path) -> None:
    with only_one(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK_FILE).read_text().startswith(f"process {os.getpid()} ")
    assert not (tmp_path / "new").exists()
    with only_one(tmp_path / "kept"):
        (tmp_path / "kept" / "file").touch()
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_private_folder_is_closed_to_others(tmp_path: Path) -> None:
    with only_one(tmp_path / "state", private=True):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_disk_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path):
        assert "keeps no locks" in caplog.text


def test_a_lock_that_is_a_link_empties_no_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("words")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError, match="lock"), only_one(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "words"
