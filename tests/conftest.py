"""Fixtures of every room: the real images and weights, tiny image sets, and a cache of its own."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests import helpers
from tests.browser import browser, page  # noqa: F401 - fixtures
from tests.helpers import SHARED

_WEIGHTS = {
    "mobilenetv2_100": "mobilenetv2_100.coral-tf2-ptq.safetensors",
    "mcunet_in3": "mcunet_in3.mit-han-lab.safetensors",
    "mcunet_in4": "mcunet_in4.mit-han-lab-int8.safetensors",
    "resnet18": "resnet18.torchvision-v1-layer123.safetensors",
    "resnet50": "resnet50.keras-v1-layer123.safetensors",
}

# In this order. A worker has the file behind a file of two tests from the start: a short one.
_LONGEST = (
    "deploy/test_end_to_end.py",
    "test_docs.py",
    "contract/test_exchanges.py",
    "contract/test_detectors.py",
    "integrations/test_anomalib.py",
    "contract/test_methods.py",
    "serving/export/test_package.py",
    "contract/test_mailboxes.py",
    "verbs/test_train.py",
    "runs/test_students.py",
    "runs/test_families.py",
    "experiments/test_bench.py",
    "experiments/test_continual.py",
    "verbs/test_bank.py",
)
# Left out of the quick suite, like single tests marked `slow`: processes, pages of the docs,
# every detector, backbone and experiment in turn.
_SLOW = (
    "contract", "deploy/test_end_to_end.py", "deploy/test_page.py", "deploy/test_site.py",
    "damage/test_kills.py", "experiments", "features/test_state_file.py", "integrations",
    "runs/test_families.py", "runs/test_remote_students.py", "runs/test_remote_sums.py",
    "runs/test_students.py",
    "runs/test_views.py", "serving/export/test_package.py", "serving/service/test_page.py",
    "serving/service/test_schema.py", "test_docs.py", "test_docs_site.py",
    "verbs/test_tracking.py",
)  # fmt: skip
gc.disable()  # while modules are imported
# of the commands that tests start, too
os.environ["OMP_NUM_THREADS"] = "1"
MakeImages = Callable[..., list[Path]]
# no deadline: a busy machine is no bug. The same examples in each run, so that a change fails by
# its own fault only; `pytest --hypothesis-profile thorough` looks for new ones
settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("quick")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file that has none of the tests asked for is not imported."""
    if collection_path.suffix != ".py" or config.option.markexpr not in ("slow", "not slow"):
        return None
    whole = _whole_is_slow(collection_path)
    if config.option.markexpr == "not slow":
        return whole or None
    return None if whole or "mark.slow" in collection_path.read_text(encoding="utf-8") else True


def _whole_is_slow(path: Path) -> bool:
    return not {Path(__file__).parent / name for name in _SLOW}.isdisjoint({path, *path.parents})


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests begin, so that no worker is left with them at the end.

    Files in `_SLOW` are marked. Tests marked `real` are skipped, with the reason, where there is
    nothing real.
    """
    for item in items:
        if _whole_is_slow(item.path):
            item.add_marker("slow")
    rank = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    if (SHARED / "weights").is_dir() and (SHARED / "data").is_dir():
        return
    reason = f"no real images and weights at {SHARED}; set FEDVAD_SHARED to a folder with both"
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Modules stay: no collection of garbage shall walk through all of them, again and again."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Workers hand their warnings to the main process, which must not import foreign classes."""
    if warning_message.category.__module__ != "builtins":
        said = f"{warning_message.category.__name__}: {warning_message.message}"
        warning_message.category, warning_message.message = UserWarning, UserWarning(said)


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh descriptor cache for every test, so that none reads or fills the user's."""
    root = tmp_path / "fedvad-cache"
    monkeypatch.setenv("FEDVAD_CACHE", str(root))
    return root


@pytest.fixture(autouse=True)
def _usual_logs() -> None:
    """What commands, libraries and fixtures did to loggers reaches no test that listens."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.manager.disable = logging.NOTSET
    for name, logger in root.manager.loggerDict.items():
        if name.partition(".")[0] == "fedvad" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; for tests marked `real`."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} does not exist; set FEDVAD_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def weights(shared: Path) -> dict[str, Path]:
    """Backbone name to its real weights file; for tests marked `real`."""
    return {name: shared / "weights" / file for name, file in _WEIGHTS.items()}


@pytest.fixture(scope="session")
def resnet18_weights(weights: dict[str, Path]) -> Path:
    return weights["resnet18"]


@pytest.fixture(scope="session")
def mcunet_in3_weights(weights: dict[str, Path]) -> Path:
    return weights["mcunet_in3"]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """`make_images(n, size=64, seed=0, folder="images")`: n different PNG files, sorted."""

    def make(n: int, *, size: int = 64, seed: int = 0, folder: str = "images") -> list[Path]:
        rng = np.random.default_rng(seed)
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        paths = [target / f"{i:04d}.png" for i in range(n)]
        for path in paths:
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
        return paths

    return make


@pytest.fixture(scope="session", autouse=True)
def _lean() -> Iterator[None]:
    """One thread, and neither contact sheets nor waiting for the disk, the most of a tiny run."""
    helpers.use_one_thread()
    with pytest.MonkeyPatch.context() as patch, helpers.sheets(helpers.small_sheet):
        patch.setattr("os.fsync", lambda fd: None)
        yield


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
