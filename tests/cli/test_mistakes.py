"""What newcomers type wrongly is answered with what to type instead."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import FLAGS, run_main

Run = tuple[Path, dict[str, Any]]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("train DATA --out NEW --compare locl", "'locl' is unknown; choose local (each site"),
        ("train DATA --out NEW --compare local pooled", "separated by commas, such as --compare"),
        ("train --data DATA --out NEW", "DATA is given without an option: "),
        ("train DATA --out NEW --region 10,0,90", "has 3 numbers and needs four, LEFT,TOP,RIGHT"),
        ("train DATA --out NEW --region 10;0;90;75", "such as 10,0,90,75, or the file of a mask"),
        ("train DATA --out NEW --target-fpr 1%", "give a share, 0.01 for 1%"),
        ("predict RUN DATA --target-fpr 0,5%", "give a share, 0.01 for 0,5%"),
        ("predict RUN DATA --threshold 1,5", "'1,5' is no number: write 1.5"),
        ("predict RUN DATA --max-pixels 1e9", "'1e9' is no whole number: write 1000000000"),
        ("train DATA --out NEW --upload-bytes 1.5MB", "is no whole number: write 1500000"),
        ("train DATA --out NEW --upload-bytes 300,000", "is no whole number: write 300000"),
        ("train DATA --out NEW --seed 1.5", "'1.5' is no whole number"),
        ("train DATA --out NEW --weights none.safetensors --backbone resnet18",
         "docs/backbones.md says where to get one"),
        ("predict DATA RUN", "RUN is one: the order is fedvad predict RUN IMAGES"),
        ("evaluate DATA RUN", "RUN is one: the order is fedvad evaluate RUN DATA"),
        ("calibrate DATA RUN", "RUN is one: the order is fedvad calibrate RUN NORMALS"),
        ("calibrate RUN", "give images of good parts"),
        ("predict DATA DATA", "DATA is not a run folder"),
        ("predict RUN/results.json DATA", "results.json is a file: give the folder that `fedvad"),
        ("report RUN/results.json", "results.json is a file: give the folder that `fedvad"),
        ("inspect RUN/report.html", "it lies in a run: fedvad inspect RUN"),
    ],
)  # fmt: skip
def test_the_answer_says_what_to_type(
    arguments: str, answer: str, trained: Run, plants: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"DATA": str(plants), "RUN": str(trained[0]), "NEW": str(tmp_path / "new")}
    words = [
        f"{places.get(word.split('/')[0], word.split('/')[0])}{word[len(word.split('/')[0]) :]}"
        for word in arguments.split()
    ]
    assert run_main(monkeypatch, *words) in (2, 3)
    said = capsys.readouterr().err
    for name, place in places.items():
        said = said.replace(place, name)
    assert answer in " ".join(said.replace("│", " ").split())
    assert not (tmp_path / "new").exists()


def test_images_without_a_folder_of_their_label(
    plants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for line in ("line1", "line2"):
        shutil.copytree(plants / "alder/train/good", tmp_path / "flat" / line)
    assert run_main(monkeypatch, "train", tmp_path / "flat", "--out", tmp_path / "new") == 3
    assert (
        "line1 holds 6 images but no train/good folder: move images of good parts to "
        "line1/train/good, and likewise in 1 more folders"
    ) in capsys.readouterr().err


def test_the_way_to_more_about_the_data_is_complete(
    plants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "okng"
    shutil.copytree(plants / "alder/train/good", data / "line1/OK")
    shutil.copytree(plants / "alder/test/good", data / "line1/NG")
    options = ("--good", "OK", *FLAGS, "--tiles", "64", "--overlap", "32")
    assert run_main(monkeypatch, "train", data, "--out", tmp_path / "run", *options) == 0
    said = capsys.readouterr().err
    assert "every fifth normal image is for testing, the set has no split" in said
    assert f"See: fedvad inspect {data} --good OK" in said
    assert "tiles of 64 pixels are no smaller than the images" in said
