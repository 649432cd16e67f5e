"""Guards before anything is written, the listing of images, and names that never collide."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import pytest
from PIL import Image

from fedvad.data.inputs import list_images
from fedvad.data.output_folder import OutputFolder
from fedvad.data.outputs import OWN_PNG, guard_file, guard_folder, holding_folders, is_own_png
from fedvad.errors import ConfigError, DataError, StorageError
from fedvad.report.overlay import marked_png

ENDINGS = (".png", ".npy")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize("way", ["itself", "relative", "soft", "hard", "case", "composed"])
def test_a_file_that_is_read_is_not_written(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = touch(tmp_path, "a/é.png") / "a/é.png"
    target = read
    if way == "relative":
        monkeypatch.chdir(tmp_path / "a")
        target = Path("../a/é.png")
    elif way in ("soft", "hard"):
        target = tmp_path / "link.png"
        (os.symlink if way == "soft" else os.link)(read, target)
    elif way == "case":
        target = tmp_path / "a/É.PNG"
    elif way == "composed":
        target = tmp_path / "a/e\N{COMBINING ACUTE ACCENT}.png"
    with pytest.raises(ConfigError, match="which is read: choose another"):
        guard_file(target, "--out", reads=[read])
    guard_file(tmp_path / "b.png", "--out", reads=[read])


def test_a_picture_does_not_lie_among_images_nor_replaces_a_users(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "train/good/a.png", "notes/x.txt")
    folders = holding_folders([root], [root / "train/good/a.png"])
    assert folders == {root, root / "train", root / "train/good"}
    for place in ("h.png", "train/h.png", "train/good/h.png"):
        with pytest.raises(ConfigError, match="among the images"):
            guard_file(root / place, "--heatmaps", folders=folders)
    guard_file(root / "notes/h.png", "--heatmaps", folders=folders)
    with pytest.raises(ConfigError, match="fedvad did not write it"):
        guard_file(root / "notes/x.txt", "--heatmaps", own=b"fedvad")
    with pytest.raises(ConfigError, match=r"x\.jpg would hold PNG: end it in \.png"):
        guard_file(root / "notes/x.jpg", "--heatmaps", own=OWN_PNG)
    guard_file(root / "notes/X.PNG", "--heatmaps", own=OWN_PNG)
    with pytest.raises(ConfigError, match="set-fedvad"):
        guard_folder(tmp_path / "x/../set", "--out", folders=folders)
    guard_folder(tmp_path, "--out", folders=folders)


def test_what_is_not_an_input_is_left_out_and_counted(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "in", "good/1.png", "hole/1.png", "hole/1_mask.png", "hole/lone_mask.png",
        "ground_truth/hole/1_mask.png", "ground_truth/hole/2_mask.png", "GT/3.png", ".hidden/1.png",
        ".h.png", "@eaDir/1.png", "notes.txt", "run/config.json", "run/detector.safetensors",
        "run/heatmaps.png",
    )  # fmt: skip
    (root / "ours.png").write_bytes(marked_png(Image.new("L", (2, 2)), "mask"))
    assert is_own_png(root / "ours.png")
    listing = list_images([root])
    assert [str(image.name) for image in listing.images] == ["good/1", "hole/1", "hole/lone_mask"]
    assert listing.left_out_words() == (
        "1 output of fedvad, 1 run folder (its own files), 4 ground-truth masks, "
        "1 thumbnail or folder of the system, 2 hidden files and folders, 1 file of another kind"
    )
    # what is named outright is taken
    named = [root / "ours.png", root / "GT/3.png", root / "hole/../GT/3.png"]
    assert list_images(named).paths == named[:2]
    assert list_images([root / "GT"]).paths == [root / "GT/3.png"]
    with pytest.raises(DataError, match=r"no image found .* 1 hidden"):
        list_images([root / "run", touch(tmp_path / "none", ".x.png")])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_images_does_not_hold_the_listing_up(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    assert [path.name for path in list_images([tmp_path]).paths] == ["a.png", "pipe.png"]
    assert not is_own_png(tmp_path / "pipe.png")


def test_names_below_several_folders_begin_with_theirs(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "c.png")
    listing = list_images([tmp_path / "a", tmp_path / "a/../b", tmp_path / "c.png"])
    assert [str(image.name) for image in listing.images] == ["a/1", "b/1", "c"]


def test_an_owner_keeps_its_name_and_nobody_else_gets_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = OutputFolder(out, "--out").claim("one", PurePath("a/x"), ENDINGS)
    assert first == out / "a/x"
    both = OutputFolder(out, "--out"), OutputFolder(out, "--out")  # two processes
    assert both[0].claim("two", PurePath("a/X"), ENDINGS) == out / "a/X-1"
    assert both[1].claim("three", PurePath("a/x"), ENDINGS) == out / "a/x-2"
    assert both[1].claim("two", PurePath("a/X"), ENDINGS) == out / "a/X-1"
    assert both[0].claim("one", PurePath("a/x"), ENDINGS) == first
    touch(out, "a/x-3.npy")  # the user's
    assert both[0].claim("four", PurePath("a/x"), ENDINGS) == out / "a/x-4"
    touch(out, "a/x.png")  # a picture of the user's in the place of ours
    assert OutputFolder(out, "--out").claim("one", PurePath("a/x"), ENDINGS) == out / "a/x-5"


def test_long_names_fit_and_stay_distinct(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", "--out")
    names = [PurePath("ü" * 125 + end) for end in ("a", "b")]
    stems = [folder.claim(str(name), name, (".map.png",)) for name in names]
    for stem in stems:
        touch(stem.parent, f"{stem.name}.map.png")
    assert len(set(stems)) == 2


def test_a_torn_index_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    OutputFolder(tmp_path, "--out").claim("one", PurePath("x"), ENDINGS)
    with (tmp_path / ".fedvad-outputs.jsonl").open("a") as file:
        file.write('{"name": "../../y", "endings": [".png"], "of": "two"}\n{"name": "z", "end')
    folder = OutputFolder(tmp_path, "--out")
    assert folder.claim("two", PurePath("y"), (".png",)) == tmp_path / "y"
    assert OutputFolder(tmp_path, "--out").claim("three", PurePath("y"), (".png",)).name == "y-1"
    assert OutputFolder(tmp_path, "--out").claim("one", PurePath("q"), ENDINGS).name == "x"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(ConfigError, match="is a file"):
        OutputFolder(tmp_path / "file", "--out")
    with pytest.raises(StorageError, match="choose another --out"):
        OutputFolder(tmp_path / "file/below", "--out")


def test_a_file_that_cannot_be_written_is_reported_before_the_work(tmp_path: Path) -> None:
    touch(tmp_path, "file", "folder/a.png")
    for target in (tmp_path / "file/new/sheet.png", tmp_path / "file/sheet.png"):
        with pytest.raises(StorageError, match="choose another --out"):
            guard_file(target, "--out")
    with pytest.raises(ConfigError, match="is a folder"):
        guard_file(tmp_path / "folder", "--out")
    guard_file(tmp_path / "new/deeper/sheet.png", "--out")
    assert not (tmp_path / "new").exists()  # trying leaves nothing
