"""What several rooms' tests share: tiny drawn data, one trained run, fake features, messages."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import fedvad
from fedvad.data.files import write_atomically
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.site import FedDyMemConfig, MemorySite
from fedvad.drawing.demo import write_demo
from fedvad.evaluation.thresholds import Threshold, conformal_threshold
from fedvad.federation.payload import Manifest, Payload, bank_arrays
from fedvad.memory.bank import MemoryBank
from fedvad.report.contact_sheet import contact_sheet
from fedvad.report.overlay import marked_png

# real images and weights, which are not in the repository
SHARED = Path(os.environ.get("FEDVAD_SHARED") or Path(__file__).parents[2] / "shared")
SIZE = 64
TRAIN = 6
# torch: OpenVINO takes seconds to compile its graph, and is compared with it in tests/features
OPTIONS: dict[str, Any] = {"backbone": "filterbank", "image_size": SIZE, "engine": "torch"}
FLAGS = ("--backbone", "filterbank", "--image-size", str(SIZE), "--engine", "torch")


def alone(thresholds: Mapping[str, Threshold]) -> dict[str, Threshold]:
    """The thresholds that a site finds from its own scores, where it never sees those of others."""
    return {
        name: conformal_threshold(found.scores, found.target_fpr)
        for name, found in thresholds.items()
    }


def use_one_thread() -> None:
    """On busy cores the threads of tiny matrix products wait for one another most of the time."""
    import torch

    torch.set_num_threads(1)


def small_sheet(panels: Any, path: Path, **_: Any) -> None:
    """Stands for `contact_sheet`, which draws every test image."""
    write_atomically(path, marked_png(Image.new("RGB", (8, 8)), "contact sheet"))


@contextmanager
def sheets(draw: Callable[..., None]) -> Iterator[None]:
    """Runs get the contact sheet that `draw` makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedvad.verbs.outputs.contact_sheet", draw)
        yield


_made: dict[str, Any] = {}


def _once(name: str, make: Callable[[], Any]) -> Any:
    # several conftest files share what a session makes; a session fixture would be made in each
    if name not in _made:
        _made[name] = make()
    return _made[name]


def demo_data(factory: pytest.TempPathFactory) -> Path:
    """Three plants of 6 training, 3 normal and 4 defect images; never to be changed."""

    def draw() -> Path:
        root = factory.mktemp("drawn") / "plants"
        write_demo(root, plants=3, train=TRAIN, test_normal=3, test_defect=4, size=SIZE)
        return root

    return cast(Path, _once("data", draw))


def cache_root(factory: pytest.TempPathFactory) -> Path:
    """One descriptor cache for all tests."""
    return cast(Path, _once("cache", lambda: factory.mktemp("cache")))


def trained_run(factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run on the drawn data with every comparison, and what train() returned."""

    def train() -> tuple[Path, dict[str, Any]]:
        out = factory.mktemp("runs") / "run"
        with sheets(contact_sheet):
            results = fedvad.train(
                demo_data(factory), out, cache=cache_root(factory),
                compare="local,pooled,identity", **OPTIONS,
            )  # fmt: skip
        return out, results

    return cast(tuple[Path, dict[str, Any]], _once("run", train))


def without_masks(source: Path, target: Path) -> Path:
    """A copy of a folder of sites that has no masks."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("ground_truth"))
    return target


class FakeFeatures:
    """Stands for `NormalFeatures`: images whose (h, w, d) descriptors are drawn, not read."""

    def __init__(self, where: str, images: npt.NDArray[np.float16]) -> None:
        self.where = where
        self.images = images
        self.digests = [f"{i:016x}" for i in range(len(images))]
        self.extractor = SimpleNamespace(grid=images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[npt.NDArray[np.float16]]:
        return iter(self.images)

    def with_copies(self) -> Iterator[tuple[npt.NDArray[np.float16], list[Any]]]:
        """No image has a near copy."""
        return ((image, []) for image in self.images)


def fake_site(name: str, config: FedDyMemConfig, *, seed: int = 0, n: int = 7) -> MemorySite:
    """A site of `n` drawn images of 4 x 5 patches with 6 values."""
    rng = np.random.default_rng([seed, *name.encode()])
    images = rng.normal(rng.normal(size=6), 1, (n, 4, 5, 6)).astype(np.float16)
    return MemorySite(cast(NormalFeatures, FakeFeatures(name, images)), config, seed=seed)


def make_bank(rows: int = 9, dim: int = 6, seed: int = 0) -> MemoryBank:
    """A bank of random vectors; weights sum to 10 per row."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1, 5, rows)
    return MemoryBank(
        rng.normal(size=(rows, dim)).astype(np.float16).astype(np.float32),
        weights * (10 * rows / weights.sum()),
        rng.uniform(0, 1, rows).astype(np.float32),
    )


def upload(
    site: str = "a", round_: int = 1, bank: MemoryBank | None = None, **changes: Any
) -> Payload:
    """A valid upload of a site, unless `changes` to its manifest say otherwise."""
    bank = make_bank() if bank is None else bank
    manifest: dict[str, Any] = {
        "kind": "upload",
        "site": site,
        "round": round_,
        "features": "feature-key",
        "generator": Generator.identity(bank.dim).hash(),
        "n_images": 4,
        "n_patches": 90,
    }
    return Payload(Manifest(**(manifest | changes)), bank_arrays(bank, "float16"))


def raw_message(header: Any, body: bytes = b"") -> bytes:
    """A safetensors message with any JSON as its header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; returns its exit code."""
    import logging

    from fedvad.cli.main import main

    monkeypatch.setattr("sys.argv", ["fedvad", *map(str, arguments)])
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        root.handlers[:], root.level = handlers, level
    return 0
