"""What every layout of a data set promises: one list, read from the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.data.folders import read_data
from fedvad.data.labels import LabelNames
from fedvad.data.layouts import LAYOUTS, Layout, layout_of
from fedvad.data.listing import scan
from fedvad.data.reading import data_table


class Tree(NamedTuple):
    """A small set in a layout, and what is read of it.

    files: relative to the set; those of `marked` are masks with something in them. more: writes
    what are no images. masks: paired ones. strays: files that nothing is done with.
    """

    files: tuple[str, ...]
    train: int
    normal: int
    defective: int
    masks: int
    marked: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    more: Callable[[Path], None] = lambda folder: None


def _listed(folder: Path) -> None:
    def entry(image: str, kind: str, mask: str | None = None) -> dict[str, str | None]:
        return {"anomaly_class": kind, "image_path": image, "mask_path": mask}

    values = {
        "meta": {"normal_class": "OK"},
        "train": [entry("OK/S1/0.png", "OK"), entry("OK/S1/3.png", "OK")],
        "test": [entry("OK/S2/1.png", "OK"), entry("NG/AK/S1/2.png", "AK", "NG/AK/S1/2_m.png")],
    }
    (folder / f"{folder.name}.json").write_text(json.dumps(values))


# by the name of the function that reads the layout: who adds one adds its tree
TREES = {
    "read_split": Tree(
        ("train/good/0.png", "train/good/1.png", "test/good/2.png", "test/hole/3.png",
         "test/hole/4.png"), 2, 1, 2, 1,
        marked=("ground_truth/hole/3_mask.png",), strays=("ground_truth/hole/9_mask.png",),
    ),
    "read_visa": Tree(
        (*(f"Data/Images/Normal/{i}.png" for i in range(5)), "Data/Images/Anomaly/0.png"),
        4, 1, 1, 1, marked=("Data/Masks/Anomaly/0.png",), strays=("Data/Masks/Anomaly/7.png",),
    ),
    "read_real_iad": Tree(
        ("OK/S1/0.png", "OK/S1/3.png", "OK/S2/1.png", "NG/AK/S1/2.png"), 2, 1, 1, 1,
        marked=("NG/AK/S1/2_m.png",), strays=("OK/S9/unlisted.png",), more=_listed,
    ),
    "read_sdd": Tree(
        (*(f"kos0{i}/Part0.jpg" for i in range(5)), "kos09/Part1.jpg",
         *(f"kos0{i}/Part0_label.png" for i in range(5))), 4, 1, 1, 1,
        marked=("kos09/Part1_label.png",),
    ),
    "read_sdd2": Tree(
        ("train/1.png", "train/1_GT.png", "train/2.png", "train/2_GT.png", "test/3.png",
         "test/3_GT.png", "test/4.png"), 2, 1, 1, 1,
        marked=("test/4_GT.png",),
    ),
    "read_br35h": Tree(
        (*(f"no/{i}.png" for i in range(5)), "yes/9.png"), 4, 1, 1, 0, strays=("pred/5.png",)
    ),
    "read_plain": Tree(
        (*(f"good/{i}.png" for i in range(5)), "bad/x.png"), 4, 1, 1, 1,
        marked=("masks/bad/x_mask.png",), strays=("masks/bad/z_mask.png",),
    ),
}  # fmt: skip


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.read.__name__)
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def tree(layout: Layout) -> Tree:
    return TREES[layout.read.__name__]


@pytest.fixture
def folder(tree: Tree, tmp_path: Path) -> Path:
    root = tmp_path / "cable"
    for name in (*tree.files, *tree.marked, *tree.strays):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((40, 48), np.uint8)
        if name in tree.marked:
            pixels[4:20, 4:20] = 255
        elif not path.stem.casefold().endswith(("_gt", "_label")):
            pixels[:] = np.random.default_rng(list(name.encode())).integers(0, 255, pixels.shape)
        Image.fromarray(pixels).save(path)
    tree.more(root)
    return root


def test_every_layout_has_a_tree() -> None:
    assert {layout.read.__name__ for layout in LAYOUTS} == set(TREES)


def test_it_is_found_before_any_other(layout: Layout, folder: Path) -> None:
    assert layout_of(scan(folder), LabelNames()) is layout


def test_images_and_masks_are_read(tree: Tree, folder: Path) -> None:
    (part,) = read_data(folder).parts
    assert part.site.name == "cable"
    assert part.layout
    labels = part.site.test.labels
    assert len(part.site.train) == tree.train
    assert (int((labels == 0).sum()), int(labels.sum())) == (tree.normal, tree.defective)
    assert not any(item.label or item.masks for item in part.site.train)
    masks = [mask for item in part.site.test if item.label for mask in item.masks]
    assert sorted(masks) == sorted(folder / name for name in tree.marked)
    assert len(masks) == tree.masks
    assert {label.part for label in part.labels} == {"train", "test"}
    assert sum(label.images for label in part.labels) == len(part.site.train) + len(labels)


def test_it_is_read_alike_as_one_of_several_sites(layout: Layout, tree: Tree, folder: Path) -> None:
    alone = read_data(folder).sites[0]
    found = {site.name: site for site in read_data(folder.parent).sites}
    assert found["cable"].train.paths == alone.train.paths
    assert [i.masks for i in found["cable"].test] == [i.masks for i in alone.test]


def test_nothing_is_passed_over_in_silence(tree: Tree, folder: Path) -> None:
    reading = read_data(folder)
    (part,) = reading.parts
    read = {item.path for item in (*part.site.train, *part.site.test)}
    read |= {mask for item in part.site.test for mask in item.masks}
    read |= {folder / name for name in tree.files if name.endswith(("_GT.png", "_label.png"))}
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert sum(s.files for s in part.skipped) == len(files - read)
    notable = sum(s.files for s in part.skipped if s.notable)
    assert notable == len(tree.strays)
    assert read <= files


def test_a_normal_image_can_be_left_out(tree: Tree, folder: Path) -> None:
    first = read_data(folder).sites[0].train.paths[0]
    names = LabelNames(left_out=(first.relative_to(folder).as_posix(),))
    (part,) = read_data(folder, names).parts
    assert len(part.site.train) == tree.train - 1
    assert first not in part.site.train.paths


def test_inspect_says_how_many_masks_were_paired(tree: Tree, folder: Path) -> None:
    data = fedvad.inspect(folder)["data"]
    (site,) = data["sites"].values()
    assert (site["train"], site["test"]) == (tree.train, tree.normal + tree.defective)
    assert site["masks"] == {
        "files": tree.masks, "images": tree.masks, "of": tree.defective,
    }  # fmt: skip
    said = f"with {tree.masks} of {tree.defective} defective images"
    assert ["masks of cable", str(tree.masks), "paired", said] in data_table(data)
