"""Masks that cannot be believed are not scored, and are counted by what ails them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.folders import ImageItem, ImageSet
from fedvad.detectors.base import Scores
from fedvad.evaluation.sites import evaluate_site, summarise
from fedvad.evaluation.truth import read_truth

WIDE = (24, 48)


def blob(shape: tuple[int, int] = WIDE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[4:10, 6:18] = True
    return mask


def save(path: Path, mask: np.ndarray) -> Path:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def defect(folder: Path, name: str, *masks: np.ndarray, turn: int = 1) -> ImageItem:
    """An image of 24 x 48 stored pixels, turned by EXIF, with its masks."""
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", WIDE[::-1], "grey").save(folder / f"{name}.jpg", exif=exif)
    paths = [save(folder / f"{name}_mask_{i}.png", mask) for i, mask in enumerate(masks)]
    first = paths[0] if paths else None
    return ImageItem(folder / f"{name}.jpg", 1, "hole", first, tuple(paths[1:]))


INVERTED = "with a mask of nearly the whole image (inverted?)"
SWAPPED = "with a mask whose height and width are swapped"


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (blob(), None),
        (np.kron(blob(), np.ones((3, 3), bool)), None),
        (blob((240, 480)) & False, "with an empty mask"),
        (~blob(), INVERTED),
        (np.ones(WIDE, bool), INVERTED),
        (blob().T, SWAPPED),
        (np.kron(blob().T, np.ones((2, 2), bool)), SWAPPED),
    ],
)  # fmt: skip
def test_doubtful_masks_are_named(tmp_path: Path, mask, fault) -> None:
    good = defect(tmp_path, "good", blob())
    truth = read_truth(ImageSet((good, defect(tmp_path, "other", mask))), 24)
    assert truth.defective == 2
    assert truth.masked == (2 if fault is None else 1)
    assert truth.faults == ({} if fault is None else {fault: ["other.jpg"]})
    assert bool(truth.note()) is (fault is not None)


def test_a_large_defect_is_no_inverted_mask(tmp_path: Path) -> None:
    large = np.zeros(WIDE, bool)
    large[2:22, 2:44] = True  # 73 % of the image, its border free
    assert read_truth(ImageSet((defect(tmp_path, "a", large),)), 24).masked == 1


@pytest.mark.parametrize("turn", [3, 6])
def test_a_turned_image_with_an_unturned_mask_is_named(tmp_path: Path, turn) -> None:
    raw = defect(tmp_path, "raw", blob(), turn=turn)
    truth = read_truth(ImageSet((raw,)), 24)
    assert truth.faults == {"turned by EXIF, their masks not": ["raw.jpg"]}
    assert truth.note().startswith("no pixel figures: 1 turned by EXIF")


def test_a_mask_drawn_on_the_upright_image_fits(tmp_path: Path) -> None:
    assert read_truth(ImageSet((defect(tmp_path, "a", blob().T, turn=6),)), 24).masked == 1


def test_several_masks_are_united_also_of_other_sizes(tmp_path: Path) -> None:
    left, right = np.zeros(WIDE, bool), np.zeros((48, 96), bool)
    left[4:8, 4:8] = right[20:28, 60:76] = True
    truth = read_truth(ImageSet((defect(tmp_path, "a", left, right),)), 24)
    ((_, mask),) = truth.pairs(np.zeros((1, 4, 4), np.float32))
    united = left.copy()
    united[10:14, 30:38] = True
    assert (mask == united[:, ::2]).all()


def test_missing_unreadable_vanishing_and_contrary_masks(tmp_path: Path) -> None:
    speck = np.zeros((200, 400), bool)
    speck[100, 201] = True
    items = [
        defect(tmp_path, "sound", blob()),
        defect(tmp_path, "none"),
        defect(tmp_path, "broken", blob()),
        defect(tmp_path, "speck", speck),
        ImageItem(tmp_path / "n.png", 0, "good", save(tmp_path / "n_mask.png", blob())),
        ImageItem(tmp_path / "m.png", 0, "good"),
    ]
    (tmp_path / "broken_mask_0.png").write_bytes(b"no image")
    truth = read_truth(ImageSet(tuple(items)), 24)
    assert truth.to_json() == {
        "defective": 4,
        "masked": 1,
        "faults": {
            "without a mask": 1,
            "with an unreadable mask": 1,
            "with a mask that vanishes at 24 pixels (raise --image-size)": 1,
            "normal, but with a marked mask": 1,
        },
    }
    assert truth.note().startswith(
        "pixel figures on 1 of 4 defective images: 1 without a mask (none.jpg); 1 with an"
    )
    assert len(list(truth.pairs(np.zeros((6, 4, 4), np.float32)))) == 2  # sound, and m


def test_a_set_without_any_mask_says_nothing(tmp_path: Path) -> None:
    truth = read_truth(ImageSet((defect(tmp_path, "a"),)), 24)
    assert (truth.usable, truth.note()) == (False, "")


def test_pixel_figures_rest_on_the_images_with_masks(tmp_path: Path) -> None:
    items = [ImageItem(tmp_path / "g.png", 0, "good"), defect(tmp_path, "a", blob((24, 24)))]
    exact = evaluate_site(
        "s", ImageSet(tuple(items)), _scores(blob((24, 24)), 2), None, image_size=24
    )
    more = [*items, defect(tmp_path, "b")]
    partly = evaluate_site(
        "s", ImageSet(tuple(more)), _scores(blob((24, 24)), 3), None, image_size=24
    )
    assert exact.pixel_auroc == partly.pixel_auroc == 1.0
    reported = summarise([partly], target_fpr=0.1)
    assert reported["pixel_auroc"]["pooled"] == 1.0
    assert reported["pixel_images"]["s"] == {
        "defective": 2, "masked": 1, "faults": {"without a mask": 1},
    }  # fmt: skip


def _scores(mask: np.ndarray, count: int) -> Scores:
    maps = np.zeros((count, *mask.shape), np.float32)
    maps[1:] = mask
    return Scores(np.arange(count, dtype=float), maps, np.arange(count), ())
