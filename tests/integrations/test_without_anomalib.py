"""Without the extra, the plugin names it."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.mark.skipif(
    importlib.util.find_spec("anomalib") is not None, reason="anomalib is installed"
)
def test_the_missing_extra_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fedvad\[anomalib\]'"):
        import fedvad.integrations.anomalib  # noqa: F401
