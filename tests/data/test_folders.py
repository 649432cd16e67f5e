from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.folders import (
    ImageItem,
    ImageSet,
    Site,
    read_data,
    read_set,
    read_sites,
)
from fedvad.data.images import read_mask, read_rgb
from fedvad.data.inputs import read_images
from fedvad.data.labels import LabelNames
from fedvad.data.masks import read_masks
from fedvad.errors import DataError

SHARED = Path(os.environ.get("FEDVAD_SHARED", Path(__file__).parents[2].parent / "shared"))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(images: ImageSet) -> list[str]:
    return [path.name for path in images.paths]


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    return touch(
        tmp_path / "tile",
        "train/good/b.png",
        "train/good/a.png",
        "test/good/g.png",
        "test/crack/1.png",
        "test/blob/2.png",
        "ground_truth/crack/1_mask.png",
        "ground_truth/blob/2.png",
    )


def test_read_set_in_mvtec_layout(tile: Path) -> None:
    site = read_set(tile)
    assert site.name == "tile"
    assert names(site.train) == ["a.png", "b.png"]
    assert names(site.test) == ["g.png", "2.png", "1.png"]
    assert site.test.defects == ("good", "blob", "crack")
    assert site.test.labels.tolist() == [0, 1, 1]
    assert site.train.labels.dtype == np.int64
    assert [item.mask for item in site.test] == [
        None,
        tile / "ground_truth/blob/2.png",
        tile / "ground_truth/crack/1_mask.png",
    ]
    assert site.test.has_masks
    assert not site.train.has_masks
    assert read_set(tile, "renamed").name == "renamed"


def test_any_file_name(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "train/good/Ünïcode 图 1.PNG",
        "train/good/spaces and.dots.JpEg",
        "train/good/.hidden.png",
        "train/good/._mac.png",
        "train/good/Thumbs.db",
        "train/good/notes.txt",
        "train/good/noSuffix",
        "train/good/sub/deeper.png",
        "train/.hidden/x.png",
        "train/other/x.png",
        "test/.DS_Store",
        "test/stray.png",
        "test/crack (é)/x é.TIFF",
        "ground_truth/crack (é)/x e\u0301_mask.BMP",
    )
    site = read_set(root)
    assert names(site.train) == ["spaces and.dots.JpEg", "Ünïcode 图 1.PNG", "deeper.png"]
    assert names(site.test) == ["x é.TIFF"]
    assert site.test.has_masks


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ("7_mask.png", True),
        ("7.png", True),
        ("7_mask.JPG", True),
        ("7.tif", True),
        ("7_mask.txt", False),
        ("70_mask.png", False),
        (".7.png", False),
        ("7_defect.png", True),
        ("7_mask_final.png", True),
        ("7_anomaly_mask.bmp", True),
        ("7.jpg_mask.png", True),
        ("mask7.png", True),
        ("hole_7_gt.png", True),
        ("7_crack.png", False),
        ("17_defect.png", False),
        ("77_mask.png", False),
    ],
)
def test_names_of_masks(tmp_path: Path, mask, found) -> None:
    touch(tmp_path, "train/good/a.png", "test/hole/7.jpg", f"ground_truth/hole/{mask}")
    test = read_set(tmp_path).test
    assert test[0].mask == (tmp_path / "ground_truth/hole" / mask if found else None)
    assert test.has_masks is found


