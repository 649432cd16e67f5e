"""The accountant: against the closed form of one Gaussian release, and over rounds."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm

from fedvad.errors import ConfigError
from fedvad.federation.privacy import epsilon


def _delta_of(noise: float, eps: float) -> float:
    """Exact delta of one Gaussian release (Balle & Wang 2018, theorem 8), sensitivity 1."""
    return float(
        norm.cdf(0.5 / noise - eps * noise) - math.exp(eps) * norm.cdf(-0.5 / noise - eps * noise)
    )


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("releases", [1, 2, 3])
def test_it_is_an_upper_bound_and_not_a_loose_one(noise: float, releases: int) -> None:
    pytest.importorskip("opacus", reason="pip install 'fedvad[privacy]'")
    reported = epsilon(noise, releases, 1e-5)
    # releases of the same data are one release with less noise
    together = noise / np.sqrt(releases)
    assert _delta_of(together, reported) <= 1e-5
    assert _delta_of(together, 0.7 * reported) > 1e-5


def test_no_noise_is_no_privacy_and_no_release_tells_nothing() -> None:
    assert epsilon(0.0, 1, 1e-5) == math.inf
    assert epsilon(1.0, 0, 1e-5) == 0.0


def test_without_opacus_the_way_out_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedvad\[privacy\]'"):
        epsilon(1.0, 1, 1e-5)


@pytest.mark.parametrize("values", [(-1, 1, 0.1), (1, -1, 0.1), (1, 1, 0.0), (1, 1, 1.0)])
def test_impossible_values_are_refused(values: tuple[float, int, float]) -> None:
    with pytest.raises(ConfigError):
        epsilon(*values)


def test_the_process_logs_as_before() -> None:
    pytest.importorskip("opacus", reason="pip install 'fedvad[privacy]'")
    code = (
        "import logging; from fedvad.federation.privacy import epsilon; epsilon(1.0, 1, 1e-5); "
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[-2] == "[] 30"
