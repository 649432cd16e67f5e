"""Folders of pages and slices, from training to the report, by their names."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedvad
from tests.helpers import OPTIONS

nibabel = pytest.importorskip("nibabel")


def _texture(rng: np.random.Generator, *, hole: bool = False) -> np.ndarray:
    rows = np.arange(64)[:, None]
    grey = 120 + 40 * np.sin(rows / 5 + rng.uniform(0, 6)) + rng.normal(0, 4, (64, 64))
    if hole:
        grey[20:40, 20:40] = 10
    return np.clip(grey, 0, 255).astype(np.uint8)


def _stack(path: Path, images: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(image) for image in images]
    pages[0].save(path, save_all=True, append_images=pages[1:])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of TIFF stacks with a stack of masks, and a site of a NIfTI volume."""
    root = tmp_path_factory.mktemp("formats") / "data"
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    plant = root / "plant"
    _stack(plant / "train/good/a.tif", [_texture(rng) for _ in range(6)])
    _stack(plant / "test/good/b.tif", [_texture(rng) for _ in range(2)])
    _stack(plant / "test/hole/c.tif", [_texture(rng, hole=True) for _ in range(2)])
    _stack(plant / "ground_truth/hole/c_mask.tif", [mask, mask])
    volume = np.stack([_texture(rng) for _ in range(5)], axis=2)
    good = root / "clinic/train/good/head.nii.gz"
    good.parent.mkdir(parents=True)
    good.write_bytes(gzip.compress(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()))
    return root


def test_pages_and_slices_train_and_are_reported_by_their_names(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = fedvad.train(data, run, **OPTIONS, rounds=1)
    assert results["training_images"] == {"clinic": 5, "plant": 6}
    assert results["image_auroc"]["sites"] == {"plant": 1.0}
    assert results["pixel_auroc"]["sites"]["plant"] > 0.98
    assert (run / "report.html").is_file()
    rows = list(fedvad.predict(run, data / "plant/test", site="plant", out=tmp_path / "out"))
    assert [Path(row["path"]).name for row in rows] == ["b.tif#1", "b.tif#2", "c.tif#1", "c.tif#2"]
    assert all(Path(row["overlay"]).is_file() for row in rows)
    assert min(r["score"] for r in rows[2:]) > max(r["score"] for r in rows[:2])
