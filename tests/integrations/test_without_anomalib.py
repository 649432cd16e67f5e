"""Without the extra, the plugin names it."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = "import sys; sys.modules['anomalib'] = None; import fedvad.integrations.anomalib"


def test_the_missing_extra_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError")
    assert "pip install 'fedvad[anomalib]'" in last
