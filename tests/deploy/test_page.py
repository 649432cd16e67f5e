"""The walk of docs/deploy.md on one machine: a server, two sites, a run, as written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedvad.drawing.demo import write_demo
from tests.deploy.test_end_to_end import free_port

PAGE = Path(__file__).parents[2] / "docs/deploy.md"


@pytest.mark.slow
def test_the_walk_on_one_machine_runs_as_written(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r"machine\n.*?```bash\n(.*?)```", page, re.DOTALL)
    # drawn before, smaller; and ports that nobody else uses
    script = script.replace("fedvad demo --out demo\n", "")
    write_demo(tmp_path / "demo/data", plants=3, train=6, test_normal=2, test_defect=3)
    script = script.replace(" --server 127.0.0.1", f" --server 127.0.0.1 --port {free_port()}")
    for port in ("9101", "9102"):
        assert port in script
        script = script.replace(port, str(free_port()))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("w+") as log:
        running = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path, env=os.environ | {"PATH": path}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = running.wait(900)
        finally:
            os.killpg(running.pid, signal.SIGTERM)  # the server and the sites go on
        log.seek(0)
        assert code == 0, log.read()
    assert (tmp_path / "run/detector.safetensors").is_file()
    assert len(list((tmp_path / "overlays").rglob("*.png"))) == 5
