"""What scripts read is on standard output, whatever is drawn on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from fedvad.cli.common import print_json, showing
with showing() as update:
    for i in range(3):
        update("scoring", i + 1, 3)
        print_json({"row": i, "long": "x" * 200})
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_rows_reach_a_file_while_bars_are_on_the_terminal(tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=out, stderr=theirs, check=True)
    os.close(theirs)
    bars = os.read(ours, 100_000).decode()
    os.close(ours)
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert "scoring" in bars
    assert "xxx" not in bars
    assert done.returncode == 0
