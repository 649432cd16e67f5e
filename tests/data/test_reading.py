"""Nothing in a data folder is lost in silence: odd trees, labels by name, and what is shown."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePath

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedvad.data.contents import check_contents, copies, distinct
from fedvad.data.folders import read_data
from fedvad.data.inputs import list_images, read_images
from fedvad.data.labels import LabelNames, looks_good
from fedvad.data.output_folder import OutputFolder
from fedvad.data.reading import DataReading, data_table
from fedvad.errors import ConfigError, DataError
from fedvad.report.overlay import marked_png
from tests.data.test_folders import touch

BASE = ("train/good/a.png", "test/good/b.png", "test/hole/c.png", "ground_truth/hole/c_mask.png")


def not_read(reading: DataReading, *, all_of_them: bool = False) -> dict[tuple[str, str], int]:
    everything = [*reading.skipped, *(s for part in reading.parts for s in part.skipped)]
    return {(s.folder, s.reason): s.files for s in everything if s.notable or all_of_them}


# Names of folders that mean something somewhere, in mixed case, and some that mean nothing.
FOLDERS = st.sampled_from(
    ["train", "Train", "test", "good", "hole", "masks", "GT", "ground_truth", "rgb", "xyz", "cam1",
     ".hidden", "@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", "Ünï", "b.png",
     "validation", ".ipynb_checkpoints"]
)  # fmt: skip
FILES = st.sampled_from(
    ["a.png", "A.PNG", "a_mask.png", "a_thumb.jpg", ".a.png", "._a.png", "Thumbs.db", "x.txt",
     "scan.dcm", "bare", "ü.JPG", "c.png", "c_GT.png"]
)  # fmt: skip
TREE = st.lists(st.tuples(st.lists(FOLDERS, max_size=4), FILES), max_size=25)


@settings(suppress_health_check=list(HealthCheck))
@given(tree=TREE, link=st.lists(FOLDERS, min_size=1, max_size=2))
def test_every_file_of_any_tree_is_read_or_named_once(tmp_path: Path, tree, link) -> None:
    root = tmp_path / "set"
    shutil.rmtree(root, ignore_errors=True)
    touch(root, *BASE)
    for parts, name in tree:
        place = root.joinpath(*parts)
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / name).touch()
        except OSError:  # a file of that name is there
            continue
    loop = root.joinpath(*link, "loop")
    if loop.parent.is_dir():
        loop.symlink_to(root, target_is_directory=True)
    there = sum(len(names) for _, _, names in os.walk(root))  # without following links
    reading = read_data(root)
    (part,) = reading.parts
    read = [item.path for item in (*part.site.train, *part.site.test)]
    used = {mask for item in part.site.test for mask in item.masks}
    assert len(set(read)) == len(read)
    assert not used & set(read)
    skipped = sum(s.files for s in (*part.skipped, *reading.skipped))
    assert len(read) + len(used) + skipped == there
    for path in read:  # nothing that is barred is ever an image
        assert not any(p.startswith((".", "@", "#", "$", "__")) for p in path.parts[-4:-1])
        assert not path.name.startswith(".")
        assert "mask" not in path.name.casefold() or not (path.parent / "a.png").exists()


def test_what_systems_leave_behind_is_never_an_input(tmp_path: Path) -> None:
    touch(
        tmp_path / "a",
        *BASE,
        "train/good/.DS_Store",
        "train/good/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
        "train/good/._a.png",
        "train/good/a_thumb.jpg",
        "test/.ipynb_checkpoints/c-checkpoint.png",
        "test/ground_truth/nobody_mask.png",
        "test/hole/c_mask.png",
    )
    touch(tmp_path, "#recycle/b/train/good/1.png", "__MACOSX/a/train/good/._a.png", "notes.txt")
    reading = read_data(tmp_path)
    assert [site.name for site in reading.sites] == ["a"]
    assert [len(reading.sites[0].train), len(reading.sites[0].test)] == [1, 2]
    assert not_read(reading) == {
        ("a/train/good", "hidden"): 2,
        ("a/train/good/@eaDir", "system folder"): 1,
        ("a/train/good", "thumbnail beside its image"): 1,
        ("a/test/.ipynb_checkpoints", "system folder"): 1,
        ("a/test/ground_truth", "mask that belongs to no image"): 1,
        ("a/test/hole", "mask that belongs to no image"): 1,
        ("#recycle", "system folder"): 1,
    }
    assert sum(not_read(reading, all_of_them=True).values()) == 10


def test_a_mask_whose_name_fits_two_images_is_said_to_fit_both(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/good/0.png",
        *("test/hole/0.jpg", "test/hole/0.png", "test/hole/1.png"),
        *("ground_truth/hole/0_mask.png", "ground_truth/hole/1_mask.png"),
        "ground_truth/hole/2_mask.png",
    )
    assert not_read(read_data(tmp_path)) == {
        ("ground_truth/hole", "mask whose name fits several images"): 1,
        ("ground_truth/hole", "mask that belongs to no image"): 1,
    }


def test_an_address_of_the_web_is_no_missing_file(tmp_path: Path) -> None:
    for url in ("https://example.org/a.png", "S3://bucket/set"):
        with pytest.raises(DataError, match=f"{url}: URLs are not read: download it"):
            read_data(Path(url))
        with pytest.raises(DataError, match=f"{url}: URLs are not read: download it"):
            read_images([Path(url)])
    with pytest.raises(DataError) as missing:
        read_images([tmp_path / "C:a.png"])
    assert "URL" not in str(missing.value)


def test_nested_images_are_read_and_said(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/good/0.png",
        "train/good/monday/1.png",
        "train/good/tuesday/2.png",
        "train/good/rejects/3.png",
        "test/hole/rgb/000.png",
        "test/hole/cam2/000.png",
        "ground_truth/hole/rgb/000_mask.png",
        "ground_truth/Hole/cam2/000_mask.png",
    )
    reading = read_data(tmp_path)
    (part,) = reading.parts
    assert [p.name for p in part.site.train.paths] == ["0.png", "1.png", "2.png"]
    assert len(part.site.test) == 2
    assert "also from sub-folders (monday, tuesday)" in part.labels[0].rule
    assert part.labels[0].notable
    assert ("train/good/rejects", "its name contradicts the folder that it lies in") in not_read(
        reading
    )
    first = next(item for item in part.site.test if item.path.parent.name == "rgb")
    assert first.mask == tmp_path / "ground_truth/hole/rgb/000_mask.png"


def test_loose_files_and_suffixes_are_named_with_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, *BASE, "test/bad_1.png", "test/bad_2.png", "train/x.png", "y.png")
    touch(
        tmp_path,
        "train/good/s.xyz",
        "train/good/t.xyz",
        "train/good/u.heic",
        "train/scratch/1.png",
        "readme.txt",
    )
    assert not_read(read_data(tmp_path)) == {
        ("test", "loose in test/: move it to test/<defect>"): 2,
        ("train", "loose in train/: move it to train/good"): 1,
        (".", "loose file"): 1,
        ("train/good", "unknown suffix .xyz"): 2,
        (
            "train/good",
            ".heic is HEIC, which is not read: save the images as PNG or TIFF",
        ): 1,
        ("train/scratch", "not good: only normal images are learned from"): 1,
    }


@pytest.mark.parametrize(
    "name",
    ["ok", "OK", "no_defect", "NoDefect", "nodefects", "pass", "normal", "0", "good_images",
     "negative", "non_defective", "non-defective", "normal-test", "defect_free", "healthy",
     "without_anomaly", "class_0", "i.O.", "good 2", "no_tumor", "00", "no_crack", "scratch_free",
     "golden", "良品", "OK品", "Gutteile", "none", "unscratched", "conforming", "good copy",
     "ok_front", "good_left", "OK_line2", "unauffällig", "unremarkable"],
)  # fmt: skip
def test_a_name_that_sounds_good_is_asked_about(tmp_path: Path, name) -> None:
    assert looks_good(name)
    touch(tmp_path, "train/good/a.png", f"test/{name}/b.png", "test/hole/c.png")
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert f"--good {name} " in str(caught.value)
    assert f"--defect {name}" in str(caught.value)
    assert str(caught.value).count("\n") <= 2
    good = read_data(tmp_path, LabelNames(good=(name.upper(),))).sites[0]
    assert good.test.labels.tolist() == [0, 1]
    bad = read_data(tmp_path, LabelNames(defect=(name,))).sites[0]
    assert sorted(bad.test.defects) == sorted([name, "hole"])


@pytest.mark.parametrize(
    "name", ["hole", "1", "NG", "nok", "not_good", "no_good", "abnormal", "bad", "broken_large",
             "good_mold", "missing_0", "color", "n.i.O.", "non_ok", "not_clean", "nonconforming",
             "golden_scratch", "10", "cut_00", "nozzle", "def_front", "top_side", "not_ok_left"],
)  # fmt: skip
def test_other_names_are_defects(name) -> None:
    assert LabelNames().rule(name) == (False, "not called good")


def test_a_folder_within_defects_is_left_out_only_where_it_says_good(tmp_path: Path) -> None:
    inside = ["0", "000", "no_light", "golden", "good"]
    touch(tmp_path, *BASE, *(f"test/hole/{name}/{name}.png" for name in inside))
    reading = read_data(tmp_path)
    defects = (item.path.parent.name for item in reading.sites[0].test if item.label)
    assert sorted(defects) == sorted(["hole", *inside[:-1]])
    assert ("test/hole/good", "its name contradicts the folder that it lies in") in not_read(
        reading
    )


def test_both_good_and_a_second_word_for_it_stop(tmp_path: Path) -> None:
    touch(tmp_path, *BASE, "test/no_defect/d.png")
    with pytest.raises(DataError, match="test/no_defect may hold normal images"):
        read_data(tmp_path)
    with pytest.raises(ConfigError, match="both name"):
        LabelNames(good=("a",), defect=("A",))


def test_a_name_that_no_folder_has_is_noted(tmp_path: Path) -> None:
    reading = read_data(touch(tmp_path, *BASE), LabelNames(good=("okay",)))
    assert reading.notes == ("--good okay: no folder has that name",)
    assert not read_data(tmp_path).notable


def test_links_are_followed_but_not_to_what_holds_them(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", *BASE)
    store = touch(tmp_path / "store", "1.png", "2.png")
    (root / "train/good/more").symlink_to(store, target_is_directory=True)
    (root / "train/good/up").symlink_to(root, target_is_directory=True)
    (root / "test/hole/loop").symlink_to(root / "test", target_is_directory=True)
    (store / "back").symlink_to(root / "test/hole", target_is_directory=True)
    (part,) = read_data(root).parts
    assert sorted(p.name for p in part.site.train.paths) == ["1.png", "2.png", "a.png"]
    assert [p.name for p in part.site.test.paths] == ["b.png", "c.png"]


def test_other_folders_beside_sites_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a", *BASE)
    touch(tmp_path, "new/1.png", "new/2.png", "docs/plan.txt", "3.png")
    touch(tmp_path / "plant/line1", *BASE)
    assert not_read(read_data(tmp_path)) == {
        ("new", "no set of a known layout"): 2,
        ("plant", "a folder of sets, to be given by itself"): len(BASE),
        (".", "loose file"): 1,
    }


def test_the_table_and_json_say_all_without_absolute_paths(tmp_path: Path) -> None:
    touch(tmp_path / "a", *BASE, "test/hole/scan.xyz")
    reported = read_data(tmp_path).to_json()
    assert str(tmp_path) not in str(reported)
    assert not reported["complete"]
    rows = data_table(reported)
    assert rows[0] == ["folder", "images", "read as", "why"]
    assert ["a/test/hole", "1", "test: defect hole", "not called good"] in rows
    assert ["a/test/hole", "1", "not read", "unknown suffix .xyz, for example scan.xyz"] in rows
    many = {"sites": {}, "not_read": reported["sites"]["a"]["not_read"] * 50, "notes": []}
    assert data_table(many)[-1][-1] == "10 more rows; --json has all"


def picture(path: Path, seed: int, size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_copies_leaks_and_contradictions_are_noted(tmp_path: Path) -> None:
    for name, seed in [
        ("train/good/0.png", 0), ("train/good/1.png", 0), ("train/good/2.png", 1),
        ("test/good/3.png", 1), ("test/good/4.png", 2), ("test/hole/5.png", 2),
    ]:  # fmt: skip
        picture(tmp_path / name, seed)
    notes = " / ".join(check_contents(read_data(tmp_path), 16).notes)
    assert "1 image repeats the content of others; training has 2 distinct images of 3" in notes
    assert "1 test image is among the training images" in notes
    assert "2 images are equal and labelled differently (4.png, 5.png)" in notes


def test_images_of_two_sites_are_compared(tmp_path: Path) -> None:
    for site in ("a", "b"):
        picture(tmp_path / site / "train/good/0.png", ord(site))
        picture(tmp_path / site / "train/good/1.png", 7)
    picture(tmp_path / "b/test/good/2.png", ord("a"))
    assert check_contents(read_data(tmp_path), 16).notes == (
        "a and b have 1 image in common for training",
        "b: 1 image for testing is among the training images of a: its figures are too good",
    )


def test_pictures_that_predict_wrote_are_no_data(tmp_path: Path) -> None:
    touch(tmp_path, *BASE)
    folder = OutputFolder(tmp_path / "test/overlays", "--out")
    for stem in ("hole/c", "new"):
        place = folder.claim(stem, PurePath(stem), (".png",))
        place.parent.mkdir(exist_ok=True)
        place.with_name(f"{place.name}.png").write_bytes(
            marked_png(Image.new("RGB", (4, 4)), "overlay")
        )
    touch(tmp_path / "test/overlays", "mine.png")
    reading = read_data(tmp_path)
    assert [item.path.name for item in reading.sites[0].test] == ["b.png", "c.png", "mine.png"]
    assert not_read(reading) == {
        ("test/overlays", "picture that fedvad wrote"): 1,
        ("test/overlays/hole", "picture that fedvad wrote"): 1,
    }


def test_large_copies_are_distinguished_from_files_of_equal_size(tmp_path: Path) -> None:
    for index, middle in enumerate((b"x", b"x", b"y")):
        data = bytes(9000) + middle + bytes(40_000)
        (tmp_path / str(index)).write_bytes(data)
    paths = sorted(tmp_path.iterdir())
    assert copies(paths) == [paths[:2]]
    assert distinct(paths) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hold_the_reading_up(tmp_path: Path) -> None:
    touch(tmp_path, *BASE)
    os.mkfifo(tmp_path / "train/good/pipe.png")
    assert len(check_contents(read_data(tmp_path), 16).sites[0].train) == 2


def test_a_region_of_other_proportions_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/0.png", 0, (60, 40))
    mask = str(tmp_path / "mask.png")
    for size, said in (((60, 40), 0), ((30, 20), 0), ((40, 60), 1), ((40, 40), 1)):
        picture(Path(mask), 0, size)
        notes = check_contents(read_data(tmp_path), "auto", mask).notes
        assert len(notes) == said
        assert not said or f"mask of the region is {size[1]} x {size[0]} pixels" in notes[0]
    assert not check_contents(read_data(tmp_path), "auto", "0,0,50,50").notes


def test_twelve_bits_in_files_of_sixteen_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/0.png", 0)
    values = np.random.default_rng(0).integers(0, 4096, (16, 16), dtype=np.uint16)
    for factor, dark in ((1, True), (16, False)):
        for name in ("0.png", "1.tif"):
            Image.fromarray(values * np.uint16(factor)).save(tmp_path / "train/good" / name)
        notes = " ".join(check_contents(read_data(tmp_path), 32).notes)
        assert ("use at most a sixteenth of their range" in notes) == dark
    picture(tmp_path / "train/good/0.png", 0)
    Image.fromarray(values).save(tmp_path / "train/good/1.tif", compression="tiff_deflate")
    assert "use at most a sixteenth" in check_contents(read_data(tmp_path), 32).notes[-1]


def test_odd_shapes_get_advice(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/0.png", 0, (10, 60))
    notes = check_contents(read_data(tmp_path), 64).notes
    assert len(notes) == 1
    assert "stretched up to 6.0 times to 64 x 64 pixels" in notes[0]
    assert "--image-size auto keeps their proportions" in notes[0]
    for suited in ("32x192", "fit:64x64", "auto"):
        assert not check_contents(read_data(tmp_path), suited).notes
    assert "a defect of 4 pixels shrinks to one" in check_contents(
        read_data(tmp_path), 16
    ).notes[-1]  # fmt: skip
    picture(tmp_path / "train/good/1.png", 1, (64, 64))
    picture(tmp_path / "train/good/2.png", 1, (300, 300))
    assert any("differ in size" in n for n in check_contents(read_data(tmp_path), 256).notes)


def test_predict_finds_no_masks_thumbnails_or_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, *BASE, "test/hole/c_mask.png", "test/hole/@eaDir/c.png/T.jpg", "test/.x/y.png")
    listing = list_images([tmp_path])
    assert sorted(p.name for p in listing.paths) == ["a.png", "b.png", "c.png"]
    assert +listing.left_out == {"masks": 2, "thumbnails": 1, "hidden": 1}
    given = tmp_path / "ground_truth/hole"
    assert list_images([given]).paths == [given / "c_mask.png"]  # asked for by name


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path, *BASE, "train/good/locked/x.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("fedvad.data.listing.os.scandir", refuse)
    assert not_read(read_data(tmp_path)) == {
        ("train/good/locked", "cannot be listed: Permission denied"): 0
    }


@pytest.mark.parametrize(
    "name", ["test/hole/c.json", "labels/hole/c.txt", "Annotations/c.xml", "test/_coco.json"]
)
def test_annotations_that_are_no_images_are_named(tmp_path: Path, name) -> None:
    touch(tmp_path, *BASE[:3], name)
    (note,) = read_data(tmp_path).parts[0].notes
    assert name in note
    assert "save them as ground_truth/<defect>/<name>_mask.png" in note
    touch(tmp_path, "ground_truth/hole/c_mask.png")
    assert not read_data(tmp_path).parts[0].notes


@pytest.mark.parametrize("name", ["train/good/c.json", "test/hole/notes.txt", "c.txt"])
def test_other_documents_are_no_annotations(tmp_path: Path, name) -> None:
    touch(tmp_path, *BASE[:3], name)
    assert not read_data(tmp_path).parts[0].notes


def test_a_folder_of_good_images_beside_sites_is_no_set(tmp_path: Path) -> None:
    touch(tmp_path, "good/1.png", *(f"line/{name}" for name in BASE))
    reading = read_data(tmp_path)
    assert [site.name for site in reading.sites] == ["line"]
    assert not_read(reading) == {("good", "no set of a known layout"): 1}


def test_grey_sites_beside_coloured_ones_are_noted(tmp_path: Path) -> None:
    for site in ("a", "b"):
        picture(tmp_path / site / "train/good/0.png", ord(site))
    assert not check_contents(read_data(tmp_path), 16).notes
    grey = tmp_path / "b/train/good/0.png"
    Image.open(grey).convert("L").save(grey)
    (note,) = check_contents(read_data(tmp_path), 16).notes
    assert note.startswith("images of some sites are grey (b)")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("~/plants", "~ is not expanded here, give the whole path"),
        ("C:\\data\\plants", "write the path with / here"),
        ("plants/*", "patterns are not expanded here, give the folder or single files"),
        ("plants", "plants: no such folder$"),
    ],
)
def test_a_folder_that_is_not_there_says_why_where_its_spelling_does(path, said) -> None:
    with pytest.raises(DataError, match=said):
        read_data(Path(path))
