"""The demo set: reproducible, in MVTec layout, with masks that cover what the defect changed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fedvad.drawing.camera import Camera, photograph
from fedvad.drawing.cloth import CLOTHS
from fedvad.drawing.demo import write_demo
from fedvad.drawing.flaws import DEFECTS

CAMERA = Camera(
    azimuth=-2.2,
    elevation=0.9,
    tint=(1.03, 1.0, 0.97),
    gain=1.0,
    contrast=1.0,
    blur=0.4,
    noise=0.012,
    vignette=0.15,
    wear=0.4,
)


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}


def _small(root: Path, seed: int) -> dict[str, bytes]:
    write_demo(root, plants=2, train=3, test_normal=2, test_defect=6, size=64, seed=seed)
    return _bytes(root)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    first, again, other = (_small(tmp_path / n, s) for n, s in (("a", 3), ("b", 3), ("c", 4)))
    assert first == again
    assert first.keys() == other.keys()
    pictures = [k for k in first if "ground_truth" not in k]
    assert all(first[k] != other[k] for k in pictures)
    assert len({first[k] for k in pictures}) == len(pictures)


def test_layout_and_counts(tmp_path: Path) -> None:
    names = write_demo(tmp_path, plants=2, train=3, test_normal=2, test_defect=8, size=64)
    assert len(set(names)) == 2
    for name in names:
        site = tmp_path / name
        assert len(list((site / "train/good").glob("*.png"))) == 3
        assert len(list((site / "test/good").glob("*.png"))) == 2
        shown = [p for p in (site / "test").rglob("*.png") if p.parent.name != "good"]
        assert {p.parent.name for p in shown} == set(DEFECTS)
        assert len(shown) == 8
        for path in shown:
            mask_path = site / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            mask = np.asarray(Image.open(mask_path))
            picture = np.asarray(Image.open(path))
            assert picture.shape == (64, 64, 3)
            assert mask.shape == (64, 64)
            assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("kind", DEFECTS)
def test_mask_covers_what_the_defect_changed(kind: str) -> None:
    # Beyond the defect, its neighbourhood's shade fades out within a few pixels.
    near, far = np.ones((7, 7), dtype=bool), np.ones((21, 21), dtype=bool)
    for k, cloth in enumerate(CLOTHS):
        clean, nothing = photograph(cloth, CAMERA, (5, k), size=128)
        broken, mask = photograph(cloth, CAMERA, (5, k), size=128, defect=kind)
        assert not nothing.any()
        assert 0 < mask.mean() < 0.15
        change = np.abs(broken.astype(int) - clean.astype(int)).max(2)
        assert change[~ndimage.binary_dilation(mask, near)].max() <= 6
        assert not change[~ndimage.binary_dilation(mask, far)].any()
        # Visible, inside the mask, and mostly there.
        assert change[mask].mean() > 4
        assert change[mask].sum() > 0.5 * change.sum()


def test_unknown_defects_and_impossible_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="one of hole"):
        photograph(CLOTHS[0], CAMERA, (0,), size=32, defect="rust")
    for wrong in ({"plants": 0}, {"train": -1}, {"size": 8}):
        with pytest.raises(ValueError, match="the demo needs"):
            write_demo(tmp_path, **wrong)  # type: ignore[arg-type]


def test_each_plant_trains_on_a_part_and_all_plants_on_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, int], set[object]] = {}

    def note(cloth, camera, seed, *, size, defect=None):  # type: ignore[no-untyped-def]
        seen.setdefault((seed[1], seed[2]), set()).add(cloth)
        return np.zeros((size, size, 3), np.uint8), np.ones((size, size), bool)

    monkeypatch.setattr("fedvad.drawing.demo.photograph", note)
    write_demo(tmp_path, plants=4, size=32)
    train = [seen[plant, 0] for plant in range(4)]
    assert all(len(part) == len(CLOTHS) - 1 for part in train)
    assert set.union(*train) == set(CLOTHS)
    assert all(seen[plant, 1] == set(CLOTHS) for plant in range(4))


def test_a_picture_is_quick() -> None:
    photograph(CLOTHS[0], CAMERA, (0,), size=128)
    start = time.process_time()
    for k in range(10):
        photograph(CLOTHS[k % len(CLOTHS)], CAMERA, (k,), size=128, defect=DEFECTS[k % 6])
    # The default set has 208 pictures and takes under 8 s on a free core; this is its share,
    # with room for a busy machine.
    assert time.process_time() - start < 10 * 0.15