def test_a_name_that_says_more_never_takes_the_place_of_a_plainer_one(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/a.png", "test/hole/7.jpg", "test/hole/7_defect.jpg")
    touch(tmp_path, *(f"ground_truth/hole/{name}.png" for name in ("7_defect_mask", "7_final")))
    masks = {item.path.stem: item.mask for item in read_set(tmp_path).test}
    assert {stem: mask.stem for stem, mask in masks.items() if mask} == {
        "7_defect": "7_defect_mask", "7": "7_final",
    }  # fmt: skip
    touch(tmp_path, "ground_truth/hole/7_mask.png")
    first = next(item for item in read_set(tmp_path).test if item.path.stem == "7")
    assert first.mask == tmp_path / "ground_truth/hole/7_mask.png"
    assert not first.other_masks


@pytest.mark.parametrize(
    "place",
    ["test/hole_mask", "test/mask_hole", "test/Hole-GT", "anomaly_mask/hole", "test_masks/hole",
     "ground_truth/test/hole", "mask images/hole", "label/hole", "ground_truth_masks/hole",
     "annotation_png/hole"],
)  # fmt: skip
def test_folders_of_masks(tmp_path: Path, place) -> None:
    touch(tmp_path, "train/good/a.png", "test/hole/7.jpg", f"{place}/7.png")
    test = read_set(tmp_path).test
    assert [item.defect for item in test] == ["hole"]
    assert test[0].mask == tmp_path / place / "7.png"


def test_masks_beside_folders_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"good/{i}.png" for i in range(5)), "bad/7.png", "bad_mask/7.png")
    (bad,) = (item for item in read_set(tmp_path).test if item.label)
    assert bad.mask == tmp_path / "bad_mask/7.png"


@pytest.mark.parametrize("mask", ["ground_truth/hole/7_mask.tif", "test/hole/7_mask.tif"])
def test_pages_of_a_mask_are_united_for_an_image_of_one_page(tmp_path: Path, mask) -> None:
    touch(tmp_path, "train/good/0.png", "test/hole/7.png", mask)
    pages = [Image.new("L", (8, 8), value) for value in (0, 255)]
    pages[0].save(tmp_path / mask, "TIFF", save_all=True, append_images=pages[1:])
    (site,) = read_sites(tmp_path)
    (item,) = site.test
    assert [page.name for page in item.masks] == ["7_mask.tif#1", "7_mask.tif#2"]
    assert read_masks(item.masks).all()


