"""plan(suspects=...) shows doubtful normal images; only a person leaves them out."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.data.folders import read_data, read_set
from fedvad.data.labels import LabelNames
from fedvad.detectors.memory.doubts import doubtful
from fedvad.drawing.demo import write_demo
from fedvad.errors import ConfigError
from tests.helpers import OPTIONS, SIZE, run_main

ODD = "alder/train/good/odd.png"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plants of 12 normal training images; alder has a defective one among them."""
    root = tmp_path_factory.mktemp("mixed") / "plants"
    write_demo(root, plants=2, train=12, test_normal=2, test_defect=2, size=SIZE)
    with Image.open(root / "alder/train/good/000.png") as image:
        spoilt = np.array(image)
    spoilt[20:40, 24:36] = 255 - spoilt[20:40, 24:36]
    Image.fromarray(spoilt).save(root / ODD)
    return root


@pytest.fixture(scope="module")
def found(
    mixed: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[fedvad.verbs.plan.Plan, Path]:
    folder = tmp_path_factory.mktemp("plan")
    plan = fedvad.plan(
        mixed,
        folder / "plan.toml",
        suspects=folder / "doubts.png",
        cache=folder / "cache",
        **OPTIONS,
    )
    return plan, folder


def test_a_defect_among_the_normals_is_the_first_in_doubt(found: Any) -> None:
    plan, folder = found
    assert plan.doubtful is not None
    assert next(iter(plan.doubtful)) == ODD
    assert plan.doubtful[ODD] > 1.2
    assert len(plan.doubtful) <= 4
    assert plan.to_json()["doubtful"] == plan.doubtful
    with Image.open(folder / "doubts.png") as picture:
        assert picture.width > 1000


def test_nothing_is_left_out_before_a_person_says_so(found: Any) -> None:
    _, folder = found
    text = (folder / "plan.toml").read_text()
    assert tomllib.loads(text)["leave_out"] == []
    edited = text.replace(f'#   "{ODD}"', f'"{ODD}"')
    assert tomllib.loads(edited)["leave_out"] == [ODD]


def test_train_learns_from_all_images_but_those_left_out(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--calibration", "none", "--rounds", 1, "--leave-out", ODD)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in OPTIONS.items()]
    assert run_main(monkeypatch, "train", mixed, "--out", tmp_path / "run", *options, *flags) == 0
    run = fedvad.load(tmp_path / "run")
    assert {name: site.n_images for name, site in run.sites.items()} == {"alder": 12, "birch": 12}


def test_an_image_left_out_is_accounted_for(mixed: Path) -> None:
    names = LabelNames(left_out=(ODD, "alder/train/good/none.png", "alder/test/good/000.png"))
    reading = read_data(mixed, names)
    assert [len(site.train) for site in reading.sites] == [12, 12]
    left = reading.parts[0].skipped
    assert [(s.reason, s.files) for s in left] == [("left out by --leave-out", 1)]
    assert [note.split(":")[0] for note in reading.notes] == [
        "--leave-out alder/train/good/none.png", "--leave-out alder/test/good/000.png",
    ]  # fmt: skip
    # as an evaluation reads what a training read
    assert LabelNames.of(None, None, before=names).left_out == names.left_out
    own = LabelNames(left_out=("train/good/odd.png",))
    assert len(read_set(mixed / "alder", names=own).train) == 12


def test_where_there_is_nothing_to_look_at(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one folder of sites"):
        fedvad.plan([mixed / "alder", mixed / "birch"], suspects=tmp_path / "d.png")
    with pytest.raises(ConfigError, match="real patches"):
        fedvad.plan(mixed, suspects=tmp_path / "d.png", method="feddymem-position", **OPTIONS)
    with pytest.raises(ConfigError, match="--suspects"):
        fedvad.plan(mixed, suspects=mixed / "alder/train/good/d.png", **OPTIONS)
    shutil.copytree(mixed / "birch/train/good", tmp_path / "s/train/good")
    for path in sorted((tmp_path / "s/train/good").iterdir())[2:]:
        path.unlink()
    plan = fedvad.plan(tmp_path / "s", suspects=tmp_path / "d.png", **OPTIONS)
    assert plan.doubtful == {}
    assert not (tmp_path / "d.png").exists()


def test_outlying_scores() -> None:
    usual = np.linspace(1, 1.2, 20)
    assert doubtful(usual).tolist() == []
    assert doubtful(np.array([3.0, *usual, 4.0])).tolist() == [21, 0]
    assert doubtful(np.array([1.0, 99.0])).tolist() == []
    assert doubtful(np.ones(9)).tolist() == []
