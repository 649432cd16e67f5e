"""Fixtures over the shared drawn data; see tests/helpers.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import helpers


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    helpers.use_one_thread()


@pytest.fixture(scope="session")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn sites alder, birch and cedar; read only."""
    return helpers.demo_data(tmp_path_factory)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The descriptor cache of all tests."""
    return helpers.cache_root(tmp_path_factory)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run folder and its results; read only."""
    return helpers.trained_run(tmp_path_factory)
