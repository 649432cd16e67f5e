"""Real servers and sites on this machine: TLS, keys, kill -9, and the numbers of one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.deploy.init import init
from fedvad.deploy.server import read_status
from fedvad.deploy.settings import read_server, to_toml
from fedvad.runs.memory_run import TrainedRun
from tests.helpers import OPTIONS, SHARED

pytestmark = pytest.mark.slow
SITES = ("alder", "birch", "cedar")
RESNET18 = "resnet18.torchvision-v1-layer123.safetensors"
# as `fedvad`, but the dead are noticed sooner
_COMMAND = """
from flwr.supernode import fleet_http_connection
from fedvad.deploy import launch, processes
fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = 10
launch._STALE, processes._RETRY_SECONDS = 30.0, 5
from fedvad.cli.main import main
main()
"""
# two rounds take half a minute on an idle machine; busy ones may be ten times slower
PATIENCE = 900.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def until(what: str, happens: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := happens()):
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.5)
    return value


class Machines:
    """Processes of a deployment, with their logs; whatever runs in the end is killed."""

    def __init__(self, root: Path, data: Path, sites: Sequence[str], **options: Any) -> None:
        self.root, self.data, self.sites = root, data, sites
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {name: free_port() for name in ("server", *sites, "intruder")}
        init(root, ["127.0.0.1"], sites, port=self.ports["server"])
        (root / "server" / "federation.toml").write_text(to_toml(options))
        settings = root / "server" / "server.toml"
        text = settings.read_text().replace("deadline = 3600", f"deadline = {PATIENCE}")
        settings.write_text(text + f"quorum = 3\nretry = {PATIENCE / 30}\n")

    def start(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *map(str, arguments)],
                stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(self.root)},
            )  # fmt: skip
        return self.running[name]

    def server(self, *more: str) -> None:
        self.start("server", "server", self.root / "server", "--host", "127.0.0.1", *more)

    def site(self, name: str, *more: str) -> None:
        folder = self.root / "sites" / name
        data = self.data / (name if name in self.sites else self.sites[0])
        self.start(
            name, "site", folder, "--data", data, "--cache", self.root / "cache",
            "--port", self.ports[name], *more,
        )  # fmt: skip

    def launch(self, out: str) -> subprocess.Popen[bytes]:
        return self.start("launch", "launch", self.root / "server", "--out", self.root / out)

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def kill(self, name: str) -> None:
        """As `kill -9` does: this process only. What it started has to notice."""
        self.running[name].kill()
        self.running[name].wait()

    def status(self) -> dict[str, Any]:
        return read_status(read_server(self.root).run("federation"))

    def end(self) -> None:
        for process in self.running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Machines]]:
    pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedvad[flower]'")
    made: list[Machines] = []

    def one(data: Path, sites: Sequence[str], **options: Any) -> Machines:
        made.append(Machines(tmp_path / "dep", data, sites, **options))
        return made[-1]

    try:
        yield one
    finally:
        for machines in made:
            machines.end()


@pytest.fixture
def three(tmp_path: Path, plants: Path) -> tuple[Path, Sequence[str], dict[str, Any]]:
    """Data, sites, options: three real exposures where they are at hand, else drawn plants."""
    mtd, weights = SHARED / "data" / "mtd", SHARED / "weights" / RESNET18
    if not mtd.is_dir() or not weights.is_file():
        return plants, SITES, OPTIONS
    sites = ("exposure1", "exposure2", "exposure3")
    for site in sites:  # the test images are of no use here
        (tmp_path / "mtd" / site).mkdir(parents=True)
        (tmp_path / "mtd" / site / "train").symlink_to(mtd / site / "train")
    options = {"backbone": "resnet18", "image_size": 128, "upload_bytes": 200_000}
    return tmp_path / "mtd", sites, options | {"weights": weights}


def check_same(machines: Machines, data: Path, **options: Any) -> None:
    """The server's run and the sites' are those of `train` in one place, to the bit."""
    root = machines.root
    fedvad.train(data, root / "in-process", cache=root / "cache", **options)
    expected = TrainedRun.load(root / "in-process")
    runs = [next((root / "sites" / s / "state" / "runs").iterdir()) for s in machines.sites]
    for run in (root / "run", *runs):
        made = TrainedRun.load(run)
        for part in ("vectors", "weights", "spread"):
            assert np.array_equal(getattr(made.memory, part), getattr(expected.memory, part))
        for site, model in made.sites.items():
            assert model.thresholds == expected.sites[site].thresholds


def test_killed_server_and_site_and_an_intruder(
    make: Callable[..., Machines], three: tuple[Path, Sequence[str], dict[str, Any]]
) -> None:
    data, sites, options = three
    own = [f"--weights={options['weights']}"] if "weights" in options else []
    machines = make(data, sites, **{k: v for k, v in options.items() if k != "weights"})
    machines.server()
    for name in sites:
        machines.site(name, *own)
    # an intruder has all that is public, and a key of its own
    init(machines.root / "foreign", ["127.0.0.1"], [sites[0]], port=machines.ports["server"])
    stolen = machines.root / "sites" / "intruder"
    (machines.root / "foreign" / "sites" / sites[0]).rename(stolen)
    (stolen / "ca.crt").write_bytes((machines.root / "server" / "ca.crt").read_bytes())
    machines.site("intruder", *own)
    turned_away = b"does not know the key of this site"
    until("a foreign key is refused", lambda: turned_away in machines.log("intruder").read_bytes())
    machines.kill("intruder")
    first = machines.launch("run")
    until("round 1 is under way", lambda: machines.status().get("round") == 1)
    machines.kill(sites[1])
    machines.site(sites[1], *own)
    state = read_server(machines.root).run("federation") / "state"
    until("round 1 is over", (state / "round-0001" / "complete.json").exists)
    machines.kill("server")
    assert first.wait(PATIENCE) == 4
    assert b"the server stopped" in machines.log("launch").read_bytes()
    machines.server()
    until("the server is back", lambda: machines.launch("run").wait(PATIENCE) == 0)

    check_same(machines, data, **options)
    assert b"not let in: fedvad: this key is not registered" in machines.log("server").read_bytes()
    assert not (stolen / "state" / "federations").exists()


def test_plain_text_only_when_asked_for_and_with_a_warning(
    make: Callable[..., Machines], plants: Path
) -> None:
    machines = make(plants, SITES, **OPTIONS)
    machines.server("--insecure")
    machines.site("alder", "--insecure")
    for name in ("server", "alder"):
        log = machines.log(name)
        until(f"{name} warns", lambda log=log: b"PLAIN TEXT" in log.read_bytes())
    until("the site is in", lambda: b" connected" in machines.log("server").read_bytes())
