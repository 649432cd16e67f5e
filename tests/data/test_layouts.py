"""Layouts of public data sets, drawn as empty files; the figures are counts of what is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.folders import read_data, read_sites
from fedvad.data.labels import LabelNames
from fedvad.data.reading import SiteReading
from fedvad.errors import DataError
from tests.data.test_folders import touch


def one(root: Path, **names: tuple[str, ...]) -> SiteReading:
    (part,) = read_data(root, LabelNames(**names)).parts
    return part


def counts(part: SiteReading) -> tuple[int, int, int]:
    """Training images, normal and defective test images."""
    labels = part.site.test.labels
    return len(part.site.train), int((labels == 0).sum()), int(labels.sum())


def masks(part: SiteReading) -> dict[str, list[str]]:
    return {i.path.name: [m.name for m in i.masks] for i in part.site.test if i.label}


def test_mvtec_loco_unites_masks_and_joins_validation(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/good/000.png",
        "validation/good/000.png",
        "validation/good/001.png",
        "test/good/000.png",
        "test/logical_anomalies/000.png",
        "test/logical_anomalies/001.png",
        "test/structural_anomalies/000.png",
        "ground_truth/logical_anomalies/000/000.png",
        "ground_truth/logical_anomalies/000/001.png",
        "ground_truth/logical_anomalies/001/000.png",
        "ground_truth/structural_anomalies/000/000.png",
        "defects_config.json",
    )
    part = one(tmp_path)
    assert part.layout == "MVTec LOCO AD"
    assert counts(part) == (3, 1, 3)
    found = [[m.parent.name + "/" + m.name for m in i.masks] for i in part.site.test if i.label]
    assert found == [["000/000.png", "000/001.png"], ["001/000.png"], ["000/000.png"]]
    joined = [label.rule for label in part.labels if label.folder == "validation/good"]
    assert joined == ["named good: joined to the training images"]
    assert not [s for s in part.skipped if s.notable]


def test_mvtec_ad_2_scores_the_public_test_set(tmp_path: Path) -> None:
    touch(
        tmp_path / "can",
        "train/good/000_regular.png",
        "validation/good/000_regular.png",
        "test_public/good/000_regular.png",
        "test_public/bad/000_regular.png",
        "test_public/bad/000_shift_1.png",
        "test_public/ground_truth/bad/000_regular_mask.png",
        "test_public/ground_truth/bad/000_shift_1_mask.png",
        "test_private/000_regular.png",
        "test_private_mixed/000_mixed.png",
    )
    reading = read_data(tmp_path)
    (part,) = reading.parts
    assert (part.layout, counts(part)) == ("MVTec AD 2", (2, 1, 2))
    assert masks(part) == {
        "000_regular.png": ["000_regular_mask.png"],
        "000_shift_1.png": ["000_shift_1_mask.png"],
    }
    private = {s.folder: s.reason for s in part.skipped}
    assert private == dict.fromkeys(
        ("can/test_private", "can/test_private_mixed"),
        "its images have no labels: nothing to measure with",
    )


def test_btad_needs_no_naming_but_a_lone_ok_does(tmp_path: Path) -> None:
    names = ["train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.png"]
    part = one(touch(tmp_path / "01", *names))
    assert (part.layout, counts(part), masks(part)) == ("BTAD", (1, 1, 1), {"2.bmp": ["2.png"]})
    touch(tmp_path / "own", "train/ok/0.png", "test/ok/1.png", "test/dent/2.png")
    with pytest.raises(DataError, match=r"--good ok \(configuration key good\)"):
        read_data(tmp_path / "own")
    assert counts(one(tmp_path / "own", good=("OK",))) == (1, 1, 1)


def test_mvtec_3d_reads_rgb_with_its_own_masks(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/good/rgb/000.png",
        "train/good/xyz/000.tiff",
        "test/good/rgb/000.png",
        "test/good/gt/000.png",
        "test/hole/rgb/000.png",
        "test/hole/xyz/000.tiff",
        "test/hole/gt/000.png",
    )
    part = one(tmp_path)
    assert counts(part) == (1, 1, 1)
    assert part.site.test[1].mask == tmp_path / "test/hole/gt/000.png"
    assert {(s.folder, s.reason) for s in part.skipped} == {
        ("train/good/xyz", "another sensor than rgb/"),
        ("test/hole/xyz", "another sensor than rgb/"),
    }


def test_visa_without_its_table_is_divided_by_fifths(tmp_path: Path) -> None:
    touch(
        tmp_path / "candle",
        *(f"Data/Images/Normal/{i:04}.JPG" for i in range(10)),
        "Data/Images/Anomaly/000.JPG",
        "Data/Masks/Anomaly/000.png",
        "image_anno.csv",
    )
    part = one(tmp_path)
    assert counts(part) == (8, 2, 1)
    assert masks(part) == {"000.JPG": ["000.png"]}
    assert not [s for s in part.skipped if s.notable]


def test_visa_table_may_not_leave_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "candle/Data/Images/Normal/0.JPG", "split_csv/1cls.csv")
    text = "object,split,label,image,mask\ncandle,train,normal,../../etc/passwd,\n"
    (tmp_path / "split_csv/1cls.csv").write_text(text)
    with pytest.raises(DataError, match="no path below"):
        read_data(tmp_path)


def test_real_iad_is_read_by_its_lists(tmp_path: Path) -> None:
    root = tmp_path / "realiad_256"
    ng = "NG/AK/S0001/a_0001_NG_AK_C1.jpg"
    names = ["OK/S0001/a_0001_OK_C1.jpg", "OK/S0002/a_0002_OK_C1.jpg", ng]
    touch(root / "audiojack", *names, ng.replace(".jpg", ".png"), "OK/S0009/unlisted.jpg")

    def entry(image: str, kind: str, mask: str | None = None) -> dict[str, str | None]:
        return {"category": "audiojack", "anomaly_class": kind, "image_path": image,
                "mask_path": mask}  # fmt: skip

    listed = {
        "meta": {"normal_class": "OK", "prefix": "audiojack/"},
        "train": [entry(names[0], "OK")],
        "test": [
            entry(names[1], "OK"),
            entry(ng, "AK", ng.replace(".jpg", ".png")),
            entry("OK/S0003/gone.jpg", "OK"),
        ],
    }
    lists = tmp_path / "realiad_jsons/realiad_jsons"
    lists.mkdir(parents=True)
    (lists / "audiojack.json").write_text(json.dumps(listed))
    for where in (tmp_path, root, root / "audiojack"):
        part = one(where)
        assert (part.layout, counts(part)) == ("Real-IAD", (1, 1, 1))
        assert part.site.name == "audiojack"
        assert part.site.test[1].mask == root / "audiojack" / ng.replace(".jpg", ".png")
        assert part.notes == ("1 images that audiojack.json lists are not there",)
        assert [s.example for s in part.skipped if s.notable] == ["unlisted.jpg"]
    (lists / "audiojack.json").write_text("{}")
    with pytest.raises(DataError, match="not a list of Real-IAD"):
        read_data(root)


def gray(path: Path, *, marked: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1, 2] = 255 * marked
    Image.fromarray(pixels).save(path)


def test_kolektor_labels_by_masks(tmp_path: Path) -> None:
    for part in range(1, 4):
        for number in range(3):
            place = tmp_path / "ksdd" / f"kos{part:02}"
            touch(place, f"Part{number}.jpg")
            gray(place / f"Part{number}_label.bmp", marked=number == 1)
    first = one(tmp_path / "ksdd")
    assert (first.layout, counts(first)) == ("KolektorSDD", (4, 2, 3))
    assert all(len(item.masks) == 1 for item in first.site.test)
    assert first.skipped == ()
    for folder, number, bad in [("train", 1, 0), ("train", 2, 1), ("test", 3, 0), ("test", 4, 1)]:
        touch(tmp_path / "ksdd2" / folder, f"{number}.png")
        gray(tmp_path / "ksdd2" / folder / f"{number}_GT.png", marked=bool(bad))
    second = one(tmp_path / "ksdd2")
    assert (second.layout, counts(second)) == ("KolektorSDD2", (1, 1, 1))
    assert [s.reason for s in second.skipped] == ["not good: only normal images are learned from"]


@pytest.mark.parametrize("pair", [("OK", "NG"), ("normal", "abnormal"), ("0", "1")])
def test_two_folders_need_a_name_for_the_normal_one(tmp_path: Path, pair) -> None:
    good, bad = pair
    for site in ("a", "b"):
        touch(tmp_path / site, *(f"{good}/{i}.png" for i in range(5)), f"{bad}/x.png")
    with pytest.raises(DataError, match=f"--good {good} "):
        read_sites(tmp_path)
    reading = read_data(tmp_path, LabelNames(good=(good,)))
    assert [counts(part) for part in reading.parts] == [(4, 1, 1), (4, 1, 1)]
    assert reading.sites[0].test[1].defect == bad
    assert reading.notable  # a split was made up: people should see it
    single = read_data(tmp_path / "a", LabelNames(good=(good,)))
    assert [counts(part) for part in single.parts] == [(4, 1, 1)]


def test_good_and_bad_need_no_options(tmp_path: Path) -> None:
    touch(tmp_path, *(f"Good/{i}.png" for i in range(5)), "bad/x.png", "masks/bad/x_mask.png")
    part = one(tmp_path)
    assert (counts(part), masks(part)) == ((4, 1, 1), {"x.png": ["x_mask.png"]})


def test_images_directly_in_train_or_a_set_that_lies_deeper_say_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path / "flat", "train/0.png", "train/1.png", "test/good/2.png")
    with pytest.raises(DataError, match="2 images lie in train/ itself: move them to train/good"):
        read_data(tmp_path / "flat")
    touch(tmp_path / "deep", "plant/line/train/good/0.png")
    with pytest.raises(DataError, match=r"one lies deeper, in .*line: give .*plant"):
        read_data(tmp_path / "deep")
    touch(tmp_path / "bare", "0.png")
    with pytest.raises(DataError, match="1 images lie in it without a label"):
        read_data(tmp_path / "bare")
