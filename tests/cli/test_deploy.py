"""`fedvad deploy`, `server`, `site`, `launch` as people type them."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from importlib import import_module  # some packages hide modules behind functions
from pathlib import Path
from typing import Any

import pytest

from fedvad.data.files import locked
from fedvad.deploy import guard, processes
from fedvad.deploy.guard import APP
from fedvad.deploy.settings import read_server
from tests.helpers import run_main


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "dep"
    assert run_main(
        monkeypatch, "deploy", "init", root, "--server", "plant.example, 10.0.0.5",
        "--site", "alder", "--site", "birch",
    ) == 0  # fmt: skip
    return root


def test_init_says_what_goes_where(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert (
        run_main(monkeypatch, "deploy", "init", deployed, "--server", "plant.example,10.0.0.5") == 0
    )
    said = capsys.readouterr().out
    assert "alder, birch" in said
    assert "lock it away" in said
    assert 'server = "plant.example:8000"' in (deployed / "sites/alder/site.toml").read_text()


def test_init_as_json(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_main(
        monkeypatch, "deploy", "init", deployed, "--server", "plant.example,10.0.0.5",
        "--site", "cedar", "--json",
    ) == 0  # fmt: skip
    reported = json.loads(capsys.readouterr().out)
    assert reported["sites"] == ["alder", "birch", "cedar"]
    assert reported["made"] == [str(deployed / "sites" / "cedar")]


def test_app_is_a_folder_with_a_description(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "deploy", "app") == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == APP
    assert [path.name for path in folder.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("verb", ["server", "site"])
def test_without_flower_the_mend_is_named(
    verb: str,
    deployed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    folder = deployed / ("server" if verb == "server" else "sites/alder")
    assert run_main(monkeypatch, verb, folder) == 2
    assert "pip install 'fedvad[flower]'" in capsys.readouterr().err


def test_folder_without_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "site", tmp_path) == 2
    assert "deploy init" in capsys.readouterr().err


@pytest.mark.usefixtures("_flower")
class TestWithFlower:
    @pytest.fixture
    def _flower(self) -> None:
        pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedvad[flower]'")

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Command lines that Flower was given instead of starting anything."""
        import sys

        from fedvad.deploy import guard

        seen: list[list[str]] = []

        def start(code: int = 0) -> None:
            seen.append(list(sys.argv))
            raise SystemExit(code)

        for place, name in (("superlink", "flower_superlink"), ("supernode", "flower_supernode")):
            monkeypatch.setattr(import_module(f"flwr.{place}.cli.{name}"), name, start)
        monkeypatch.setattr(processes, "tethered", nullcontext)
        monkeypatch.setattr(processes, "check_server", lambda *_: None)
        monkeypatch.setattr(guard, "guard_server", lambda _: seen.append(["guarded"]))
        monkeypatch.setattr(guard, "guard_site", lambda: seen.append(["guarded"]))
        for name in ("FLWR_HOME", "FEDVAD_SERVER", "FEDVAD_SITE", "PATH"):
            monkeypatch.setenv(name, os.environ.get(name, ""))
        for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        monkeypatch.delenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", raising=False)
        return seen

    def test_server_is_guarded_with_tls_and_keys_and_silent(
        self, deployed: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert run_main(monkeypatch, "server", deployed, "--port", "8123") == 0
        guarded, command = started
        assert guarded == ["guarded"]
        assert "--enable-supernode-auth" in command
        assert "--insecure" not in command
        assert command[command.index("--port") + 1] == "8123"
        assert "--disable-runtime-dependency-installation" in command
        assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
        assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        config = (deployed / "server/state/flower/config.toml").read_text()
        assert 'address = "127.0.0.1:8123"' in config

    def test_keys_of_the_folder_are_those_of_flower(
        self, deployed: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flwr.superlink.config_loader import (
            get_federation_manager,
            get_objectstore_linkstate_factories,
        )

        def nodes() -> list[str]:
            database = str(deployed / "server/state/flower.db")
            _, factory = get_objectstore_linkstate_factories(database, get_federation_manager())
            return sorted(node.status for node in factory.state().get_node_info())

        run_main(monkeypatch, "server", deployed)
        run_main(monkeypatch, "server", deployed)
        assert nodes() == ["registered", "registered"]
        (deployed / "server/sites/alder.pub").unlink()
        run_main(monkeypatch, "server", deployed)
        assert nodes() == ["registered", "unregistered"]

    def test_site_is_guarded_with_tls_and_its_key(
        self, deployed: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = deployed / "sites" / "alder"
        assert run_main(monkeypatch, "site", folder, "--data", deployed) == 0
        guarded, command = started
        assert guarded == ["guarded"]
        assert command[command.index("--root-certificates") + 1] == str(folder / "ca.crt")
        assert command[command.index("--auth-supernode-private-key") + 1] == str(
            folder / "site.key"
        )
        assert f'data = "{deployed.resolve()}"' in (folder / "state/site.toml").read_text()

    @pytest.mark.parametrize("verb", ["server", "site"])
    def test_plain_text_needs_its_flag_and_is_warned_of(
        self,
        verb: str,
        deployed: Path,
        started: list[list[str]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = deployed / ("server" if verb == "server" else "sites/alder")
        (folder / "ca.crt").unlink()
        assert run_main(monkeypatch, verb, folder) == 2
        assert "ca.crt is missing" in capsys.readouterr().err
        assert started == []
        assert run_main(monkeypatch, verb, folder, "--insecure") == 0
        assert "--insecure" in started[1]
        assert "PLAIN TEXT" in capsys.readouterr().err

    def test_site_that_is_not_let_in_tries_again(
        self, deployed: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused() -> None:
            raise SystemExit(1)

        def again(program: str, arguments: list[str]) -> Any:
            raise SystemExit(77)

        module = import_module("flwr.supernode.cli.flower_supernode")
        monkeypatch.setattr(module, "flower_supernode", refused)
        monkeypatch.setenv("FEDVAD_SITE_PAUSE", "0")
        monkeypatch.setattr(processes.os, "execv", again)
        assert run_main(monkeypatch, "site", deployed / "sites" / "alder") == 77

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            (f"Failed\n[code: 2004] {guard.NOT_REGISTERED}", "does not know the key of this site"),
            (f"Failed\n[code: 2004] {guard.IN_USE}", "still counts an earlier node"),
            ("Failed\nthe like", "does not take this site"),
        ],
    )
    def test_site_that_is_not_let_in_says_why(
        self,
        deployed: Path,
        started: list[list[str]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        said: str,
        reason: str,
    ) -> None:
        times = self._refuse(monkeypatch, said)
        folder = deployed / "sites" / "alder"
        assert run_main(monkeypatch, "site", folder) == 77
        assert reason in capsys.readouterr().err
        times.append(1000.0)  # later
        in_use = guard.IN_USE in said
        assert run_main(monkeypatch, "site", folder) == (4 if in_use else 77)
        if in_use:
            error = capsys.readouterr().err
            assert "another machine is connected as site alder with the same key" in error

    @staticmethod
    def _refuse(monkeypatch: pytest.MonkeyPatch, said: str) -> list[float]:
        """Let Flower's node say this and leave; returns times, of which the last is now."""
        import logging

        def refused() -> None:
            logging.getLogger("flwr").error(said)
            raise SystemExit(1)

        def again(program: str, arguments: list[str]) -> Any:
            raise SystemExit(77)

        times = [0.0]
        module = import_module("flwr.supernode.cli.flower_supernode")
        monkeypatch.setattr(module, "flower_supernode", refused)
        monkeypatch.setenv("FEDVAD_SITE_PAUSE", "0")
        monkeypatch.setenv(processes._IN_USE, "")
        monkeypatch.delenv(processes._IN_USE)
        monkeypatch.setattr(processes.os, "execv", again)
        monkeypatch.setattr(processes.time, "sleep", lambda _: None)
        monkeypatch.setattr(processes.time, "time", lambda: times[-1])
        return times

    @pytest.mark.parametrize("verb", ["server", "site"])
    def test_a_second_process_of_a_folder_is_refused(
        self,
        verb: str,
        deployed: Path,
        started: list[list[str]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = deployed / ("server" if verb == "server" else "sites/alder")
        with locked(folder / "state" / processes.LOCK):
            assert run_main(monkeypatch, verb, folder) == 2
        assert f"another process is the {verb}" in capsys.readouterr().err
        assert started == []
        assert run_main(monkeypatch, verb, folder) == 0

    def test_a_proxy_is_named_and_never_asked_for_this_machine(
        self,
        deployed: Path,
        started: list[list[str]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example:3128")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "intranet.example")
        assert run_main(monkeypatch, "site", deployed / "sites/alder") == 0
        error = capsys.readouterr().err
        assert "through the proxy proxy.example:3128" in error
        assert "NO_PROXY=plant.example" in error
        assert "secret" not in error
        assert os.environ["no_proxy"] == "intranet.example,127.0.0.1,localhost,::1"

    def test_launch_waits_for_a_server_that_is_starting(
        self, deployed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = import_module("fedvad.deploy.launch")
        settings = read_server(deployed)
        answers = iter([False, False, False, True])
        clock = iter(range(0, 10_000, 50))
        monkeypatch.setattr(module, "healthy", lambda _: next(answers))
        monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(module.time, "sleep", lambda _: None)
        said: list[str] = []
        with locked(settings.state / processes.LOCK):
            assert module._comes_up(settings, said.append)  # after 150 s
        assert said == ["the server at 127.0.0.1:8000 is starting: waiting for it"]
        answers = iter([False] * 9)
        assert not module._comes_up(settings, said.append)
        assert "is not running yet" in said[1]

    def test_launch_without_a_server(
        self, deployed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(import_module("fedvad.deploy.launch"), "_START_SECONDS", 0.0)
        assert run_main(monkeypatch, "launch", deployed, "--out", deployed / "run") == 4
        assert "start it with `fedvad server`" in capsys.readouterr().err
        (deployed / "run").mkdir()
        (deployed / "run" / "x").touch()
        assert run_main(monkeypatch, "launch", deployed, "--out", deployed / "run") == 2
        assert "choose another --out" in capsys.readouterr().err