def test_mask_of_several_candidates(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/a.png", "test/hole/7.jpg")
    for worse, better in [("7.bmp", "7.png"), ("7_mask.bmp", "7_mask.png")]:
        touch(tmp_path, f"ground_truth/hole/{worse}", f"ground_truth/hole/{better}")
        mask = read_set(tmp_path).test[0].mask
        assert mask is not None
        assert mask.name == better


@pytest.mark.parametrize("alias", ["good", "ok", "normal", "Good", "OK"])
def test_aliases_of_good(tmp_path: Path, alias) -> None:
    touch(tmp_path, f"train/{alias}/a.png", f"test/{alias}/b.png", "test/bad/c.png")
    if alias.casefold() != "good":
        with pytest.raises(DataError, match=rf"train/{alias}, test/{alias} .*\n.*--good {alias} "):
            read_set(tmp_path)
    site = read_set(tmp_path, names=LabelNames(good=(alias.upper(),)))
    assert site.train.defects == ("good",)
    assert site.test.defects == ("good", "bad")


def test_no_test_folder(tmp_path: Path) -> None:
    site = read_set(touch(tmp_path, "train/good/a.png"))
    assert len(site.test) == 0
    assert site.test.labels.shape == (0,)
    assert not site.test.has_masks


def test_image_set_is_a_sequence(tile: Path) -> None:
    test = read_set(tile).test
    assert isinstance(test[0], ImageItem)
    assert test[1:] == ImageSet(test.items[1:])
    assert next(reversed(test)) == test[-1]
    assert test.subset(np.array([2, 0])).items == (test[2], test[0])
    assert test.subset([]) == ImageSet(())
    assert (test[:1] + test[1:]) == test
    assert hash(test) == hash(test[:])
    with pytest.raises(TypeError):
        test + [1]  # noqa: RUF005
    partial = ImageSet((test[1], ImageItem(Path("x"), 1, "blob", None)))
    assert partial.has_masks  # pixel figures rest on the images that have some
    assert not partial[1:].has_masks


def test_sites_in_natural_order(tmp_path: Path) -> None:
    for name in ("line10", "line2", "Line1", "line2b", ".git", "zeta"):
        touch(tmp_path, f"{name}/train/good/a.png")
    touch(tmp_path, "docs/readme.txt", "file.png")
    assert [site.name for site in read_sites(tmp_path)] == [
        "Line1",
        "line2",
        "line2b",
        "line10",
        "zeta",
    ]


def test_root_that_is_a_set_is_one_site(tile: Path, monkeypatch) -> None:
    assert read_sites(tile) == [read_set(tile)]
    monkeypatch.chdir(tile)
    assert read_sites(Path())[0].name == "tile"


def test_missing_folder_and_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_sites(tmp_path / "nowhere")
    touch(tmp_path, "a.png", "images/1.png", *(f"z{i}.txt" for i in range(9)))
    with pytest.raises(DataError, match=r"a\.png: is not a folder"):
        read_sites(tmp_path / "a.png")
    with pytest.raises(DataError, match="no image set found") as caught:
        read_sites(tmp_path)
    for reported in ("train/good", "ground_truth/<defect>", "images/", "a.png", "11 in all"):
        assert reported in str(caught.value)
    with pytest.raises(DataError, match="found: nothing"):
        read_sites(touch(tmp_path / "empty", ".x"))


def test_site_without_normal_training_image(tmp_path: Path) -> None:
    touch(tmp_path, "a/train/good/1.png", "b/train/scratch/1.png", "b/test/good/2.png")
    touch(tmp_path, "c/test/good/3.png")
    with pytest.raises(DataError, match=r"(?s)site 'b' .* in train/: scratch/") as caught:
        read_sites(tmp_path)
    assert "no normal training image" in str(caught.value)
    sites = read_sites(tmp_path, allow_empty_train=True)
    assert [(s.name, len(s.train), len(s.test)) for s in sites] == [
        ("a", 1, 0),
        ("b", 0, 1),
        ("c", 0, 1),
    ]
    assert read_sites(tmp_path / "c", allow_empty_train=True) == [sites[2]]
    with pytest.raises(DataError, match="site 'c'"):
        read_sites(tmp_path / "c")


def test_links_in_loops(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "train/good/a.png", "test/bad/b.png")
    (root / "train/good/self.png").symlink_to(root / "train/good/self.png")
    (root / "train/good/up").symlink_to(root, target_is_directory=True)
    (root / "test/loop").symlink_to(root / "test/loop")
    (root / "test/again").symlink_to(root / "test", target_is_directory=True)
    (root / "up").symlink_to(tmp_path, target_is_directory=True)
    site = read_sites(root)[0]
    assert names(site.train) == ["a.png", "self.png"]  # reading the second will say what it is
    assert names(site.test) == ["b.png"]
    assert [path.name for path in read_images([root])].count("b.png") == 1


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    real = touch(tmp_path / "elsewhere", "a.png")
    (tmp_path / "set/train").mkdir(parents=True)
    (tmp_path / "set/train/good").symlink_to(real, target_is_directory=True)
    assert names(read_set(tmp_path / "set").train) == ["a.png"]


def test_read_images(tmp_path: Path) -> None:
    touch(tmp_path, "d/b.png", "d/a.JPG", "d/s/c.bmp", "d/.h/x.png", "d/x.txt", "lone.dat")
    d, lone = tmp_path / "d", tmp_path / "lone.dat"
    inside = [d / "a.JPG", d / "b.png", d / "s/c.bmp"]
    assert read_images([lone, d]) == [lone, *inside]
    assert read_images(iter([d / "s/c.bmp", d, lone, lone])) == [
        d / "s/c.bmp",
        d / "a.JPG",
        d / "b.png",
        lone,
    ]


def test_read_images_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_images([tmp_path, tmp_path / "gone.png"])
    touch(tmp_path, "x.txt")
    with pytest.raises(DataError, match=r"no image found .*\.png"):
        read_images([tmp_path])
    with pytest.raises(DataError, match="no path was given"):
        read_images([])


def real_sites(name: str) -> list[Site]:
    root = SHARED / "data" / name
    if not root.is_dir():
        pytest.skip(f"real images are absent: {root}")
    return read_sites(root)


@pytest.mark.real
def test_real_mtd() -> None:
    sites = real_sites("mtd")
    assert [site.name for site in sites] == [f"exposure{i}" for i in range(1, 7)]
    for site in sites:
        assert 125 <= len(site.train) <= 128
        assert int((site.test.labels == 0).sum()) == 32
        assert 63 <= int(site.test.labels.sum()) <= 67
        assert site.test.has_masks
    assert read_rgb(sites[0].train[0].path).shape == (256, 256, 3)
    mask = sites[0].test[-1].mask
    assert mask is not None
    assert read_mask(mask).any()


@pytest.mark.real
def test_real_screw() -> None:
    (site,) = real_sites("screw")
    assert (site.name, len(site.train)) == ("screw", 320)
    assert np.bincount(site.test.labels).tolist() == [41, 119]
    assert len(set(site.test.defects)) == 6
    assert site.test.has_masks


@pytest.mark.real
def test_real_brain_mri() -> None:
    one, two = real_sites("brain_mri")
    assert (len(one.train), len(two.train)) == (49, 163)
    assert np.bincount(one.test.labels).tolist() == [27, 80]
    assert np.bincount(two.test.labels).tolist() == [88, 150]
    assert not one.test.has_masks


def _visa(root: Path, rows: list[str]) -> Path:
    for name in ("candle", "pcb1"):
        (root / name / "Data/Images/Normal").mkdir(parents=True)
    (root / "split_csv").mkdir()
    header = "object,split,label,image,mask"
    (root / "split_csv/1cls.csv").write_text("\n".join([header, *rows]))
    return root


def test_visa_is_read_by_its_own_split(tmp_path: Path) -> None:
    def row(name: str, split: str, label: str, file: str, mask: str = "") -> str:
        return f"{name},{split},{label},{name}/Data/Images/{file},{mask}"

    root = _visa(
        tmp_path,
        [
            row(
                "candle", "test", "anomaly", "Anomaly/000.JPG", "candle/Data/Masks/Anomaly/000.png"
            ),
            row("candle", "train", "normal", "Normal/0000.JPG"),
            row("candle", "test", "normal", "Normal/0001.JPG"),
            row("pcb1", "train", "normal", "Normal/0000.JPG"),
        ],
    )
    candle, pcb = read_sites(root)
    assert (candle.name, pcb.name) == ("candle", "pcb1")
    assert candle.train.paths == (root / "candle/Data/Images/Normal/0000.JPG",)
    assert candle.test.labels.tolist() == [0, 1]
    assert candle.test[1].mask == root / "candle/Data/Masks/Anomaly/000.png"
    assert len(pcb.test) == 0
    assert read_set(root / "candle", "a").train == candle.train
    assert read_sites(root / "candle")[0].test == candle.test


def test_visa_without_its_table_says_what_is_missing(tmp_path: Path) -> None:
    root = _visa(tmp_path, [])
    with pytest.raises(DataError, match="names no normal training image of 'candle'"):
        read_set(root / "candle")
    (root / "split_csv/1cls.csv").write_text("something,else\n1,2\n")
    with pytest.raises(DataError, match="not VisA's table"):
        read_set(root / "candle")
    (root / "split_csv/1cls.csv").unlink()
    with pytest.raises(DataError, match=r"Normal\) has too few images: 0"):
        read_sites(root)
    touch(root, *(f"{c}/Data/Images/Normal/{i}.JPG" for c in ("candle", "pcb1") for i in range(6)))
    reading = read_data(root)
    assert [len(site.train) for site in reading.sites] == [4, 4]
    assert "not VisA's own split" in reading.parts[0].notes[0]


def test_br35h_keeps_every_fifth_normal_image_for_testing(tmp_path: Path) -> None:
    for folder, count in (("no", 11), ("yes", 3), ("pred", 2)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{folder}{i:02}.jpg").touch()
    (site,) = read_sites(tmp_path)
    assert [p.name for p in site.test.paths][:4] == [
        "no00.jpg",
        "no05.jpg",
        "no10.jpg",
        "yes00.jpg",
    ]
    assert site.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(site.train) == 8
    assert not set(site.train.paths) & set(site.test.paths)
    for path in (tmp_path / "no").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="too few images in no/"):
        read_sites(tmp_path)
