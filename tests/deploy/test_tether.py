"""What a server or site started ends with it, whatever ends it; its logs are plain text."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX only")

# a child that ignores SIGINT, in a session of its own, with a child of its own
CHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("\\033[92mINFO\\033[0m ready", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""
PARENT = """
import os, signal, subprocess, sys, time
from fedvad.deploy.tether import tethered
with tethered():
    child = subprocess.Popen([sys.executable, "-c", CHILD, sys.argv[1]], start_new_session=True)
    while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
        time.sleep(0.02)
    print(child.pid, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
print("the end")
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_children_end_with_their_parent(tmp_path: Path, how: str) -> None:
    path, log = tmp_path / "pid", tmp_path / "log"
    code = PARENT.replace("CHILD", repr(CHILD))
    with log.open("w") as file:
        command = [sys.executable, "-c", code, str(path), how]
        subprocess.run(command, stdout=file, stderr=file, check=how == "ended", timeout=60)
    end = time.monotonic() + 20
    while len(words := log.read_text().partition("ready")[2].split()) < 1:  # its last words
        assert time.monotonic() < end
        time.sleep(0.05)
    pids = [int(path.read_text()), int(words[0])]
    while any(map(alive, pids)):
        assert time.monotonic() < end, "they live on"
        time.sleep(0.05)
    text = log.read_text()
    assert "INFO ready" in text
    assert "\x1b" not in text
    assert ("the end" in text) is (how == "ended")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
